"""The same network with values of one size: what int8 with a single scale for all of a layer's values asks for."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lrp_compress.compression.attribution import traced
from lrp_compress.networks.graph import Network

STRENGTH = 0.5  # 0 leaves all as it is, 1 gives all channels the same largest value (Xiao et al. 2023, equation 4)
FLOOR = 0.01  # of the layer's largest value: channels that are hardly ever seen active are taken to reach it
CURVED = ("elu", "tanh", "sigmoid")  # what does not let a positive factor pass


@torch.no_grad()
def equalize(network: Network, observations: Tensor) -> Network:
    """Shift scale from channels with large values to the weights that read them.

    ReLUs, pooling and sums let a positive factor pass, so the outputs stay as they are (Nagel et al. 2019, "Data-Free
    Quantization Through Weight Equalization and Bias Correction", section 4.1). The channels' sizes are those seen on
    states, not those of the weights, since with a scale for every output channel the weights' own sizes cost nothing.
    Channels that an ELU, tanh or sigmoid reads stay as they are.

    Parameters
    ----------
    network : Network
        Left untouched.
    observations : Tensor, shape (N, *network.observations.shape)
        States of its own play.

    Returns
    -------
    Network
        On the CPU, with the same outputs up to rounding.
    """
    equal = copy.deepcopy(network).float()
    with traced(equal) as values:
        equal(observations)
    curved = {equal.value(layer.inputs[0]).channels for layer in equal.layers if layer.op in CURVED}
    for name, group in equal.channels.items():
        if name in curved:
            continue
        factors = _factors([values[writer] for writer in group.writers], group.width)
        for writer in group.writers:
            own = factors.repeat_interleave(equal.value(writer).positions)
            layer: Any = equal.get_submodule(writer)
            if not equal.is_depthwise(writer):  # which reads what it writes: its weights take factors and give them
                layer.weight /= _along(own, layer.weight, 0)
            layer.bias /= own
        for reader in equal.weighted[1:]:
            read = equal.value(equal.layer(reader).inputs[0])
            if read.channels == name and not equal.is_depthwise(reader):
                weight: Any = equal.get_submodule(reader).weight
                weight *= _along(factors.repeat_interleave(read.positions), weight, 1)
    return equal


def _factors(seen: list[Tensor], channels: int) -> Tensor:
    """Find what to divide each channel of values, each of shape (N, channels or a multiple of them, ...), by."""
    by_channel = [values.reshape(len(values), channels, -1).transpose(0, 1).flatten(1) for values in seen]
    largest = torch.stack([values.abs().amax(1) for values in by_channel]).amax(0)
    largest = largest.clamp_min(FLOOR * max(largest.max().item(), 1e-6))
    factors = largest**STRENGTH
    return factors / factors.log().mean().exp()


def _along(factors: Tensor, values: Tensor, dim: int) -> Tensor:
    return factors.view([-1 if axis == dim else 1 for axis in range(values.dim())])
