"""Agents as ONNX files, which every framework writes: the way from the observations to the outputs is read.

Nothing else of the file is: a critic, a drawn action and their nodes do not matter. What was read is compared with what
ONNX Runtime computes from the same file before it is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from lrp_compress.agents.layouts import Layout
from lrp_compress.networks.graph import Layer, LayerList, Network, as_policy_network
from lrp_compress.networks.spaces import STACK
from lrp_compress.support.errors import UserError

SHAPES: Mapping[tuple[int, ...], bool] = {
    (STACK, 84, 84): False,
    (84, 84, STACK): True,
}  # of an observation, and whether its channels come last
DTYPES: Mapping[int, Any] = {TensorProto.UINT8: np.uint8, TensorProto.FLOAT: np.float32}
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations of (N, C, H, W) and back
SHAPE_OPS = {
    "Shape",
    "Gather",
    "Unsqueeze",
    "Slice",
    "Concat",
    "Cast",
    "Constant",
}  # what a flattening's shape is made by
MOST = 64  # observations that a file may take at once, where it says how many
TOLERANCE = 1e-3  # relative to the largest output
HEAD = "head"  # in the metadata of this project's own files

Constants = Mapping[str, NDArray[Any]]


class Unread(Exception):
    """A node that is no layer."""


@dataclass(frozen=True)
class Way:
    """How a value is computed from the observations.

    Attributes
    ----------
    layers : tuple of Layer
        In the order of computation.
    state : dict of str to Tensor
        Their weights.
    scale : float
        What the pixels were multiplied by.
    last : bool
        Whether the value's channels come last.
    """

    layers: tuple[Layer, ...] = ()
    state: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 1.0
    last: bool = False

    def then(self, layer: Layer, **weights: Tensor) -> Way:
        """Compute one layer more."""
        state = {f"{layer.name}.{kind}": weight for kind, weight in weights.items()}
        return replace(self, layers=(*self.layers, layer), state=self.state | state)


def is_onnx(content: bytes) -> bool:
    """Tell by its first bytes whether a file may be ONNX: the version of the format, then the next field."""
    return content[:1] == b"\x08" and content[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42")


def read_onnx(content: bytes, head: str, actions: Sequence[int], source: str) -> tuple[Network, Layout]:
    """Read the network that an ONNX file computes.

    Parameters
    ----------
    content : bytes
        The file, its weights in it. Its input is a batch of observations, uint8 or float32 in [0, 255], of shape
        (N, 4, 84, 84) or (N, 84, 84, 4).
    head : {"auto", "q", "policy"}
        What the outputs are. Only files of this project say so themselves.
    actions : sequence of int
        The numbers of actions that fit the game; the output of such a width is the policy's.
    source : str
        What errors call the agent.

    Returns
    -------
    network : Network
        In evaluation mode, compared with ONNX Runtime on random observations.
    layout : Layout
        How the agent plays, if the file is of this project.

    Raises
    ------
    UserError
        If the file is damaged, no output or more than one may be the policy's, a node on the way is no layer that is
        known, or the network is no chain of convolutions and dense layers.
    """
    model = _parsed(content, source)
    given = _observations(model.graph, source)
    head = _head(model, head, source)
    ways = _ways(model.graph, given)
    networks: dict[str, Network] = {}
    reasons: list[str] = []
    for output in model.graph.output:
        way = ways.get(output.name, Unread("it is not computed from the observations"))
        if isinstance(way, Unread):
            reasons.append(f"output {output.name}: {way}")
            continue
        try:
            network = as_policy_network(LayerList(list(way.layers), way.state, way.scale), head, source)
        except UserError as error:
            reasons.append(str(error).removeprefix(f"{source} "))
            continue
        if network.actions in actions:
            networks[output.name] = network
        else:
            reasons.append(f"output {output.name} has {network.actions} values, none for each action")
    if len(networks) != 1:
        several = f"its outputs {', '.join(networks)} may all be the policy's" if networks else "; ".join(reasons)
        raise UserError(f"{source} is an ONNX file that is not read: {several[:400]}")
    ((name, network),) = networks.items()
    try:
        _compare(_part(model, given.name, name), network, given, name, source)
    except Unread as error:
        raise UserError(f"{source} is an ONNX file that is not read: {error}") from error
    stated = _metadata(model)
    fires, frame_skip = stated.get("fire_on_life_loss") == "true", stated.get("frame_skip", "4")
    return network, Layout("ONNX", head, (), fires=fires, frame_skip=int(frame_skip) if frame_skip.isdigit() else 4)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _parsed(content: bytes, source: str) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(content)
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise UserError(f"{source} keeps its weights in another file; save them in the same")
        onnx.checker.check_model(model)
    except UserError:
        raise
    except Exception as error:  # of protobuf and of the checker, which share no base class
        raise UserError(f"{source} is no whole ONNX file ({' '.join(str(error).split())[:200]})") from error
    return model


def _observations(graph: onnx.GraphProto, source: str) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or _shape(inputs[0]) not in SHAPES or inputs[0].type.tensor_type.elem_type not in DTYPES:
        told = ", ".join(f"{value.name} of shape {_shape(value)}" for value in inputs)
        raise UserError(
            f"{source} takes {told[:200] or 'nothing'}; it must be observations alone, uint8 or float32, (N, {STACK}, "
            f"84, 84) or (N, 84, 84, {STACK})"
        )
    given: onnx.ValueInfoProto = inputs[0]
    return given


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Shape of one of a batch."""
    return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)[1:]


def _head(model: onnx.ModelProto, head: str, source: str) -> str:
    """Settle what the outputs are."""
    stated = _metadata(model).get(HEAD)
    if head == "auto" and stated in ("q", "policy"):
        head = str(stated)
    if head == "auto":
        raise UserError(f"{source} does not say what its outputs are; add teacher.head=q or teacher.head=policy")
    return head


def _ways(graph: onnx.GraphProto, given: onnx.ValueInfoProto) -> dict[str, Way | Unread]:
    """Follow the observations through the graph; by value how it is computed, or the node that is no layer."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ways: dict[str, Way | Unread] = {given.name: Way(last=SHAPES[_shape(given)])}
    for node in graph.node:  # in the order of computation
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        values = [name for name in node.input if name in ways]
        if not values:
            continue
        before = ways[values[0]]
        try:
            if isinstance(before, Unread):
                raise before
            if node.op_type not in READERS or (len(values) > 1 and node.op_type != "Reshape"):
                raise Unread(_name(node))
            after: Way | Unread = READERS[node.op_type](before, node, constants)
        except Unread as error:
            after = error
        ways |= dict.fromkeys(node.output[:1], after)
    return ways


def _name(node: onnx.NodeProto) -> str:
    return f"{node.op_type} ({(node.name or node.output[0])[:80]}) is no layer that is read"


def _options(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _weights(node: onnx.NodeProto, constants: Constants) -> list[Tensor]:
    if missing := next((name for name in node.input[1:] if name not in constants), None):
        raise Unread(f"the weights {missing[:80]} of {node.op_type} are computed, not stored")
    return [torch.from_numpy(constants[name].astype(np.float32)) for name in node.input[1:]]


def _same(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    return way


def _relu(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    if node.op_type == "Clip":
        low, *high = [constants.get(name) for name in node.input[1:]] or [None]
        if _options(node) or low is None or low.item() != 0 or any(bound is not None for bound in high):
            raise Unread(_name(node))
    return way.then(Layer(node.output[0], "relu"))


def _flatten(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    if way.layers and way.layers[-1].op in ("flatten", "dense"):  # what is flat stays so
        return way
    return replace(way.then(Layer(node.output[0], "flatten", {"channels_last": way.last})), last=False)


def _transpose(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    permutation = _options(node).get("perm")
    if permutation not in (TO_LAST, TO_FIRST) or way.last == (permutation == TO_LAST):
        raise Unread(_name(node))
    return replace(way, last=permutation == TO_LAST)


def _conv(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    options, (weight, *bias) = _options(node), _weights(node, constants)
    if way.last or weight.ndim != 4 or options.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise Unread(_name(node))
    pads = list(options.get("pads", [0] * 4))
    geometry = {
        "kernel": list(weight.shape[2:]),
        "stride": list(options.get("strides", [1, 1])),
        "padding": pads[:2] if pads[:2] == pads[2:] else pads,
        "dilation": list(options.get("dilations", [1, 1])),
        "groups": options.get("group", 1),
    }
    layer = Layer(node.output[0], "conv", geometry)
    return way.then(layer, weight=weight, bias=bias[0] if bias else torch.zeros(len(weight)))


def _dense(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    options, (weight, *bias) = _options(node), _weights(node, constants)
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA")
    if not plain or weight.ndim != 2 or way.last:
        raise Unread(_name(node))
    weight = weight if options.get("transB") else weight.T.contiguous()
    layer = Layer(node.output[0], "dense")
    return way.then(layer, weight=weight, bias=bias[0].flatten() if bias else torch.zeros(len(weight)))


def _arithmetic(way: Way, node: onnx.NodeProto, constants: Constants) -> Way:
    """Read a scale of the pixels, or a bias that is added after the product."""
    known = next((constants[name] for name in node.input if name in constants), None)
    if known is not None and known.size == 1 and not way.layers and node.op_type in ("Mul", "Div"):
        if node.op_type == "Div" and node.input[0] in constants:
            raise Unread(_name(node))
        factor = float(known.item())
        return replace(way, scale=way.scale * factor if node.op_type == "Mul" else way.scale / factor)
    if known is not None and node.op_type == "Add" and way.layers and way.layers[-1].op in ("conv", "dense"):
        key = f"{way.layers[-1].name}.bias"
        added = torch.from_numpy(known.astype(np.float32)).flatten()
        if len(added) == len(way.state[key]):
            return replace(way, state=way.state | {key: way.state[key] + added})
    raise Unread(_name(node))


READERS: dict[str, Callable[[Way, onnx.NodeProto, Constants], Way]] = {
    **dict.fromkeys(("Cast", "Identity", "Dropout", "Softmax", "LogSoftmax"), _same),
    **dict.fromkeys(("Relu", "Clip"), _relu),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze"), _flatten),
    "Transpose": _transpose,
    "Conv": _conv,
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    **dict.fromkeys(("Mul", "Div", "Add"), _arithmetic),
}


def _part(model: onnx.ModelProto, start: str, end: str) -> bytes:
    """Cut the way from the observations to an output out of a model, and refuse to run what else is on it."""
    part = onnx.utils.Extractor(model).extract_model([start], [end])
    if odd := next((node for node in part.graph.node if node.op_type not in READERS.keys() | SHAPE_OPS), None):
        raise Unread(_name(odd))
    content: bytes = part.SerializeToString()
    return content


def _compare(content: bytes, network: Network, given: onnx.ValueInfoProto, output: str, source: str) -> None:
    """Compare what was read with what ONNX Runtime computes."""
    count = min(given.type.tensor_type.shape.dim[0].dim_value or 4, MOST)
    pixels = np.random.default_rng(0).integers(0, 256, (count, STACK, 84, 84), dtype=np.uint8)
    fed = pixels.transpose(0, 2, 3, 1) if SHAPES[_shape(given)] else pixels
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        kind = DTYPES[given.type.tensor_type.elem_type]
        (theirs,) = session.run([output], {given.name: np.ascontiguousarray(fed, dtype=kind)})
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise UserError(f"{source} is not run by ONNX Runtime: {' '.join(str(error).split())[:200]}") from error
    with torch.inference_mode():
        ours = network(torch.from_numpy(pixels))
    expected = torch.from_numpy(theirs)
    largest = max(1e-6, float(expected.abs().max()))
    likely = (ours, ours.softmax(-1), ours.log_softmax(-1))  # a policy's probabilities draw the same actions
    if not any(one.shape == expected.shape and (one - expected).abs().max() <= TOLERANCE * largest for one in likely):
        raise UserError(f"{source} computes something else than the layers that were read from it; it is not used")
