"""ONNX files of an agent: in float32, and in int8 by static quantisation (Jacob et al. 2018, section 2).

Every file takes uint8 observations of any batch size, so that whoever runs it needs no preprocessing, and says in its
metadata which game it plays. A dueling head is folded into a plain one first.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from lrp_compress import __version__
from lrp_compress.agents.checkpoints import Agent
from lrp_compress.deployment.files.onnx_sessions import INPUT, OUTPUT
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import fold_dueling
from lrp_compress.networks.spaces import STACK
from lrp_compress.support.files import atomic_path

OPSET, IR_VERSION = 20, 9  # of the same release of ONNX, 1.15
WHITE = 255  # the brightest pixel, which is 1.0 to the network


def save_float(path: Path, agent: Agent) -> None:
    """Write an agent as float32 ONNX, atomically.

    Parameters
    ----------
    path : Path
        Usually ending in ``.onnx``.
    agent : Agent
        Its network is left untouched.
    """
    _save(path, _float_model(fold_dueling(agent.network), of_pixels=True), agent, "float32")


def save_int8(
    path: Path, agent: Agent, observations: NDArray[np.uint8], per_channel: bool, operators: bool = True
) -> None:
    """Quantise an agent and write it as int8 ONNX, atomically.

    Weights become int8, symmetric about 0; activations uint8 between the smallest and the largest value seen. The
    input is taken as it is, with a scale of exactly 1/255; the head's integer sums become float32 outputs, unrounded.

    Parameters
    ----------
    path : Path
        Usually ending in ``.onnx``.
    agent : Agent
        Its network is left untouched.
    observations : ndarray of uint8, shape (N, 4, 84, 84)
        States of the agent's own play, for the ranges of the activations.
    per_channel : bool
        A scale for every output channel of a layer, or one for the layer.
    operators : bool
        Integer operators (QOperator format); else float operators between pairs of QuantizeLinear and DequantizeLinear
        (QDQ format). Runtimes differ in what they take; the outputs are the same.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantised"))
        onnx.save(_float_model(fold_dueling(agent.network), of_pixels=False), plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Calibration(observations),
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(quantised)
    _take_pixels(model.graph)
    _give_floats(model.graph)
    _save(path, model, agent, "int8 QOperator" if operators else "int8 QDQ")


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Observations one at a time, as the float network takes them.

    One pixel of the first is made white: the range of the input is then exactly [0, 1], its scale 1/255. Setting the
    scale afterwards would be wrong, since conv1's bias is quantised with it.
    """

    def __init__(self, observations: NDArray[np.uint8]) -> None:
        self._frames = self._scaled(observations)

    @staticmethod
    def _scaled(observations: NDArray[np.uint8]) -> Iterator[dict[str, NDArray[np.float32]]]:
        for i, observation in enumerate(observations):
            frame = observation[None].astype(np.float32) / WHITE
            if i == 0:
                frame[0, 0, 0, 0] = 1.0
            yield {INPUT: frame}

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._frames, None)


def _float_model(network: Network, of_pixels: bool) -> onnx.ModelProto:
    """Write a network down as a graph: from uint8 pixels, or from floats in [0, 1] as quantisation wants them.

    With pixels the division by 255 is part of conv1's weights, where it costs nothing when it runs.
    """
    weights = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    nodes, values = [], INPUT
    if of_pixels:
        weights["conv1.weight"] = weights["conv1.weight"] / np.float32(WHITE)
        nodes.append(helper.make_node("Cast", [INPUT], ["pixels"], to=TensorProto.FLOAT))
        values = "pixels"
    for name in (*network.widths, "head"):
        inputs, output = [values, f"{name}.weight", f"{name}.bias"], OUTPUT if name == "head" else name
        if name in network.convolutions:
            nodes.append(helper.make_node("Conv", inputs, [output], name, strides=[network.convolutions[name][1]] * 2))
        else:
            nodes.append(helper.make_node("Gemm", inputs, [output], name, transB=1))
        if name != "head":
            values = f"{name}_relu"
            nodes.append(helper.make_node("Relu", [output], [values]))
        if name == [*network.convolutions][-1]:
            nodes.append(helper.make_node("Reshape", [values, "flat"], ["features"]))
            values = "features"
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([0, -1]), "flat"))  # 0: as many as come in
    kind = TensorProto.UINT8 if of_pixels else TensorProto.FLOAT
    observations = helper.make_tensor_value_info(INPUT, kind, ["batch", STACK, 84, 84])
    outputs = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", network.actions])
    graph = helper.make_graph(nodes, "policy", [observations], [outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _take_pixels(graph: onnx.GraphProto) -> None:
    """Let a quantised graph start from uint8 observations in place of the quantisation of float ones."""
    (first,) = (node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == INPUT)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scale, zero = (numpy_helper.to_array(constants[name]) for name in first.input[1:3])
    if abs(float(scale) * WHITE - 1) > 1e-6 or int(zero) != 0:
        raise ValueError(f"the input's scale is {float(scale)} and its zero point {int(zero)}, not 1/255 and 0")
    constants[first.input[1]].CopyFrom(
        numpy_helper.from_array(np.asarray(1 / WHITE, np.float32).reshape(scale.shape), first.input[1])
    )
    for node in graph.node:
        node.input[:] = [INPUT if name == first.output[0] else name for name in node.input]
    graph.node.remove(first)
    graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    for info in [info for info in graph.value_info if info.name in (INPUT, first.output[0])]:
        graph.value_info.remove(info)


def _give_floats(graph: onnx.GraphProto) -> None:
    """Let the head of a quantised graph give its outputs in float32, in place of rounding them to uint8 first."""
    makers = {node.output[0]: node for node in graph.node}
    dequantize = makers[OUTPUT]
    head = makers[dequantize.input[0]]
    graph.node.remove(dequantize)
    if head.op_type == "QuantizeLinear":
        graph.node.remove(head)
        head = makers[head.input[0]]
    else:  # QGemm: without the scale and zero point of its output that is float32
        del head.input[7:]
    head.output[0] = OUTPUT
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)
    for info in [info for info in graph.value_info if info.name not in used]:
        graph.value_info.remove(info)


def _save(path: Path, model: onnx.ModelProto, agent: Agent, kind: str) -> None:
    model.producer_name, model.producer_version = "lrp_compress", __version__
    described: dict[str, Any] = {
        "game": agent.info.game,
        "actions": agent.network.actions,
        "action_set": agent.info.action_set,
        "fire_on_life_loss": agent.info.fire_on_life_loss,
        "frame_skip": agent.info.frame_skip,
        "head": "policy" if agent.network.head_kind == "policy" else "q",
        "format": kind,
        "lineage": agent.info.lineage,
    }
    model.ClearField("metadata_props")
    for key, value in described.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(model)
    with atomic_path(path) as temporary:
        onnx.save(model, temporary)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporters warn of and log: none of it is about the agent."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
