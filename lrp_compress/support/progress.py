"""What a run says of itself while it works: a line when a stage begins, a line when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
PAUSE_S = 60  # between two lines about how far a long stage has come


def no_figure(value: Any) -> str:
    """Say nothing of a stage's result."""
    return ""


def announced(stage: str, make: Callable[[], T], figure: Callable[[T], str] = no_figure) -> T:
    """Do the work of a stage between two lines in the log.

    Parameters
    ----------
    stage : str
        What the lines call it.
    make : callable
        Computes the result.
    figure : callable
        Names the figure that matters of the result, for the second line.
    """
    logger.info("%s: begins", stage)
    start = time.monotonic()
    value = make()
    logger.info("%s: done in %s%s", stage, duration(time.monotonic() - start), _added(figure(value)))
    return value


def skipped(stage: str, figure: str) -> None:
    """Say that a stage's result is there from an earlier try."""
    logger.info("%s: there already%s", stage, _added(figure))


def duration(seconds: float) -> str:
    """Write a time in the unit that suits it, e.g. ``0.3 s``, ``12 s``, ``4.2 min``, ``1.5 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


class Pace:
    """Lets lines about how far a stage has come through when a minute has passed since the last."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def say(self, line: str, *values: object) -> None:
        """Log a line, or leave it out; parameters as of `logging.Logger.info`."""
        now = time.monotonic()
        if now - self._last >= PAUSE_S:
            self._last = now
            logger.info(line, *values)


def _added(figure: str) -> str:
    return figure and f", {figure}"
