"""What environments give and take, without making one."""

from __future__ import annotations

from lrp_compress.networks.spaces import ATARI, Observations, Spaces

PONG_ACTIONS = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")


def spaces(*sizes: int, observations: Observations = ATARI) -> Spaces:
    """An environment with action sets of some sizes."""
    return Spaces(observations, {f"set of {size}": (PONG_ACTIONS * 3)[:size] for size in sizes})


def atari(*minimal: str) -> Spaces:
    """A game of ALE with such a minimal action set."""
    return Spaces(ATARI, {"minimal": minimal, "full": PONG_ACTIONS * 3})
