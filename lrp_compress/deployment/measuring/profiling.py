"""A network's cost on paper: parameters, multiply-accumulates, bytes of weights and of activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from safetensors.torch import save
from torch import Tensor

from lrp_compress.networks.graph import INPUT, Network
from lrp_compress.networks.ops import ACTIVATIONS, Shape

FLOAT32_BYTES = 4
IN_PLACE = (*ACTIVATIONS, "add", "flatten", "round")


@dataclass(frozen=True)
class LayerProfile:
    """The cost of one layer.

    Attributes
    ----------
    name : str
        The layer's name in the network.
    inputs, outputs : int
        Channels or units that come in and go out.
    params : int
        Weights and biases.
    macs : int
        Multiply-accumulates of one decision, biases not counted.
    activation_bytes : int
        Bytes of its input and its output, float32.
    """

    name: str
    inputs: int
    outputs: int
    params: int
    macs: int
    activation_bytes: int


@dataclass(frozen=True)
class Profile:
    """The cost of a network.

    Attributes
    ----------
    params : int
        Weights and biases.
    macs : int
        Multiply-accumulates of one decision (batch 1), biases and element-wise operations not counted.
    size_bytes : int
        The float32 weights as a safetensors file without metadata, so that a teacher and its student compare whatever
        formats they came in; an agent file's metadata adds some kilobytes.
    activation_bytes : int
        Largest sum of the float32 values that are alive while a layer is computed, its input, its output and what later
        layers read: the memory for activations of an interpreter that runs layer by layer, computes activations and
        sums in place and nothing else, and frees a value once it is used.
    layers : tuple of LayerProfile
        Convolutions and dense layers in the order of execution, output layers included.
    """

    params: int
    macs: int
    size_bytes: int
    activation_bytes: int
    layers: tuple[LayerProfile, ...]


def profile_network(network: Network) -> Profile:
    """Count what a network costs.

    Parameters
    ----------
    network : Network
        Left untouched; only its shapes matter.

    Returns
    -------
    Profile
        The same for any two networks of the same layers.
    """
    layers = tuple(_layer(network, name) for name in network.weighted)
    return Profile(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        size_bytes=_file_bytes(network),
        activation_bytes=FLOAT32_BYTES * max(_alive(network)),
        layers=layers,
    )


def _layer(network: Network, name: str) -> LayerProfile:
    weight: Tensor = network.get_parameter(f"{name}.weight")
    (read,), made = network.layer(name).inputs, network.shapes[name]
    return LayerProfile(
        name=name,
        inputs=_shapes(network)[read][0],
        outputs=weight.shape[0],
        params=weight.numel() + len(weight),
        macs=weight.numel() * prod(made[1:]),  # each weight once at each place
        activation_bytes=FLOAT32_BYTES * (prod(_shapes(network)[read]) + prod(made)),
    )


def _shapes(network: Network) -> dict[str, Shape]:
    return {INPUT: network.observations.shape, **network.shapes}


def _alive(network: Network) -> Iterator[int]:
    """Count the numbers that are kept while each layer is computed."""
    shapes = _shapes(network)
    last = {name: layer.name for layer in network.layers for name in layer.inputs}
    alive = {INPUT}
    for layer in network.layers:
        done = {name for name in layer.inputs if last[name] == layer.name}
        in_place = bool(done) and layer.op in IN_PLACE
        yield sum(prod(shapes[name]) for name in alive) + (0 if in_place else prod(shapes[layer.name]))
        alive = (alive - done) | {layer.name}


def _file_bytes(network: Network) -> int:
    state = network.state_dict()
    return len(save({name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}))
