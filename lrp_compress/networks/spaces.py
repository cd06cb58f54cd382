"""What goes into a network and what its outputs mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("q", "policy")
DTYPES = ("uint8", "float32")
LARGEST = 1e30  # unit of observations; its inverse is far from the least number in float32


@dataclass(frozen=True)
class Observations:
    """What a network is given.

    Attributes
    ----------
    shape : tuple of int
        Of one observation: channels, height and width of a picture, or the length of a vector.
    dtype : {"uint8", "float32"}
        Its numbers.
    unit : float
        What observations are divided by before the first layer.
    """

    shape: tuple[int, ...]
    dtype: str
    unit: float = 1.0

    def __post_init__(self) -> None:
        if len(self.shape) not in (1, 3) or not all(type(side) is int and side >= 1 for side in self.shape):
            raise ValueError(f"observations have the shape {self.shape}, which is no picture's and no vector's")
        if self.dtype not in DTYPES or type(self.unit) not in (int, float) or not 1 / LARGEST < self.unit < LARGEST:
            raise ValueError(f"observations are {self.dtype} in units of {self.unit}; known are {' and '.join(DTYPES)}")

    def random(self, count: int, seed: int) -> Tensor:
        """Draw observations: whole numbers up to 255, or normal ones.

        Returns
        -------
        Tensor of `dtype`, shape (count, *shape)
        """
        generator = torch.Generator().manual_seed(seed)
        if self.dtype == "uint8":
            return torch.randint(0, 256, (count, *self.shape), generator=generator).to(torch.uint8)
        return torch.randn((count, *self.shape), generator=generator) * self.unit


@dataclass(frozen=True)
class Decision:
    """What a network's outputs mean.

    Attributes
    ----------
    kind : {"q", "policy"}
        Q-values, or the logits of a policy.
    size : int
        Number of actions.
    """

    kind: str
    size: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"head {self.kind!r} is not one of {', '.join(KINDS)}")
        if type(self.size) is not int or self.size < 1:
            raise ValueError(f"actions must be at least 1, got {self.size}")


@dataclass(frozen=True)
class Spaces:
    """What an environment gives and takes; agents are checked against it.

    Attributes
    ----------
    observations : Observations
        Of an agent in it.
    actions : mapping of str to tuple of str
        The names of the actions, by action set.
    """

    observations: Observations
    actions: Mapping[str, tuple[str, ...]]

    @property
    def action_sets(self) -> dict[int, str]:
        """The action sets by their size, which is what a network's outputs tell."""
        return {len(names): name for name, names in self.actions.items()}


ATARI = Observations((4, 84, 84), "uint8", 255.0)  # Mnih et al. 2015: four grey frames
