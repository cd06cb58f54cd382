"""The calls of ATen that are layers, and how each is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrp_compress.networks import values
from lrp_compress.networks.programs import Node
from lrp_compress.networks.values import Unread, Value

Read = Value | Tensor | Unread  # what is known of a value in a program


@dataclass
class Call:
    """A call and what is known of the values that it is given."""

    node: Node
    reads: Mapping[str, Read]
    sizes: list[int | str]  # of what it gives, with the batch
    batch: int | str

    def get(self, name: str, default: Any = None) -> Any:
        """Give an argument as it is written."""
        return self.node.arguments.get(name, default)

    def read(self, name: str) -> Read | None:
        """Give what an argument is: a constant as a tensor."""
        argument = self.get(name)
        if isinstance(argument, int | float) and not isinstance(argument, bool):
            return torch.tensor(float(argument))
        return None if argument is None else self.reads.get(argument, Unread(f"{argument} is not known"))

    def value(self, name: str) -> Value:
        """Give an argument that is computed from the observations."""
        found = self.read(name)
        if isinstance(found, Value):
            return found
        raise self.unread()

    def constant(self, name: str) -> Tensor | None:
        """Give an argument that is a tensor of the program, or None."""
        found = self.read(name)
        if isinstance(found, Tensor | None):
            return found
        raise Unread(f"{self.node.op} with weights that are computed")

    def weight(self, name: str) -> Tensor:
        """Give an argument that is a tensor of the program."""
        found = self.constant(name)
        if found is None:
            raise self.unread()
        return found

    def pair(self, name: str, default: Any) -> tuple[int, int]:
        """Give an argument for rows and columns."""
        given = self.get(name, default)
        both = given if isinstance(given, list) else [given]
        if len(both) not in (1, 2) or not all(type(one) is int for one in both):
            raise self.unread()
        return both[0], both[-1]

    def unread(self) -> Unread:
        """Say that the call has arguments that are not read."""
        return Unread(f"{self.node.op.removesuffix('.default')} with other arguments")


def _unchanged(call: Call) -> Read:
    """Read what changes no number in float32."""
    value = call.read("self" if "self" in call.node.arguments else "input")
    if call.get("dtype", torch.float32) not in (torch.float32, None) or call.get("train", call.get("training")):
        raise call.unread()
    return call.unread() if value is None else value


def _arithmetic(call: Call) -> Value:
    kind = call.node.op.partition(".")[0].removesuffix("_")
    first, other = call.read("self"), call.read("other")
    if call.get("alpha", 1) != 1:
        raise call.unread()
    if kind == "add" and isinstance(first, Value) and isinstance(other, Value):
        return values.added([first, other])
    if kind != "div" and isinstance(first, Tensor):
        first, other = other, first
    if not isinstance(first, Value) or not isinstance(other, Tensor):
        raise call.unread()
    constant = values.per_channel(first, other)
    if kind == "add":
        return values.affine(first, None, constant)
    return values.affine(first, 1 / constant.double() if kind == "div" else constant, None)


def _conv(call: Call) -> Value:
    value, weight, bias = call.value("input"), call.weight("weight"), call.constant("bias")
    if weight.dim() != 4:
        raise call.unread()
    stride = call.pair("stride", 1)
    values.undilated(call.pair("dilation", 1))
    if call.get("padding", 0) == "same":
        if not all(size % 2 for size in weight.shape[2:]):
            raise Unread(
                f"a convolution with padding='same' and a kernel of {tuple(weight.shape[2:])}, which is uneven"
            )
        padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    else:
        padding = (0, 0) if call.get("padding", 0) == "valid" else call.pair("padding", 0)
    return values.conv(value, weight, bias, stride, padding, call.get("groups", 1))


def _linear(call: Call) -> Value:
    return values.dense(call.value("input"), call.weight("weight"), call.constant("bias"))


def _matmul(call: Call) -> Value:
    weight = call.weight("other")
    if weight.dim() != 2:
        raise call.unread()
    return values.dense(call.value("self"), weight.t(), None)


def _batch_norm(call: Call) -> Value:
    mean, variance = call.weight("running_mean"), call.weight("running_var")
    if call.get("training"):
        raise call.unread()
    weight, bias = call.constant("weight"), call.constant("bias")
    return values.normalised(call.value("input"), mean, variance, weight, bias, float(call.get("eps")))


def _plain(op: str) -> Callable[[Call], Value]:
    return lambda call: values.activated(op, call.value("self"))


def _leaky_relu(call: Call) -> Value:
    return values.activated("leaky_relu", call.value("self"), slope=call.get("negative_slope", 0.01))


def _elu(call: Call) -> Value:
    if call.get("scale", 1) != 1 or call.get("input_scale", 1) != 1:
        raise call.unread()
    return values.activated("elu", call.value("self"), alpha=call.get("alpha", 1.0))


def _clamp(call: Call) -> Value:
    if call.get("min") != 0 or call.get("max") is not None:
        raise call.unread()
    return values.activated("relu", call.value("self"))


def _pool(call: Call) -> Value:
    mean = call.node.op.startswith("avg")
    if call.pair("dilation", 1) != (1, 1) or call.get("divisor_override") is not None:
        raise call.unread()
    kernel = call.pair("kernel_size", 0)
    stride = call.pair("stride", list(kernel)) if call.get("stride") else kernel
    padding, ceil = call.pair("padding", 0), bool(call.get("ceil_mode", False))
    return values.pooled("mean_pool" if mean else "max_pool", call.value("self"), kernel, stride, padding, ceil)


def _adaptive(call: Call) -> Value:
    return values.averaged(call.value("self"), call.pair("output_size", 0))


def _mean(call: Call) -> Value:
    value, axes = call.value("self"), call.get("dim") or []
    over = {axis % 4 for axis in axes if isinstance(axis, int)}
    if (
        len(value.shape) != 3
        or over != ({1, 2} if value.last else {2, 3})
        or call.get("dtype") not in (None, torch.float32)
    ):
        raise call.unread()
    mean = values.averaged(value)
    return mean if call.get("keepdim", False) else values.flattened(mean)


def _reshape(call: Call) -> Read:
    value = call.value("self")
    if call.sizes[:1] != [call.batch]:
        raise call.unread()
    shape = value.shape if not value.last or len(value.shape) == 1 else (*value.shape[1:], value.shape[0])
    if tuple(call.sizes[1:]) == shape:
        return value
    if call.sizes[1:] != [math.prod(shape)]:
        raise call.unread()
    return values.flattened(value)


def _permute(call: Call) -> Value:
    return values.permuted(call.value("self"), [axis % 4 for axis in call.get("dims")])


def _softmax(call: Call) -> Value:
    if call.get("dim") not in (1, -1) or call.get("dtype", torch.float32) not in (torch.float32, None):
        raise call.unread()
    return values.probabilities(call.value("self"))


READERS: dict[str, Callable[[Call], Read]] = {
    **dict.fromkeys(
        (
            *("to.dtype", "to.device", "to.dtype_layout", "_to_copy.default", "contiguous.default", "clone.default"),
            *(
                "detach.default",
                "alias.default",
                "lift_fresh_copy.default",
                "dropout.default",
                "feature_dropout.default",
            ),
        ),
        _unchanged,
    ),
    **dict.fromkeys(("add.Tensor", "mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar", "add.Scalar"), _arithmetic),
    **dict.fromkeys(("conv2d.default", "conv2d.padding"), _conv),
    "linear.default": _linear,
    "matmul.default": _matmul,
    "batch_norm.default": _batch_norm,
    **{f"{op}.default": _plain(op) for op in ("relu", "tanh", "sigmoid")},
    "leaky_relu.default": _leaky_relu,
    "elu.default": _elu,
    **dict.fromkeys(("clamp.default", "clamp_min.default"), _clamp),
    **dict.fromkeys(("max_pool2d.default", "avg_pool2d.default"), _pool),
    "adaptive_avg_pool2d.default": _adaptive,
    "mean.dim": _mean,
    **dict.fromkeys(
        (
            *("flatten.using_ints", "view.default", "reshape.default", "_unsafe_view.default"),
            *("squeeze.dim", "squeeze.dims", "squeeze.default"),
        ),
        _reshape,
    ),
    "permute.default": _permute,
    **dict.fromkeys(("softmax.int", "log_softmax.int"), _softmax),
}
VIEWS = (_unchanged, _reshape, _permute)  # what they give may share the memory of what they are given
