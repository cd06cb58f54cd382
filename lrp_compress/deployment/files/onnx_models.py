"""ONNX files of an agent: in float32, and in int8 by static quantisation (Jacob et al. 2018, section 2).

Every file takes observations as the environment gives them, of any batch size, so that whoever runs it needs no
preprocessing, and says in its metadata which game it plays.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
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
from lrp_compress.networks.graph import HEAD, Layer, Network
from lrp_compress.networks.ops import WEIGHTED
from lrp_compress.networks.spaces import Observations
from lrp_compress.support.files import atomic_path

OPSET, IR_VERSION = 20, 9  # of the same release of ONNX, 1.15
WHITE = 255  # the brightest pixel
QOPERATOR, QDQ = "int8 QOperator", "int8 QDQ"  # the formats of int8 files, as their metadata says
OPERATORS = {
    "conv": "Conv",
    "dense": "Gemm",
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "add": "Add",
    "max_pool": "MaxPool",
    "mean_pool": "AveragePool",
    "flatten": "Reshape",
}
NO_OPERATOR = ("elu", "tanh", "add", "mean_pool")  # in integers, or one that gives other outputs
FLAT = "flat.shape"


def save_float(path: Path, agent: Agent) -> None:
    """Write an agent as float32 ONNX, atomically.

    Parameters
    ----------
    path : Path
        Usually ending in ``.onnx``.
    agent : Agent
        Its network is left untouched.
    """
    _save(path, _float_model(agent.network), agent, "float32")


def save_int8(path: Path, agent: Agent, observations: NDArray[Any], per_channel: bool, operators: bool = True) -> None:
    """Quantise an agent and write it as int8 ONNX, atomically.

    Weights become int8, symmetric about 0; activations uint8 between the smallest and the largest value seen. Pixels
    are taken as they are, with a scale of exactly 1/unit; other observations are rounded first. The head's integer sums
    become float32 outputs, unrounded.

    Parameters
    ----------
    path : Path
        Usually ending in ``.onnx``.
    agent : Agent
        Its network is left untouched.
    observations : ndarray, shape (N, *network.observations.shape)
        States of the agent's own play, for the ranges of the activations.
    per_channel : bool
        A scale for every output channel of a layer, or one for the layer.
    operators : bool
        Integer operators (QOperator format) where `has_operators` says that there are some; else float operators
        between pairs of QuantizeLinear and DequantizeLinear (QDQ format). Runtimes differ in what they take; the
        outputs are the same.
    """
    network = agent.network
    operators = operators and has_operators(network)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        plain, prepared, quantised = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "quantised"))
        onnx.save(_float_model(network, to_quantise=True), plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Calibration(network.observations, observations),
            quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
            op_types_to_quantize=["Sum", *OPERATORS.values()],
            nodes_to_exclude=_left_float(network),
            extra_options={"ForceQuantizeNoInputCheck": not operators},  # of what reads those left float
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(quantised)
    if network.observations.dtype == "uint8":
        _take_pixels(model.graph, network.observations.unit)
    _give_floats(model.graph)
    _save(path, model, agent, QOPERATOR if operators else QDQ)


def has_operators(network: Network) -> bool:
    """Whether a network's int8 file has integer operators.

    It has where each layer reads the one before, and none computes what ONNX Runtime has no integer operator for. Its
    writer of integer operators drops a ReLU, without a word, that reads a value which others read too.
    """
    chain = all(len(network.readers(layer.name)) == 1 for layer in network.layers[:-1])
    return chain and all(layer.op not in NO_OPERATOR for layer in network.layers)


class _Calibration(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Observations one at a time, as the float network takes them.

    One pixel of the first is made white: the range of the input is then exactly [0, 255/unit], its scale 1/unit.
    Setting the scale afterwards would be wrong, since the first layer's bias is quantised with it.
    """

    def __init__(self, space: Observations, observations: NDArray[Any]) -> None:
        self._given = self._scaled(space, observations)

    @staticmethod
    def _scaled(space: Observations, observations: NDArray[Any]) -> Iterator[dict[str, NDArray[np.float32]]]:
        for i, observation in enumerate(observations):
            values = observation[None].astype(np.float32)
            if space.dtype == "uint8":
                values = values / np.float32(space.unit)
                if i == 0:
                    values.flat[0] = WHITE / space.unit
            yield {INPUT: values}

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        return next(self._given, None)


def _float_model(network: Network, to_quantise: bool = False) -> onnx.ModelProto:
    """Write a network down as a graph: from what the environment gives, or as quantisation wants it.

    Observations are divided by their unit in the first layer's weights, where it costs nothing when it runs; pixels for
    quantisation are in units already.
    """
    space, first = network.observations, network.layers[0].name
    of_pixels = space.dtype == "uint8" and not to_quantise
    weights = {name: value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    if space.dtype != "uint8" or of_pixels:
        weights[f"{first}.weight"] = weights[f"{first}.weight"] / np.float32(space.unit)
    nodes, named = [], {INPUT: INPUT, HEAD: OUTPUT}
    if of_pixels:
        named[INPUT] = f"{INPUT}.float"
        nodes.append(helper.make_node("Cast", [INPUT], [named[INPUT]], to=TensorProto.FLOAT))
    for layer in network.layers:
        named.setdefault(layer.name, layer.name if layer.name != OUTPUT else f"{OUTPUT}.hidden")
        operator, attributes = _operator(layer, network, to_quantise)
        inputs = [named[name] for name in layer.inputs]
        if layer.op in WEIGHTED:
            inputs += [f"{layer.name}.weight", f"{layer.name}.bias"]
        elif layer.op == "flatten":
            inputs.append(FLAT)
        nodes.append(helper.make_node(operator, inputs, [named[layer.name]], layer.name, **attributes))
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in weights.items()]
    if any(layer.op == "flatten" for layer in network.layers):
        tensors.append(numpy_helper.from_array(np.array([0, -1]), FLAT))  # 0: as many as come in
    kind = TensorProto.UINT8 if of_pixels else TensorProto.FLOAT
    observations = helper.make_tensor_value_info(INPUT, kind, ["batch", *space.shape])
    outputs = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", network.actions])
    graph = helper.make_graph(nodes, "policy", [observations], [outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _operator(layer: Layer, network: Network, to_quantise: bool) -> tuple[str, dict[str, Any]]:
    """Choose the operator of a layer and its attributes.

    What is to be quantised has a few in another spelling. A ReLU that cannot be had by cutting off what it alone reads
    is a leaky one of slope 0: ONNX Runtime's quantiser would drop it. And a sum of two is a Sum, computed in float32
    between roundings: ONNX Runtime's integer addition gives other results on ARM than on x86.
    """
    options = layer.options
    if layer.op == "conv":
        groups = {"group": options["groups"]} if "groups" in options else {}
        return "Conv", {"strides": options["stride"], **_padding(options), **groups}
    if layer.op == "dense":
        return "Gemm", {"transB": 1}
    if layer.op == "max_pool":
        return "MaxPool", {"kernel_shape": options["kernel"], "strides": options["stride"], **_padding(options)}
    if layer.op == "mean_pool":
        return "AveragePool", {"kernel_shape": options["kernel"], "strides": options["stride"]}
    if layer.op == "relu" and to_quantise and not _cut_off(layer, network):
        return "LeakyRelu", {"alpha": 0.0}
    if layer.op == "add" and (to_quantise or len(layer.inputs) > 2):
        return "Sum", {}
    return OPERATORS[layer.op], {{"slope": "alpha"}.get(name, name): value for name, value in options.items()}


def _padding(options: Mapping[str, Any]) -> dict[str, list[int]]:
    return {"pads": [*options["padding"]] * 2} if any(options["padding"]) else {}


def _left_float(network: Network) -> list[str]:
    """Name the means that get a scale of their own, from what reads them; quantised they would have their input's."""
    return [
        layer.name
        for layer in network.layers
        if layer.op == "mean_pool"
        and all(network.layer(reader).op != "mean_pool" for reader in network.readers(layer.name))
    ]


def _cut_off(layer: Layer, network: Network) -> bool:
    """Whether a ReLU is had by cutting off, at 0, the range of what it reads."""
    (read,) = layer.inputs
    return network.layer(read).op in (*WEIGHTED, "add") and network.readers(read) == [layer.name]


def _take_pixels(graph: onnx.GraphProto, unit: float) -> None:
    """Let a quantised graph start from uint8 observations in place of the quantisation of float ones."""
    (first,) = (node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == INPUT)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    scale, zero = (numpy_helper.to_array(constants[name]) for name in first.input[1:3])
    if abs(float(scale) * unit - 1) > 1e-6 or int(zero) != 0:
        raise ValueError(f"the input's scale is {float(scale)} and its zero point {int(zero)}, not 1/{unit:g} and 0")
    constants[first.input[1]].CopyFrom(
        numpy_helper.from_array(np.asarray(1 / unit, np.float32).reshape(scale.shape), first.input[1])
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
        "head": agent.network.head_kind,
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
