"""A network as a value: a list of layers, and the module that computes what they say."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lrp_compress.networks.channels import Value, group_channels, is_depthwise
from lrp_compress.networks.ops import OPS, WEIGHTED, Shape, checked_options
from lrp_compress.networks.spaces import Decision, Observations

INPUT = "observations"  # what layers call that which goes in
HEAD = "head"  # the last layer
NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_LAYERS = 1000


@dataclass(frozen=True)
class Layer:
    """One step of a network's computation.

    Attributes
    ----------
    name : str
        Of the layer and of the value that it computes; its weights are ``NAME.weight`` and ``NAME.bias``.
    op : str
        What is computed, a name in `lrp_compress.networks.ops.OPS`.
    inputs : tuple of str
        The layers whose values it is computed from; ``"observations"`` for what goes in.
    options : dict
        Of the operation.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


class Network(nn.Module):
    """A feed-forward network, made from its layers.

    Parameters
    ----------
    layers : sequence of Layer
        In an order in which they can be computed. The first is a convolution or a dense layer and alone in reading the
        observations; the last is a dense layer called ``head``.
    observations : Observations
    decision : Decision

    Attributes
    ----------
    layers : tuple of Layer
    observations : Observations
    decision : Decision
    shapes : dict of str to tuple of int
        Of what each layer computes, without the batch.
    channels : dict of str to Channels
        What can be removed, by the name of the first layer that writes it: the channels of hidden layers. Those of
        layers whose values are added are the same ones.

    Raises
    ------
    ValueError
        If a layer is none that is known, reads what is not there, does not fit what it reads, or the list is none of
        the kind above.
    """

    def __init__(self, layers: Sequence[Layer], observations: Observations, decision: Decision) -> None:
        super().__init__()
        self.layers = tuple(dataclasses.replace(one, options=_checked(one)) for one in layers)
        self.observations = observations
        self.decision = decision
        self._check_order()
        self.shapes = _shapes(self.layers, observations.shape)
        if self.shapes[HEAD] != (decision.size,):
            raise ValueError(f"the head gives {self.shapes[HEAD][0]} values for {decision.size} actions")
        shapes = {INPUT: observations.shape, **self.shapes}
        for layer in self.layers:
            self.add_module(layer.name, OPS[layer.op].module(shapes[layer.inputs[0]], layer.options))
        self.channels, self._values = group_channels(self.layers, shapes)

    def _check_order(self) -> None:
        if not 2 <= len(self.layers) <= MOST_LAYERS:
            raise ValueError(f"a network has 2 to {MOST_LAYERS} layers, got {len(self.layers)}")
        known = {INPUT}
        for layer in self.layers:
            if not NAME.fullmatch(layer.name) or layer.name in known or hasattr(self, layer.name):
                raise ValueError(f"no layer can be called {layer.name[:40]!r} here")
            if not layer.inputs or (len(layer.inputs) > 1) != (layer.op == "add") or not known.issuperset(layer.inputs):
                raise ValueError(f"{layer.name} cannot be computed from {', '.join(layer.inputs)[:80] or 'nothing'}")
            known.add(layer.name)
        first, *others = self.layers
        if first.op == "flatten":
            raise ValueError("pictures are flattened before the first layer, which is not read")
        if first.op not in WEIGHTED or any(INPUT in layer.inputs for layer in others):
            raise ValueError("the observations are not read by one convolution or dense layer alone")
        if self.layers[-1].op != "dense" or self.layers[-1].name != HEAD:
            raise ValueError(f"the last layer is no dense layer called {HEAD}")
        if unread := known - {INPUT, HEAD} - {name for layer in self.layers for name in layer.inputs}:
            raise ValueError(f"nothing reads {min(unread)}")

    @property
    def widths(self) -> dict[str, int]:
        """Number of channels (filters or units) in each of `channels`."""
        return {name: group.width for name, group in self.channels.items()}

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the layers with weights, in the order of computation."""
        return tuple(layer.name for layer in self.layers if layer.op in WEIGHTED)

    @property
    def dense_layers(self) -> tuple[str, ...]:
        """Names of those of `channels` that are the units of one dense layer."""
        return tuple(n for n, group in self.channels.items() if group.writers == (n,) and self.layer(n).op == "dense")

    @property
    def head_kind(self) -> str:
        """What the outputs are, ``"q"`` or ``"policy"``."""
        return self.decision.kind

    @property
    def actions(self) -> int:
        """Number of actions."""
        return self.decision.size

    @property
    def hidden_units(self) -> int:
        """Number of units that the head sees."""
        return self.shapes[self.layers[-1].inputs[0]][0]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def layer(self, name: str) -> Layer:
        """Find a layer by its name."""
        return next(layer for layer in self.layers if layer.name == name)

    def value(self, name: str) -> Value:
        """Say which channels a layer's value, or ``"observations"``, consists of."""
        return self._values[name]

    def is_depthwise(self, name: str) -> bool:
        """Tell whether a layer is a convolution that computes its channels from one of its input's each."""
        layer = self.layer(name)
        return layer.op == "conv" and is_depthwise(
            layer, {INPUT: self.observations.shape, **self.shapes}[layer.inputs[0]]
        )

    def readers(self, name: str) -> list[str]:
        """Name the layers that read a layer's value."""
        return [layer.name for layer in self.layers if name in layer.inputs]

    def resized(self, widths: Mapping[str, int]) -> Network:
        """Make a network of the same layers with other widths, and weights of its own."""
        layers = [dataclasses.replace(layer, options=self._resized(layer, widths)) for layer in self.layers]
        return Network(layers, self.observations, self.decision)

    def _resized(self, layer: Layer, widths: Mapping[str, int]) -> dict[str, Any]:
        value = self.value(layer.name)
        if layer.op not in WEIGHTED or value.channels is None:
            return layer.options
        changed = {"width": widths[value.channels] * value.positions}
        if self.is_depthwise(layer.name):
            changed["groups"] = widths[value.channels] * self.value(layer.inputs[0]).positions
        return {**layer.options, **changed}

    def scaled(self, observations: Tensor) -> Tensor:
        """Bring observations into the units that the first layer takes; floating pixels are taken to be in them."""
        if observations.is_floating_point():
            return observations if self.observations.dtype == "uint8" else observations / self.observations.unit
        return observations.float() / self.observations.unit

    def forward(self, observations: Tensor) -> Tensor:
        """Compute the outputs.

        Parameters
        ----------
        observations : Tensor
            Shape (N, *observations.shape); see `scaled`.

        Returns
        -------
        Tensor of float32, shape (N, actions)
            Q-values or action logits.
        """
        return self.decide(self.after_first(getattr(self, self.layers[0].name)(self.scaled(observations))))

    def after_first(self, values: Tensor) -> Tensor:
        """Compute what the head sees, shape (N, units), from what the first layer gives."""
        computed = {self.layers[0].name: values}
        for layer in self.layers[1:-1]:
            computed[layer.name] = getattr(self, layer.name)(*(computed[name] for name in layer.inputs))
        return computed[self.layers[-1].inputs[0]]

    def decide(self, hidden: Tensor) -> Tensor:
        """Compute the outputs, shape (N, actions), from what `after_first` gives."""
        outputs: Tensor = getattr(self, HEAD)(hidden)
        return outputs


def _checked(layer: Layer) -> dict[str, Any]:
    try:
        return checked_options(layer.op, layer.options)
    except ValueError as error:
        raise ValueError(f"{layer.name[:40]} {error}") from error


def _shapes(layers: Iterable[Layer], observation: Shape) -> dict[str, Shape]:
    shapes = {INPUT: observation}
    for layer in layers:
        first, *others = (shapes[name] for name in layer.inputs)
        if any(other != first for other in others):
            raise ValueError(f"{layer.name} adds values of the shapes {first} and {others}")
        try:
            shapes[layer.name] = OPS[layer.op].shape(first, layer.options)
        except ValueError as error:
            raise ValueError(f"{layer.name} {error}") from error
    del shapes[INPUT]
    return shapes


def twin(network: Network) -> Network:
    """Copy a network for another thread: its weights stay those of the original, gradients and hooks are its own."""
    copied = copy.deepcopy(network)
    for own, original in zip(copied.parameters(), network.parameters(), strict=True):
        own.data = original.data
    return copied
