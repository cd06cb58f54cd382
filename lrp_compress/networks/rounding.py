"""Rounding to the grid of int8 that lets gradients through, as networks have it that learn to be quantised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

RANGE_MEMORY = 0.99  # share of a range that stays after a batch (Jacob et al. 2018, section 3.1)


class RoundedWeight(nn.Module):
    """Rounds a weight to int8, symmetric about 0, with a scale per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        """Round a weight of shape (channels, ...)."""
        largest = weight.detach().abs().flatten(1).amax(1)
        scale = (largest / 127).clamp_min(1e-12)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight.contiguous(), scale, zero, 0, -127, 127)


class Rounding(nn.Module):
    """Rounds values to uint8 between a low and a high one that follow what is seen in training mode."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """Round values of any shape."""
        values = values.float()
        if self.training:
            self._follow("low", values.detach().amin().clamp_max(0))
            self._follow("high", values.detach().amax().clamp_min(0))
        scale = ((self.high - self.low) / 255).clamp_min(1e-12)
        zero = (-self.low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)

    def _follow(self, name: str, seen: Tensor) -> None:
        known: Tensor = getattr(self, name)
        known.copy_(torch.where(known == 0, seen, RANGE_MEMORY * known + (1 - RANGE_MEMORY) * seen))
