"""A network's cost on paper: parameters, multiply-accumulates, bytes of weights and of activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrp_compress.networks.graph import Network
from lrp_compress.networks.spaces import STACK

FLOAT32_BYTES = 4


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
        Largest sum of one layer's float32 input and output: the memory for activations of an interpreter that runs
        layer by layer, computes no dense layer or convolution in place, and frees an input once it is used.
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
        The same for any two networks of the same widths, head and actions.
    """
    with torch.device("meta"):  # shapes without numbers: nothing is computed
        shape_only = network.resized(network.widths)
        observation = torch.zeros(1, STACK, 84, 84)
    touched: dict[str, int] = {}
    modules = {name: layer for name, layer in shape_only.named_children() if isinstance(layer, nn.Conv2d | nn.Linear)}
    for name, layer in modules.items():
        layer.register_forward_hook(_record_bytes(touched, name))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape_only(observation)
    flops = counter.get_flop_counts()
    layers = tuple(
        LayerProfile(
            name=name,
            inputs=modules[name].weight.shape[1],
            outputs=modules[name].weight.shape[0],
            params=sum(parameter.numel() for parameter in modules[name].parameters()),
            macs=sum(flops[f"{type(shape_only).__name__}.{name}"].values()) // 2,
            activation_bytes=activation_bytes,
        )
        for name, activation_bytes in touched.items()
    )
    return Profile(
        params=sum(layer.params for layer in layers),
        macs=counter.get_total_flops() // 2,
        size_bytes=_file_bytes(network),
        activation_bytes=max(layer.activation_bytes for layer in layers),
        layers=layers,
    )


def _record_bytes(touched: dict[str, int], name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        touched[name] = FLOAT32_BYTES * (inputs[0].numel() + output.numel())

    return record


def _file_bytes(network: Network) -> int:
    state = network.state_dict()
    return len(save({name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}))
