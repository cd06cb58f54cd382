"""Which channels of a network are the same ones, and which values consist of them.

A convolution or a dense layer writes channels; activations and pooling pass them on, flattening spreads each over its
positions, and a sum makes those of all it adds one. A depthwise convolution, with one or more filters for each channel,
hands on the channels that it reads; what other grouped convolutions read or write stays as it is, since their groups
have to stay of one size. (Torch-Pruning finds the same by tracing: Fang et al. 2023,
"DepGraph: Towards Any Structural Pruning".)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

from lrp_compress.networks.ops import ACTIVATIONS, WEIGHTED, Shape


@dataclass(frozen=True)
class Channels:
    """Channels that can only be removed together, one number at a time.

    Attributes
    ----------
    name : str
        That of the first layer that writes them.
    width : int
        How many there are.
    writers : tuple of str
        The layers that write them: one, or all whose values are added, and depthwise convolutions that read them.
    shown : tuple of str
        For each writer the layer whose value is looked at to tell what a channel does: the activation that follows it,
        where nothing else reads the writer.
    """

    name: str
    width: int
    writers: tuple[str, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """What a value consists of.

    Attributes
    ----------
    channels : str or None
        Name of the channels; None for the observations, the outputs, and others that cannot be removed.
    positions : int
        Numbers of each channel that lie side by side: in a flattened map its positions, in a map the filters that a
        depthwise convolution has for it; 1 in all other values.
    """

    channels: str | None
    positions: int = 1

    def spread(self, kept: Sequence[int]) -> list[int]:
        """List the numbers that belong to some of the channels."""
        return [channel * self.positions + place for channel in kept for place in range(self.positions)]


class _Layer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def is_depthwise(layer: _Layer, given: Shape) -> bool:
    """Tell whether a layer is a convolution with a group for each channel that it reads, of which one can be left."""
    return bool(layer.options.get("groups", 0) == given[0])


def group_channels(
    layers: Sequence[_Layer], shapes: Mapping[str, Shape]
) -> tuple[dict[str, Channels], dict[str, Value]]:
    """Find the channels of a network's hidden layers.

    Parameters
    ----------
    layers : sequence of Layer
        In the order of computation, the head the last.
    shapes : mapping of str to tuple of int
        Of each layer's value and of the observations.

    Returns
    -------
    channels : dict of str to Channels
        By their name, in the order of computation.
    values : dict of str to Value
        By the layer that computes it.

    Raises
    ------
    ValueError
        If flattened maps are added to what is none.
    """
    head = layers[-1].name
    inputs = next(name for name in shapes if name not in {layer.name for layer in layers})
    root = {inputs: inputs}  # by value the first of those that consist of the same channels
    positions = {inputs: 1}
    fixed = {inputs, head}
    for layer in layers:
        given = shapes[layer.inputs[0]]
        if layer.op == "conv" and is_depthwise(layer, given):
            (read,) = layer.inputs
            root[layer.name] = root[read]
            positions[layer.name] = positions[read] * shapes[layer.name][0] // given[0]
            continue
        if layer.options.get("groups", 1) > 1:
            fixed |= {layer.name, *layer.inputs}
        if layer.op in WEIGHTED:
            root[layer.name], positions[layer.name] = layer.name, 1
            continue
        first, *others = layer.inputs
        spread = positions[first] * (prod(given[1:]) if layer.op == "flatten" else 1)
        if any(positions[other] != spread for other in others):
            if len(given) == 1:
                raise ValueError(f"{layer.name} adds flattened maps to values that are none")
            fixed.add(layer.name)  # filters of one channel are added to those of others
        root[layer.name], positions[layer.name] = root[first], spread
        for other in others:
            merged, into = root[other], root[first]
            root = {name: into if owner == merged else owner for name, owner in root.items()}
    writers: dict[str, list[str]] = {}
    fixed = {root[name] for name in fixed}
    for layer in layers:
        if layer.op in WEIGHTED and root[layer.name] not in fixed:
            writers.setdefault(root[layer.name], []).append(layer.name)
    channels = {
        names[0]: Channels(names[0], shapes[names[0]][0], tuple(names), tuple(_shown(layers, name) for name in names))
        for names in writers.values()
    }
    name_of = {owner: names[0] for owner, names in writers.items()}
    return channels, {name: Value(name_of.get(owner), positions[name]) for name, owner in root.items()}


def _shown(layers: Sequence[_Layer], writer: str) -> str:
    """Follow a writer to the activation that alone reads it."""
    name = writer
    while True:
        readers = [layer for layer in layers if name in layer.inputs]
        if len(readers) != 1 or readers[0].op not in (*ACTIVATIONS, "round"):
            return name
        name = readers[0].name
