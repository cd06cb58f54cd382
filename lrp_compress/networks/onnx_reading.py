"""What the graph of an ONNX file computes: the nodes that are layers, and constants that nodes make of constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from lrp_compress.networks import values
from lrp_compress.networks.spaces import Observations
from lrp_compress.networks.values import Unread, Value

Array = NDArray[Any]
Read = Value | Unread
# Nodes that make constants of constants, the shape of a flattening for one; the first kinds keep their size.
KEEP_SIZE = ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
SMALL_ONLY = ("Concat", "Gather", "Slice", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal")
TELLING = {"LSTM": "an LSTM", "GRU": "a GRU", "Attention": "attention"}  # more than the nodes that lead there
SMALL = 1024  # numbers that the other kinds are given at most
MOST_SIDES = 8  # of what a layer computes
MOST_CONSTANTS, MOST_WEIGHTS = 2**27, 2**25  # bytes that are made of constants; numbers in all layers
SHAPE_OPS = frozenset(("Shape", "Constant", *KEEP_SIZE, *SMALL_ONLY))


class Sides(Unread):
    """Part of a shape that a file computes for itself, of so many numbers at most, from those of some values."""

    def __init__(self, message: str, most: int, of: tuple[Value, ...]) -> None:
        super().__init__(message)
        self.most, self.of = most, of


class Call:
    """A node and what is known of what it is given."""

    def __init__(self, node: onnx.NodeProto, reads: Mapping[str, Read], constants: Mapping[str, Array]) -> None:
        self.node = node
        self.options = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        self.given = [reads.get(name, constants.get(name)) if name else None for name in node.input]

    @property
    def value(self) -> Value:
        """The first that it is given, computed from the observations."""
        if self.given and isinstance(self.given[0], Value):
            return self.given[0]
        raise self.unread()

    def array(self, place: int) -> Array | None:
        """Give a constant, or None where there is nothing."""
        found = self.given[place] if place < len(self.given) else None
        if isinstance(found, Value | Unread) or (found is None and "".join(self.node.input[place : place + 1])):
            raise Unread(f"{self.node.op_type} with what is computed, not stored ({self.node.input[place][:80]})")
        return found

    def tensor(self, place: int) -> Tensor | None:
        """Give a constant as a tensor of float32."""
        array = self.array(place)
        return None if array is None else torch.from_numpy(array.astype(np.float32))

    def weight(self, place: int) -> Tensor:
        """Give a constant that must be there."""
        tensor = self.tensor(place)
        if tensor is None:
            raise self.unread()
        return tensor

    def pair(self, name: str, default: int) -> tuple[int, int]:
        """Give an attribute for rows and columns."""
        pair = self.options.get(name, [default] * 2)
        if len(pair) != 2:
            raise self.unread()
        return int(pair[0]), int(pair[1])

    def padding(self, kernel: tuple[int, int], stride: tuple[int, int]) -> tuple[int, int]:
        """Give the padding, if it is the same on both sides."""
        auto = self.options.get("auto_pad", b"NOTSET")
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            sides = zip(self.value.shape[1:], kernel, stride, strict=True)
            total = [max((-(-side // step) - 1) * step + size - side, 0) for side, size, step in sides]
            pads = [*(one // 2 for one in total), *(one - one // 2 for one in total)]
        else:
            pads = list(self.options.get("pads", [0] * 4)) if auto == b"NOTSET" else [0] * 4
        if len(pads) != 4 or pads[:2] != pads[2:]:
            raise Unread(f"{self.node.op_type} with pads={pads}, which are not the same on both sides")
        return pads[0], pads[1]

    def unread(self) -> Unread:
        """Say that the node is none that is read."""
        return Unread(f"{self.node.op_type} ({(self.node.name or self.node.output[0])[:80]})")


def read_graph(graph: onnx.GraphProto, name: str, observations: Observations, last: bool) -> dict[str, Value | Unread]:
    """Read what a graph computes.

    Parameters
    ----------
    graph : onnx.GraphProto
        With its weights in it.
    name : str
        Of the input that is the observations.
    observations : Observations
    last : bool
        Whether their channels come last in the file.

    Returns
    -------
    dict of str to Value or Unread
        By output; the first node on the way to it that is no layer, if there is one.
    """
    constants: dict[str, Array] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    reads: dict[str, Read] = {name: values.given(observations, last)}
    made = weights = 0
    for node in graph.node:  # in the order of computation
        call = Call(node, reads, constants)
        if not any(isinstance(one, Value | Unread) for one in call.given):
            new = _constant(node, constants) if made < MOST_CONSTANTS else {}
            made += sum(array.nbytes for array in new.values())
            constants |= new
            continue
        try:
            if node.op_type in TELLING:
                raise Unread(TELLING[node.op_type])
            for one in call.given[: 1 if node.op_type == "Reshape" else None]:  # whose shape may hold the batch's size
                if isinstance(one, Unread):
                    raise one
            if node.op_type not in READERS:
                raise call.unread()
            value = READERS[node.op_type](call)
            weights += sum(tensor.numel() for tensor in value.weights)
            if weights > MOST_WEIGHTS:
                raise Unread(f"layers of more than {MOST_WEIGHTS:,} weights in all")
            found: Read = value
        except Unread as error:
            found = _sides(call) or Unread(str(error))
        reads |= dict.fromkeys(node.output if isinstance(found, Unread) else node.output[:1], found)
    nothing = Unread("a constant")
    return {output.name: reads.get(output.name, nothing) for output in graph.output}


def _sides(call: Call) -> Sides | None:
    """Follow the shape of what is computed on its way to a Reshape, as long as it stays one."""
    op, sides = call.node.op_type, [one for one in call.given if isinstance(one, Sides)]
    told = str(call.unread())
    if op == "Shape" and isinstance(call.given[0], Value):
        return Sides(told, MOST_SIDES, (call.given[0],))
    rest = [one for one in call.given if one is not None and not isinstance(one, Sides)]
    if not sides or op not in SHAPE_OPS or not all(isinstance(one, np.ndarray) for one in rest):
        return None
    sizes = [
        one.most if isinstance(one, Sides) else one.size for one in call.given if isinstance(one, Sides | np.ndarray)
    ]
    kept = op in (*KEEP_SIZE, "Slice")
    most = sizes[0] if kept else sum(sizes) if op == "Concat" else math.prod(sizes)
    return Sides(told, most, tuple({root for one in sides for root in one.of})) if most <= SMALL else None


def _constant(node: onnx.NodeProto, constants: Mapping[str, Array]) -> dict[str, Array]:
    """Make a constant of constants, if it takes no more room than they do."""
    if node.op_type == "Constant":
        tensor = next((one.t for one in node.attribute if one.HasField("t")), None)
        return {} if tensor is None else {node.output[0]: numpy_helper.to_array(tensor)}
    given = {name: constants[name] for name in node.input if name in constants}
    small = node.op_type in SMALL_ONLY and sum(given[name].size for name in node.input if name in given) <= SMALL
    if len(given) != len({name for name in node.input if name}) or not (small or node.op_type in KEEP_SIZE):
        return {}
    try:
        (made,) = ReferenceEvaluator(node).run(None, given)
    except Exception:  # of numpy, or of a node that older versions wrote in another way
        return {}
    return {node.output[0]: np.asarray(made)}


def _unchanged(call: Call) -> Value:
    if call.node.op_type == "Cast" and call.options.get("to") != onnx.TensorProto.FLOAT:
        raise call.unread()
    if any(isinstance(one, Value) for one in call.given[1:]):
        raise call.unread()
    return call.value


def _activation(op: str, **factors: tuple[str, float]) -> Callable[[Call], Value]:
    def read(call: Call) -> Value:
        options = {name: call.options.get(theirs, default) for name, (theirs, default) in factors.items()}
        return values.activated(op, call.value, **options)

    return read


def _clip(call: Call) -> Value:
    low, high = call.array(1), call.array(2)
    if call.options or low is None or low.size != 1 or low.item() != 0 or high is not None:
        raise call.unread()
    return values.activated("relu", call.value)


def _flatten(call: Call) -> Value:
    value = call.value
    if call.node.op_type == "Flatten" and call.options.get("axis", 1) not in (1, -len(value.shape)):
        raise call.unread()
    if call.node.op_type == "Squeeze":
        given = call.array(1)
        axes = {int(axis) % 4 for axis in (call.options.get("axes", ()) if given is None else given.flatten())}
        if value.shape[1:] not in ((), (1, 1)) or axes != ({1, 2} if value.last else {2, 3}):
            raise call.unread()
    return values.flattened(value)


def _reshape(call: Call) -> Value:
    value = call.value
    target = call.given[1] if len(call.given) > 1 else None
    if isinstance(target, Value | Unread) and not (
        isinstance(target, Sides) and all(value.comes_from(root) for root in target.of)
    ):
        raise Unread(f"Reshape ({call.node.output[0][:80]}) to a shape that is computed")
    sides = tuple(int(side) for side in target.flatten()[1:]) if isinstance(target, np.ndarray) else None
    shape = (*value.shape[1:], value.shape[0]) if value.last and len(value.shape) == 3 else value.shape
    if sides == shape:
        return value
    if sides is not None and len(sides) != 1:
        raise call.unread()
    return values.flattened(value)


def _transpose(call: Call) -> Value:
    order = tuple(call.options.get("perm", ()))
    return call.value if order == tuple(range(len(call.value.shape) + 1)) else values.permuted(call.value, order)


def _conv(call: Call) -> Value:
    weight, stride = call.weight(1), call.pair("strides", 1)
    if weight.dim() != 4:
        raise call.unread()
    values.undilated(call.pair("dilations", 1))
    padding = call.padding((weight.shape[2], weight.shape[3]), stride)
    return values.conv(call.value, weight, call.tensor(2), stride, padding, call.options.get("group", 1))


def _dense(call: Call) -> Value:
    weight, options = call.weight(1), call.options
    plain = options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0 and not options.get("transA")
    if not plain or weight.dim() != 2:
        raise call.unread()
    bias = call.tensor(2)
    weight = weight if options.get("transB") else weight.t()
    if bias is not None and bias.numel() not in (1, len(weight)):
        raise call.unread()
    return values.dense(call.value, weight, None if bias is None else bias.flatten().expand(len(weight)))


def _arithmetic(call: Call) -> Value:
    computed = [one for one in call.given if isinstance(one, Value)]
    kind = call.node.op_type
    if kind in ("Add", "Sum") and len(computed) == len(call.given):
        return values.added(computed) if len(computed) > 1 else computed[0]
    if len(call.given) != 2 or len(computed) != 1 or (kind == "Div" and computed[0] is not call.given[0]):
        raise call.unread()
    constant = values.per_channel(computed[0], call.weight(0 if computed[0] is call.given[1] else 1))
    if kind in ("Add", "Sum"):
        return values.affine(computed[0], None, constant)
    return values.affine(computed[0], 1 / constant.double() if kind == "Div" else constant, None)


def _batch_norm(call: Call) -> Value:
    if call.options.get("training_mode") or call.value.last:
        raise call.unread()
    scale, bias, mean, variance = (call.weight(place) for place in (1, 2, 3, 4))
    epsilon = float(str(np.float32(call.options.get("epsilon", 1e-5))))
    return values.normalised(call.value, mean, variance, scale, bias, epsilon)


def _pool(call: Call) -> Value:
    op = "mean_pool" if call.node.op_type == "AveragePool" else "max_pool"
    kernel, stride = call.pair("kernel_shape", 0), call.pair("strides", 1)
    if call.pair("dilations", 1) != (1, 1) or len(call.node.output) != 1:
        raise call.unread()
    ceil = bool(call.options.get("ceil_mode", 0))
    return values.pooled(op, call.value, kernel, stride, call.padding(kernel, stride), ceil)


def _mean(call: Call) -> Value:
    value = call.value
    if call.node.op_type == "GlobalAveragePool":
        if value.last:
            raise call.unread()
        return values.averaged(value)
    given = call.array(1)
    axes = {int(axis) % 4 for axis in (call.options.get("axes", ()) if given is None else given.flatten())}
    if len(value.shape) != 3 or axes != ({1, 2} if value.last else {2, 3}):
        raise call.unread()
    mean = values.averaged(value)
    return mean if call.options.get("keepdims", 1) else values.flattened(mean)


def _softmax(call: Call) -> Value:
    if len(call.value.shape) != 1 or call.options.get("axis", -1) not in (1, -1):
        raise call.unread()
    return values.probabilities(call.value)


READERS: dict[str, Callable[[Call], Value]] = {
    **dict.fromkeys(("Cast", "Identity", "Dropout"), _unchanged),
    **{op: _activation(op.lower()) for op in ("Relu", "Tanh", "Sigmoid")},
    "LeakyRelu": _activation("leaky_relu", slope=("alpha", 0.01)),
    "Elu": _activation("elu", alpha=("alpha", 1.0)),
    "Clip": _clip,
    **dict.fromkeys(("Flatten", "Squeeze"), _flatten),
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Conv": _conv,
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    **dict.fromkeys(("Mul", "Div", "Add", "Sum"), _arithmetic),
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean"), _mean),
    **dict.fromkeys(("Softmax", "LogSoftmax"), _softmax),
}
