"""Weights rounded to int8 so that the errors of a layer's weights make up for each other.

Each weight alone is best rounded to the nearest value. But an output is a sum over many inputs that go together, and
the weights that are rounded later can take off again, by least squares, what the earlier ones have added to it (Frantar
et al. 2023, "GPTQ", section 3, after Hassibi & Stork 1993, "Optimal Brain Surgeon"). The mean of what remains goes into
the bias.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from lrp_compress.compression.matrices import input_rows, set_weights, weight_matrix
from lrp_compress.networks.graph import Network

STEPS = 127  # of the grid on each side of 0
DAMPING = 0.01  # of the inputs' mean variance, added to each
PRECISION = 1e-9  # of the inputs' mean square, added to each variance
PLACES = 48  # of a convolution's map that are looked at in a state
BATCH = 64  # states computed at a time
TOGETHER = 64  # inputs whose errors are handed on to the inputs behind them at once, which changes no result
MOST_INPUTS = 4096  # of a layer whose errors make up for each other: its covariances are a matrix of so many rows


@torch.no_grad()
def compensated_rounding(network: Network, observations: Tensor, per_channel: bool = True, seed: int = 0) -> Network:
    """Round a network's weights to the grid that static quantisation will give them.

    Parameters
    ----------
    network : Network
        On the CPU; left untouched.
    observations : Tensor, shape (N, *network.observations.shape)
        States of its own play.
    per_channel : bool
        A scale for every output channel of a layer, or one for the layer.
    seed : int
        Of the places of a convolution's map that are looked at.

    Returns
    -------
    Network
        Still of float32. Every weight is a whole multiple, from -127 to 127, of its scale, and the largest one of a
        scale is at an end, so that rounding to the nearest finds the same scale and changes no weight.
    """
    rounded = copy.deepcopy(network).float().eval()
    moments = _moments(rounded, observations, seed)
    for name in rounded.weighted:
        layer: Any = rounded.get_submodule(name)
        weight = weight_matrix(layer).double()
        weights, bias = weight[..., :-1], weight[..., -1:]
        largest = weights.abs().amax(-1, keepdim=True) if per_channel else weights.abs().amax().expand(bias.shape)
        mean, covariances = moments[name]
        parts = [
            _rounded(part, covariance, largest / STEPS)
            for part, covariance in zip(torch.split(weights, MOST_INPUTS, -1), covariances, strict=True)
        ]
        on_grid = torch.cat(parts, -1)
        bias = bias + (weights - on_grid) @ mean
        set_weights(layer, torch.cat([on_grid, bias], -1).float())
    return rounded


def _moments(network: Network, observations: Tensor, seed: int) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """Find the mean of each layer's inputs, (..., inputs, 1), and their covariances, (..., inputs, inputs) in parts.

    In float64, with a first axis for the groups of a convolution that has several.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, list[Tensor]] = {}

    def add(name: str, layer: Any, given: Tensor, said: Tensor) -> None:
        places = torch.randperm(said[0, 0].numel(), generator=generator)[:PLACES] if said.dim() == 4 else None
        rows = input_rows(layer, given, places).double()
        inputs, ones = rows[..., :-1], rows[..., -1:]
        own = [inputs.mT @ ones, ones.mT @ ones, *(part.mT @ part for part in torch.split(inputs, MOST_INPUTS, -1))]
        sums[name] = [before + now for before, now in zip(sums[name], own, strict=True)] if name in sums else own

    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda layer, given, said, name=name: add(name, layer, given[0], said)
        )
        for name in network.weighted
    ]
    try:
        for batch in torch.split(observations, BATCH):
            network(batch)
    finally:
        for handle in handles:
            handle.remove()
    moments = {}
    for name, (total, count, *squares) in sums.items():
        mean = total / count
        means = torch.split(mean, MOST_INPUTS, -2)
        moments[name] = mean, [_covariance(square / count, m) for square, m in zip(squares, means, strict=True)]
    return moments


def _covariance(square: Tensor, mean: Tensor) -> Tensor:
    """Take the means off the mean products, of inputs that may vary less about them than floating point can tell."""
    lost = PRECISION * square.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return square - mean @ mean.mT + lost * torch.eye(square.shape[-1], dtype=square.dtype)


def _rounded(weights: Tensor, covariance: Tensor, scale: Tensor) -> Tensor:
    """Round weights of shape (..., outputs, inputs) in the order of their inputs, each with the errors before it.

    A largest weight, which is on the grid as it is and sets the scale, takes no part of the others' errors.
    """
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    damping = (DAMPING * variance.mean(-1)).clamp_min(torch.finfo(torch.float32).tiny)[..., None, None]
    damped = covariance + damping * torch.eye(covariance.shape[-1], dtype=covariance.dtype)
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    scale = scale.clamp_min(torch.finfo(torch.float32).tiny)
    free = (weights.abs() < scale * STEPS).to(weights.dtype)
    left, rounded = weights.clone(), torch.empty_like(weights)
    for first in range(0, weights.shape[-1], TOGETHER):
        last = min(first + TOGETHER, weights.shape[-1])
        errors = torch.empty_like(left[..., first:last])
        for i in range(first, last):
            value = left[..., i : i + 1]
            rounded[..., i : i + 1] = nearest = (value / scale).round().clamp(-STEPS, STEPS) * scale
            errors[..., i - first : i - first + 1] = error = (value - nearest) / factor[..., i : i + 1, i : i + 1]
            left[..., i + 1 : last] -= error * factor[..., i : i + 1, i + 1 : last] * free[..., i + 1 : last]
        left[..., last:] -= errors @ factor[..., first:last, last:] * free[..., last:]
    return rounded
