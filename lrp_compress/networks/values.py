"""What a network computes, as it is found at a door: values, each computed from others, down to the observations.

The doors (modules, ONNX files, other libraries' tensors) say step by step what is computed; what is no layer of its own
is folded into one here: scales of the observations, normalisations, biases that are added later, layouts with the
channels last. Values do not change, so a layer into which something is folded is another one, and what else reads the
first is not touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrp_compress.networks.ops import OPS, WEIGHTED, Shape
from lrp_compress.networks.spaces import Observations

GIVEN = "observations"
PROBABILITIES = "softmax"  # of a policy: read at the end only, where they say what the logits say
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)  # permutations of (N, C, H, W) and back
EXACT = 1e-6  # how near to 1 a factor is one that was rounded

Pair = tuple[int, int]


class Unread(Exception):
    """What is computed is no layer that is read; the message says what it is."""


@dataclass(frozen=True, eq=False)
class Value:
    """One of the values that a network computes.

    Attributes
    ----------
    op : str
        What it is computed by: a name in `lrp_compress.networks.ops.OPS`, ``"observations"`` or ``"softmax"``.
    inputs : tuple of Value
        What it is computed from.
    shape : tuple of int
        Without the batch, of a map (channels, height, width), whatever its layout.
    options : dict
        Of the operation.
    weights : tuple of Tensor
        Weight and bias.
    last : bool
        Whether the door has it with the channels of a place side by side.
    scale : float
        What the observations were multiplied by, times the unit in which they are declared.
    """

    op: str
    inputs: tuple[Value, ...]
    shape: Shape
    options: dict[str, Any] = field(default_factory=dict)
    weights: tuple[Tensor, ...] = ()
    last: bool = False
    scale: float = 1.0
    depth: int = field(init=False)
    digest: bytes = field(init=False)  # of all that it is computed by

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth", 1 + max((value.depth for value in self.inputs), default=0))
        digest = hashlib.sha256(repr((self.op, self.shape, sorted(self.options.items()))).encode())
        for tensor in self.weights:
            digest.update(tensor.contiguous().numpy().data)
        for value in self.inputs:
            digest.update(value.digest)
        object.__setattr__(self, "digest", digest.digest())

    def comes_from(self, other: Value) -> bool:
        """Tell whether another value is on the way to it, or is it, before something was folded into that."""
        seen: set[Value] = set()
        left = [self]
        while left:
            value = left.pop()
            if (value.op, value.shape, value.inputs) == (other.op, other.shape, other.inputs):
                return True
            left += [one for one in value.inputs if one not in seen]
            seen.update(value.inputs)
        return False


def given(observations: Observations, last: bool = False) -> Value:
    """Begin with the observations."""
    return Value(GIVEN, (), observations.shape, last=last, scale=observations.unit)


def undilated(dilation: Pair) -> None:
    """Refuse a convolution with dilation."""
    if dilation != (1, 1):
        raise Unread(f"a convolution with dilation={dilation}")


def conv(
    value: Value,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
) -> Value:
    """Compute a convolution of a map; weight and bias are laid out as in `torch.nn.Conv2d`."""
    if value.last:
        raise Unread("a convolution of a map whose channels come last")
    if weight.dim() != 4 or (weight.shape[1] * groups,) != value.shape[:1]:
        parted = f" in {groups} groups" if groups != 1 else ""
        raise Unread(f"a convolution with a weight of {tuple(weight.shape)} on values of {value.shape}{parted}")
    kernel = (weight.shape[2], weight.shape[3])
    options = {"width": len(weight), "kernel": kernel, "stride": tuple(stride), "padding": tuple(padding)}
    if groups != 1:
        options["groups"] = groups
    return _weighted("conv", value, weight, bias, options)


def dense(value: Value, weight: Tensor, bias: Tensor | None) -> Value:
    """Compute a dense layer; weight and bias are laid out as in `torch.nn.Linear`."""
    if len(value.shape) != 1 or weight.dim() != 2 or weight.shape[1] != value.shape[0]:
        raise Unread(f"a dense layer with a weight of {tuple(weight.shape)} on values of {value.shape}")
    if value.last:
        weight = weight.view(len(weight), -1, _map(value)[0]).transpose(1, 2).flatten(1)
    return _weighted("dense", value, weight, bias, {"width": len(weight)})


def affine(value: Value, factor: Tensor | None, shift: Tensor | None) -> Value:
    """Multiply and add a number for each channel: part of the layer before.

    Parameters
    ----------
    value : Value
        Of a convolution or a dense layer, or the observations, which can be multiplied alone.
    factor, shift : Tensor of shape (channels,) or (1,), or None
    """
    if value.op == GIVEN and factor is not None and factor.numel() == 1 and shift is None:
        return replace(value, scale=value.scale * float(factor))
    if value.op not in WEIGHTED:
        raise Unread(f"arithmetic with constants after {value.op}")
    # in double precision, so that only the result is rounded
    weight, bias = (tensor.double() for tensor in value.weights)
    if factor is not None:
        weight, bias = weight * factor.double().view(-1, *[1] * (weight.dim() - 1)), bias * factor.double()
    if shift is not None:
        bias = bias + shift.double()
    return replace(value, weights=(weight.float(), bias.float()))


def normalised(
    value: Value, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float
) -> Value:
    """Compute a batch normalisation: part of the layer before."""
    if value.op not in WEIGHTED or len(mean) != value.shape[0]:
        raise Unread("batch normalisation that follows no convolution or dense layer")
    # in this order and in single precision, as PyTorch's export to ONNX folds it
    factor = (torch.ones_like(mean) if weight is None else weight) / (variance + epsilon).sqrt()
    own, shift = value.weights
    folded = own * factor.view(-1, *[1] * (own.dim() - 1))
    shift = (shift - mean) * factor + (0 if bias is None else bias)
    return replace(value, weights=(folded.detach(), shift.detach()))


def per_channel(value: Value, constant: Tensor) -> Tensor:
    """Bring a constant that is added to, or multiplied with, values into the shape (channels,) or (1,)."""
    channels = value.shape[0]
    sides = [*[1] * (1 + len(value.shape) - constant.dim()), *constant.shape]
    place = len(sides) - 1 if value.last or len(value.shape) == 1 else 1
    if constant.numel() == 1:
        return constant.reshape(1)
    if len(sides) != 1 + len(value.shape) or constant.numel() != channels or sides[place] != channels:
        raise Unread(f"arithmetic with a constant of the shape {tuple(constant.shape)}, which is none per channel")
    return constant.reshape(channels)


def activated(op: str, value: Value, **options: float) -> Value:
    """Compute relu, leaky_relu, elu, tanh or sigmoid."""
    # a factor that was kept in single precision is the same as the one it was written as
    return _computed(op, (value,), {name: float(str(np.float32(factor))) for name, factor in options.items()})


def added(values: Sequence[Value]) -> Value:
    """Compute the sum of values of one shape."""
    if len({(value.shape, value.last) for value in values}) != 1 or len(values) < 2:
        raise Unread(f"a sum of values of {' and '.join(str(value.shape) for value in values)}")
    # in an order that does not depend on how the sum was written
    return _computed("add", tuple(sorted(values, key=lambda value: (value.depth, value.digest))), {})


def pooled(op: str, value: Value, kernel: Pair, stride: Pair, padding: Pair = (0, 0), ceil: bool = False) -> Value:
    """Compute max_pool or mean_pool."""
    if value.last or len(value.shape) != 3:
        raise Unread(f"{op} of values of {value.shape}" + " with the channels last" * value.last)
    sides = list(zip(value.shape[1:], kernel, stride, padding, strict=True))
    if ceil and any((side + 2 * pad - size) % max(step, 1) for side, size, step, pad in sides):
        raise Unread(f"{op} with ceil_mode")
    if op == "mean_pool" and any(padding):
        raise Unread(f"{op} with padding={tuple(padding)}")
    # a window that has one place only does not move
    stride = tuple(size if size == side + 2 * pad else step for side, size, step, pad in sides)  # type: ignore[assignment]
    options = {"kernel": tuple(kernel), "stride": stride}
    return _computed(op, (value,), options if op == "mean_pool" else options | {"padding": tuple(padding)})


def averaged(value: Value, sides: Pair = (1, 1)) -> Value:
    """Compute the mean of a map's positions, or of `sides` equal parts of it."""
    if len(value.shape) != 3 or any(old % new for old, new in zip(value.shape[1:], sides, strict=True)):
        raise Unread(f"the mean of values of {value.shape} down to {sides}")
    height, width = (old // new for old, new in zip(value.shape[1:], sides, strict=True))
    pooling = pooled("mean_pool", replace(value, last=False), (height, width), (height, width))
    return replace(pooling, last=value.last)


def flattened(value: Value) -> Value:
    """Compute a vector of what is in a map, in the order that it has at the door; a vector stays one."""
    if len(value.shape) == 1:
        return value
    flat = _computed("flatten", (value,), {})
    return replace(flat, last=value.last and math.prod(value.shape[1:]) > 1)


def permuted(value: Value, order: Sequence[int]) -> Value:
    """Put the channels last or first."""
    wanted = TO_FIRST if value.last else TO_LAST
    if len(value.shape) != 3 or tuple(order) != wanted:
        raise Unread(f"a permutation {tuple(order)} of values of {value.shape}")
    return replace(value, last=not value.last)


def probabilities(value: Value) -> Value:
    """Compute the softmax of a policy's logits, or its logarithm."""
    return Value(PROBABILITIES, (value,), value.shape)


def _weighted(op: str, value: Value, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Value:
    weight, bias = weight.detach().float(), torch.zeros(len(weight)) if bias is None else bias.detach().float()
    if abs(value.scale - 1) > EXACT:  # the observations are not given in the unit that they are declared in
        weight = (weight.double() * value.scale).float()
    return _computed(op, (value,), options, (weight, bias.flatten()))


def _computed(op: str, inputs: tuple[Value, ...], options: dict[str, Any], weights: tuple[Tensor, ...] = ()) -> Value:
    first = inputs[0]
    if first.op == PROBABILITIES:
        raise Unread("softmax that is not at the end")
    try:
        shape = OPS[op].shape(first.shape, options)
    except ValueError as error:
        raise Unread(f"{op}, which {error}") from error
    return Value(op, inputs, shape, options, weights, last=first.last and op not in WEIGHTED)


def _map(value: Value) -> Shape:
    """Find the shape of the map that was flattened."""
    while value.op != "flatten":
        (value, *_) = value.inputs
    return value.inputs[0].shape
