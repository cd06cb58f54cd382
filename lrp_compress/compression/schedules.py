"""Schedules: how the removal of channels is spread over the pruning steps."""

from __future__ import annotations

from collections.abc import Callable

from lrp_compress.support.registry import Registry

Schedule = Callable[[float, int], list[float]]
SCHEDULES: Registry[Schedule] = Registry("prune.schedule")


def cumulative_ratios(schedule: str, ratio: float, steps: int) -> list[float]:
    """List how much is gone after each pruning step.

    Parameters
    ----------
    schedule : str
        Name of a registered schedule.
    ratio : float
        Fraction of the teacher's channels to remove in the end, in [0, 1).
    steps : int
        Number of pruning steps, at least 1.

    Returns
    -------
    list of float
        Per step the fraction of the teacher's channels that is gone after it: increasing, the last exactly `ratio`.
        A single step if there is nothing to spread, that is for ``one_shot`` and for a ratio of 0.

    Raises
    ------
    UserError
        If there is no schedule of that name.
    ValueError
        If the ratio or the number of steps is out of range.
    """
    if not 0 <= ratio < 1 or steps < 1:
        raise ValueError(f"a schedule needs a ratio in [0, 1) and at least 1 step, got {ratio} and {steps}")
    ratios = SCHEDULES[schedule](ratio, steps if ratio > 0 else 1)
    return [*ratios[:-1], ratio]  # the formulas reach the last value only up to rounding


@SCHEDULES.register("one_shot")
def one_shot(ratio: float, steps: int) -> list[float]:
    """Remove everything in one step, whatever the number of steps."""
    return [ratio]


@SCHEDULES.register("linear")
def linear(ratio: float, steps: int) -> list[float]:
    """Remove equally many channels in each step."""
    return [ratio * step / steps for step in range(1, steps + 1)]


@SCHEDULES.register("geometric")
def geometric(ratio: float, steps: int) -> list[float]:
    """Remove an equal fraction of the channels that remain in each step, so steps become smaller."""
    return [1 - (1 - ratio) ** (step / steps) for step in range(1, steps + 1)]


@SCHEDULES.register("cubic")
def cubic(ratio: float, steps: int) -> list[float]:
    """Remove many channels at first and few at last.

    The polynomial of Zhu & Gupta 2017, "To prune, or not to prune", equation 1, from an initial sparsity of 0.
    """
    return [ratio * (1 - (1 - step / steps) ** 3) for step in range(1, steps + 1)]
