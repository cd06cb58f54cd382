"""What a layer may compute: the operations, the shapes they give, and the modules that compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrp_compress.networks.rounding import Rounding

Shape = tuple[int, ...]  # of one value: (channels, height, width) or (units,)
Options = Mapping[str, Any]
WEIGHTED = ("conv", "dense")
POOLS = ("max_pool", "mean_pool")


@dataclass(frozen=True)
class Op:
    """An operation.

    Attributes
    ----------
    options : tuple of str
        The names of its options: ``width`` is a number of channels, ``slope`` and ``alpha`` are factors, and the others
        pairs of int, of rows and of columns.
    optional : tuple of str
        The names of those that can be left out: ``groups``, into which the channels of a convolution are parted.
    shape : callable
        From the shape of what goes in and the options to the shape of what comes out; ValueError if it does not fit.
    module : callable
        From the shape of what goes in and the options to a module with weights of its own.
    """

    options: tuple[str, ...]
    shape: Callable[[Shape, Options], Shape]
    module: Callable[[Shape, Options], nn.Module]
    optional: tuple[str, ...] = ()


class Add(nn.Module):
    """Adds values of one shape."""

    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        """Add any number of values."""
        for other in others:
            first = first + other
        return first


def _same(shape: Shape, options: Options) -> Shape:
    return shape


def _map(shape: Shape, options: Options, width: int) -> Shape:
    """Shape of what a window that moves over a map gives."""
    if len(shape) != 3:
        raise ValueError(f"needs a map, not {shape[0]} values")
    sides = []
    for side, kernel, stride, padding in zip(
        shape[1:], options["kernel"], options["stride"], options["padding"], strict=True
    ):
        if not (1 <= kernel <= side + 2 * padding and stride >= 1 and 0 <= padding < kernel):
            raise ValueError(f"has the kernel {kernel}, stride {stride} and padding {padding} on a side of {side}")
        sides.append((side + 2 * padding - kernel) // stride + 1)
    return (width, *sides)


def _max_pool(shape: Shape, options: Options) -> Shape:
    # what is wider can lie in the padding alone
    if any(2 * padding > kernel for padding, kernel in zip(options["padding"], options["kernel"], strict=True)):
        raise ValueError(f"has a padding of more than half its kernel: {options['padding']}")
    return _map(shape, options, shape[0])


def _mean_pool(shape: Shape, options: Options) -> Shape:
    return _map(shape, {**options, "padding": (0, 0)}, shape[0])


def _width(options: Options) -> int:
    width: int = options["width"]
    if width < 1:
        raise ValueError(f"has a width of {width}")
    return width


def _conv(shape: Shape, options: Options) -> Shape:
    made = _map(shape, options, _width(options))
    groups = options.get("groups", 1)
    if groups < 1 or shape[0] % groups or made[0] % groups:
        raise ValueError(f"has {groups} groups for {shape[0]} channels and a width of {made[0]}")
    return made


def _dense(shape: Shape, options: Options) -> Shape:
    if len(shape) != 1:
        raise ValueError(f"needs a vector, not a map of {shape}; flatten it before")
    return (_width(options),)


def _flat(shape: Shape, options: Options) -> Shape:
    if len(shape) != 3:
        raise ValueError("flattens what is flat")
    return (shape[0] * shape[1] * shape[2],)


def _window(options: Options) -> tuple[Any, Any, Any]:
    return options["kernel"], options["stride"], options["padding"]


WINDOW = ("kernel", "stride", "padding")
OPS: Mapping[str, Op] = {
    "conv": Op(
        ("width", *WINDOW),
        _conv,
        lambda shape, options: nn.Conv2d(
            shape[0], options["width"], *_window(options), groups=options.get("groups", 1)
        ),
        ("groups",),
    ),
    "dense": Op(("width",), _dense, lambda shape, options: nn.Linear(shape[0], options["width"])),
    "relu": Op((), _same, lambda shape, options: nn.ReLU()),
    "leaky_relu": Op(("slope",), _same, lambda shape, options: nn.LeakyReLU(options["slope"])),
    "elu": Op(("alpha",), _same, lambda shape, options: nn.ELU(options["alpha"])),
    "tanh": Op((), _same, lambda shape, options: nn.Tanh()),
    "sigmoid": Op((), _same, lambda shape, options: nn.Sigmoid()),
    "add": Op((), _same, lambda shape, options: Add()),
    "max_pool": Op(WINDOW, _max_pool, lambda shape, options: nn.MaxPool2d(*_window(options))),
    "mean_pool": Op(
        ("kernel", "stride"),
        _mean_pool,
        lambda shape, options: nn.AvgPool2d(options["kernel"], options["stride"]),
    ),
    "flatten": Op((), _flat, lambda shape, options: nn.Flatten(1)),
    "round": Op((), _same, lambda shape, options: Rounding()),  # only while a network learns to be quantised
}
ACTIVATIONS = ("relu", "leaky_relu", "elu", "tanh", "sigmoid")


def checked_options(op: str, options: Options) -> dict[str, Any]:
    """Check an operation's options for their names and kinds, as they come from a file.

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If there is no such operation, or an option is missing, unknown or of another kind.
    """
    if op not in OPS:
        raise ValueError(f"computes {op!r}; known are {', '.join(OPS)}")
    if set(options) - set(OPS[op].optional) != set(OPS[op].options):
        raise ValueError(f"is a {op} with the options {sorted(options)}, not {sorted(OPS[op].options)}")
    for name, value in options.items():
        if name in ("width", "groups"):
            fits = type(value) is int
        elif name in WINDOW:
            fits = isinstance(value, list | tuple) and [type(part) for part in value] == [int, int]
        else:
            fits = type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max
        if not fits:
            raise ValueError(f"has the {name} {value!r}")
    return {name: tuple(value) if name in WINDOW else value for name, value in options.items()}
