"""The same network with values of one size: what int8 with a single scale for all of a layer's values asks for."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import fold_dueling

STRENGTH = 0.5  # 0 leaves all as it is, 1 gives all channels the same largest value (Xiao et al. 2023, equation 4)
FLOOR = 0.01  # of the layer's largest value: channels that are hardly ever seen active are taken to reach it


@torch.no_grad()
def equalize(network: Network, observations: Tensor) -> Network:
    """Shift scale from channels with large values to the weights that read them.

    ReLUs let a positive factor pass, so the outputs stay as they are (Nagel et al. 2019, "Data-Free Quantization
    Through Weight Equalization and Bias Correction", section 4.1). The channels' sizes are those seen on states, not
    those of the weights, since with a scale for every output channel the weights' own sizes cost nothing.

    Parameters
    ----------
    network : Network
        Left untouched.
    observations : Tensor of uint8, shape (N, 4, 84, 84)
        States of its own play.

    Returns
    -------
    Network
        Without a dueling head, on the CPU, with the same outputs up to rounding.
    """
    equal = copy.deepcopy(fold_dueling(network)).float()
    names = list(equal.widths)
    values = observations.float() / 255
    for name, reader in zip(names, [*names[1:], "head"], strict=True):
        if name in equal.dense_layers:
            values = values.flatten(1)
        layer, following = getattr(equal, name), getattr(equal, reader)
        values = layer(values).relu()
        factors = _factors(values)
        layer.weight /= _along(factors, layer.weight, 0)
        layer.bias /= factors
        values /= _along(factors, values, 1)
        # a dense layer reads all positions of a map
        read = factors.repeat_interleave(following.weight.shape[1] // len(factors))
        following.weight *= _along(read, following.weight, 1)
    return equal


def _factors(values: Tensor) -> Tensor:
    """Find what to divide each channel of values, shape (N, channels, ...), by."""
    largest = values.transpose(0, 1).flatten(1).amax(1)
    largest = largest.clamp_min(FLOOR * max(largest.max().item(), 1e-6))
    factors = largest**STRENGTH
    return factors / factors.log().mean().exp()


def _along(factors: Tensor, values: Tensor, dim: int) -> Tensor:
    return factors.view([-1 if axis == dim else 1 for axis in range(values.dim())])
