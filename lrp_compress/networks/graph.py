"""A network as a list of layers, as it is read from a module or a file that says what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrp_compress.networks.nature import SIDE, STACK, PolicyNetwork
from lrp_compress.support.errors import UserError


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


def as_policy_network(network: LayerList, head: str, source: str) -> PolicyNetwork:
    """Build the network that a list of layers describes, if it is convolutions and then dense layers with ReLU.

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
    ops = [layer.op for layer in network.layers]
    convs, dense = ([layer for layer in network.layers if layer.op == op] for op in ("conv", "dense"))
    expected = ["conv", "relu"] * len(convs) + ["flatten"] + ["dense", "relu"] * (len(dense) - 1) + ["dense"]
    if ops != expected or not convs or len(dense) < 2:
        raise _other(source, f"its layers are {' '.join(ops) or 'none'}")
    state: dict[str, Tensor] = {}
    convolutions: dict[str, tuple[int, int]] = {}
    for number, layer in enumerate(convs, start=1):
        name = f"conv{number}"
        convolutions[name] = _geometry(layer, name, source)
        state |= _weights(network, layer, name)
    for number, layer in enumerate(dense, start=1):
        state |= _weights(network, layer, "head" if layer is dense[-1] else f"fc{number}")
    if network.layers[len(convs) * 2].options["channels_last"]:
        width, channels = len(state["fc1.weight"]), len(state[f"conv{len(convs)}.weight"])
        places = state["fc1.weight"].view(width, -1, channels).transpose(1, 2)
        state["fc1.weight"] = places.reshape(width, -1)
    state["conv1.weight"] = state["conv1.weight"] * (network.scale * 255)
    return _built(state, head, convolutions, source)


def _geometry(layer: Layer, name: str, source: str) -> tuple[int, int]:
    """Give kernel and stride of a plain convolution."""
    plain = {"padding": [0, 0], "dilation": [1, 1], "groups": 1}
    if odd := next((key for key, value in plain.items() if layer.options[key] != value), None):
        raise _other(source, f"{name} has the {odd} {layer.options[odd]}")
    for key in ("kernel", "stride"):
        if len(set(layer.options[key])) != 1:
            raise _other(source, f"{name} has the {key} {layer.options[key]}, which is not square")
    return layer.options["kernel"][0], layer.options["stride"][0]


def _built(
    state: dict[str, Tensor], head: str, convolutions: Mapping[str, tuple[int, int]], source: str
) -> PolicyNetwork:
    widths = {key.removesuffix(".weight"): len(value) for key, value in state.items() if key.endswith(".weight")}
    actions = widths.pop("head")
    try:
        with torch.device("meta"):
            declared = PolicyNetwork(widths, head, actions, convolutions).state_dict()
    except ValueError as error:
        raise _other(source, str(error)) from error
    for key, value in declared.items():
        if value.shape != state[key].shape:
            raise _other(source, f"{key} has the shape {tuple(state[key].shape)}, not {tuple(value.shape)}")
        if not state[key].isfinite().all():
            raise UserError(f"{source}: {key} holds numbers that are not finite")
    network = PolicyNetwork(widths, head, actions, convolutions)
    network.load_state_dict(state)
    return network.eval()


def _weights(network: LayerList, layer: Layer, name: str) -> dict[str, Tensor]:
    return {f"{name}.{kind}": network.state[f"{layer.name}.{kind}"] for kind in ("weight", "bias")}


def _other(source: str, what: str) -> UserError:
    return UserError(
        f"{source} is no chain of convolutions without padding and dense layers with ReLU, on {STACK} frames of "
        f"{SIDE}x{SIDE} pixels: {what}; other networks are not read yet"
    )
