"""Allowed values of a setting, kept in the metadata of its dataclass field."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Range:
    """Allowed values of a number: from `low` to `high`, the ends included unless said otherwise."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.open_low else 'at least'} {self.low:g}"
        return f"in {'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self.open_high else ']'}"


def within(low: float = -math.inf, high: float = math.inf, **ends: bool) -> Any:
    """Make a field for a mandatory number from `low` to `high`; `ends` as in `Range`."""
    return field(default=MISSING, metadata={"allowed": Range(low, high, **ends)})


def one_of(*names: str) -> Any:
    """Make a field for a mandatory choice among names."""
    return field(default=MISSING, metadata={"allowed": names})


RATIO = Range(0, 1, open_high=True)  # of channels removed: never all
