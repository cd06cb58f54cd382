"""Int8 files computed without ONNX Runtime: in exact integers, operator by operator as ONNX describes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Values = NDArray[np.generic]


def exact_outputs(path: Path, observations: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Run a QOperator file: int32 sums, one float32 factor each, rounding half to even, clamping to uint8."""
    graph = onnx.load(path).graph
    known: dict[str, Values] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    known[graph.input[0].name] = observations
    for node in graph.node:
        values = [known.get(name) for name in node.input]
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        known[node.output[0]] = OPERATORS[node.op_type](attributes, *values)
    outputs: NDArray[np.float32] = known[graph.output[0].name]
    return outputs


def _sums(inputs: Values, zero: Values, weights: Values) -> NDArray[np.int64]:
    """Products of rows, added up exactly: float64 holds every integer below 2^53."""
    centred = inputs.astype(np.float64) - float(zero)
    return (centred @ weights.astype(np.float64)).astype(np.int64)


def _rescaled(sums: NDArray[np.int64], scales: tuple[Values, Values, Values], zero: Values) -> NDArray[np.uint8]:
    before, weights, after = (np.asarray(scale, np.float32) for scale in scales)
    scaled = sums.astype(np.float32) * (before * weights / after)
    return np.clip(np.rint(scaled) + np.float32(zero), 0, 255).astype(np.uint8)


def _convolution(
    attributes: dict[str, list[int]], x: Values, x_scale: Values, x_zero: Values, w: Values, w_scale: Values,
    w_zero: Values, y_scale: Values, y_zero: Values, bias: Values,
) -> NDArray[np.uint8]:  # fmt: skip
    assert not np.any(w_zero)
    patches = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))
    patches = patches[:, :, :: attributes["strides"][0], :: attributes["strides"][1]].transpose(0, 2, 3, 1, 4, 5)
    sums = _sums(patches.reshape(*patches.shape[:3], -1), x_zero, w.reshape(len(w), -1).T) + bias
    return _rescaled(sums, (x_scale, w_scale, y_scale), y_zero).transpose(0, 3, 1, 2)


def _dense(
    attributes: dict[str, int], a: Values, a_scale: Values, a_zero: Values, b: Values, b_scale: Values, b_zero: Values,
    bias: Values, y_scale: Values | None = None, y_zero: Values | None = None,
) -> Values:  # fmt: skip
    assert not np.any(b_zero)
    sums = _sums(a, a_zero, b.T if attributes.get("transB") else b) + bias
    if y_scale is None or y_zero is None:
        return sums.astype(np.float32) * (np.float32(a_scale) * np.asarray(b_scale, np.float32))
    return _rescaled(sums, (a_scale, b_scale, y_scale), y_zero)


OPERATORS = {
    "QLinearConv": _convolution,
    "QGemm": _dense,
    "Reshape": lambda _, values, shape: values.reshape(len(values), -1),
}
