"""A network as a list of layers, as it is read from a module or a file that says what is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrp_compress.networks.nature import CONV_GEOMETRY, STACK, PolicyNetwork
from lrp_compress.support.errors import UserError

SIDE = 84  # pixels of an observation


@dataclass(frozen=True)
class Layer:
    """One step of a network's computation.

    Attributes
    ----------
    name : str
        By which its weights are found in the state, ``NAME.weight`` and ``NAME.bias``.
    op : {"conv", "dense", "relu", "flatten"}
        What is computed.
    options : dict
        Of a convolution ``kernel``, ``stride``, ``padding``, ``dilation`` (pairs of int) and ``groups``; of a
        flattening ``channels_last``, whether the channels of a place follow each other.
    """

    name: str
    op: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerList:
    """What a network computes, layer after layer.

    Attributes
    ----------
    layers : list of Layer
        In the order of computation, each of the one before it.
    state : mapping of str to Tensor
        Weights, float32, laid out as in `torch.nn.Conv2d` and `torch.nn.Linear`.
    scale : float
        What pixels in [0, 255] are multiplied by before the first layer.
    """

    layers: list[Layer]
    state: Mapping[str, Tensor]
    scale: float


def as_nature_cnn(network: LayerList, head: str, source: str) -> PolicyNetwork:
    """Build the network that a list of layers describes, if it is a Nature CNN of any widths.

    Parameters
    ----------
    network : LayerList
    head : {"q", "policy"}
        What its outputs are; a list of layers does not say.
    source : str
        What errors call the agent.

    Returns
    -------
    PolicyNetwork
        In evaluation mode.

    Raises
    ------
    UserError
        If the layers are others, naming the first.
    """
    found = iter(network.layers)
    state: dict[str, Tensor] = {}
    for name, (kernel, stride) in CONV_GEOMETRY.items():
        layer = _expect(found, "conv", name, source)
        wanted = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [0, 0], "dilation": [1, 1], "groups": 1}
        if odd := next((key for key, value in wanted.items() if layer.options[key] != value), None):
            raise _other(source, f"{name} has the {odd} {layer.options[odd]}, not {wanted[odd]}")
        state |= _weights(network, layer, name)
        _expect(found, "relu", f"{name}'s ReLU", source)
    flatten = _expect(found, "flatten", "flatten", source)
    left = list(found)
    dense = [layer for layer in left if layer.op == "dense"]
    if [layer.op for layer in left] != ["dense", "relu"] * (len(dense) - 1) + ["dense"] or len(dense) < 2:
        raise _other(source, f"after its convolutions it has {', '.join(layer.op for layer in left) or 'nothing'}")
    for number, layer in enumerate(dense, start=1):
        state |= _weights(network, layer, "head" if layer is dense[-1] else f"fc{number}")
    if flatten.options["channels_last"]:
        width, channels = state["fc1.weight"].shape[0], state["conv3.weight"].shape[0]
        places = state["fc1.weight"].view(width, -1, channels).transpose(1, 2)
        state["fc1.weight"] = places.reshape(width, -1)
    state["conv1.weight"] = state["conv1.weight"] * (network.scale * 255)
    return _built(state, head, source)


def _built(state: dict[str, Tensor], head: str, source: str) -> PolicyNetwork:
    widths = {key.removesuffix(".weight"): len(value) for key, value in state.items() if key.endswith(".weight")}
    actions = widths.pop("head")
    with torch.device("meta"):
        declared = PolicyNetwork(widths, head, actions).state_dict()
    for key, value in declared.items():
        if value.shape != state[key].shape:
            raise _other(source, f"{key} has the shape {tuple(state[key].shape)}, not {tuple(value.shape)}")
        if not state[key].isfinite().all():
            raise UserError(f"{source}: {key} holds numbers that are not finite")
    network = PolicyNetwork(widths, head, actions)
    network.load_state_dict(state)
    return network.eval()


def _expect(found: Iterator[Layer], op: str, name: str, source: str) -> Layer:
    layer = next(found, None)
    if layer is None or layer.op != op:
        raise _other(source, f"where {name} should be it has {layer.op if layer else 'nothing more'}")
    return layer


def _weights(network: LayerList, layer: Layer, name: str) -> dict[str, Tensor]:
    return {f"{name}.{kind}": network.state[f"{layer.name}.{kind}"] for kind in ("weight", "bias")}


def _other(source: str, what: str) -> UserError:
    return UserError(
        f"{source} is no Nature CNN on {STACK} frames of {SIDE}x{SIDE} pixels: {what}; other networks are not read yet"
    )
