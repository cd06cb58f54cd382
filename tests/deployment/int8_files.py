"""Small int8 ONNX files of the kind that a student is exported to, made from real play."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.atari.envs import AtariEnvs

SMALL = {"conv1": 8, "conv2": 16, "conv3": 16, "fc1": 64}


@functools.cache
def observations(game: str, count: int) -> NDArray[np.uint8]:
    """Play at random, shape (count, 4, 84, 84)."""
    rng = np.random.default_rng(0)
    with AtariEnvs(game, 1, "noop", seed=0, threads=1) as envs:
        seen = [envs.reset().observations]
        while len(seen) < count:
            seen.append(envs.step(rng.integers(envs.actions, size=1)).observations)
    return np.concatenate(seen)


class _Calibration(CalibrationDataReader):
    def __init__(self, states: NDArray[np.uint8]) -> None:
        images = states[:, None].astype(np.float32) / 255
        images[0, 0, 0, 0, 0] = 1  # so that the input's scale becomes 1/255
        self._left = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        image = next(self._left, None)
        return None if image is None else {"observations": image}


def write_int8(path: Path, network: PolicyNetwork, game: str, per_channel: bool = True) -> Path:
    """Quantise a network as its exporter does: uint8 observations in, float32 outputs out, QOperator format."""
    path.parent.mkdir(exist_ok=True)
    plain = path.with_suffix(".fp32.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 4, 84, 84),),
            str(plain),
            input_names=["observations"],
            output_names=["outputs"],
            dynamic_axes={"observations": {0: "batch"}, "outputs": {0: "batch"}},
            dynamo=False,
        )
    quantize_static(
        plain,
        path,
        _Calibration(observations(game, 64)),
        quant_format=QuantFormat.QOperator,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    plain.unlink()
    model = onnx.load(path)
    _take_uint8(model.graph)
    about = {"game": game, "actions": network.actions, "head": network.head_kind, "format": "int8 QOperator"}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in about.items()} | {"lineage": "{}"})
    onnx.save(model, path)
    return path


def _take_uint8(graph: onnx.GraphProto) -> None:
    """Drop the first QuantizeLinear: its scale is 1/255, so the observation's bytes are its output."""
    (first,) = (node for node in graph.node if node.input[0] == "observations")
    assert first.op_type == "QuantizeLinear"
    for node in graph.node:
        node.input[:] = ["observations" if name == first.output[0] else name for name in node.input]
    graph.node.remove(first)
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    del graph.value_info[:]
