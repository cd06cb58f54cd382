"""What a study optimises, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lrp_compress.support.errors import UserError, unknown_name

RETURN_KEPT = "student/return_kept"


@dataclass(frozen=True)
class Objective:
    """A metric of a run, and whether more of it is better."""

    metric: str
    maximize: bool

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for it."""
        return "maximize" if self.maximize else "minimize"


OBJECTIVES = {
    "return_kept": Objective(RETURN_KEPT, True),
    "speedup": Objective("student/speedup", True),
    "size_bytes": Objective("student/size_bytes", False),
    "macs": Objective("student/macs", False),
    "params": Objective("student/params", False),
    "activation_bytes": Objective("student/activation_bytes", False),
}


def check_objectives(names: Sequence[str]) -> None:
    """Refuse objectives that do not exist, or fewer than one.

    Raises
    ------
    UserError
        In one line.
    """
    if not names or len(set(names)) != len(names):
        raise UserError(f"search.objectives={list(names)}: name at least one, each once, of {', '.join(OBJECTIVES)}")
    for name in names:
        if name not in OBJECTIVES:
            raise unknown_name("search.objectives", name, OBJECTIVES)


def objective_values(names: Sequence[str], metrics: Mapping[str, float]) -> list[float]:
    """Take the objectives out of a run's metrics.

    Raises
    ------
    ValueError
        If the run has no such metric.
    """
    missing = [OBJECTIVES[name].metric for name in names if OBJECTIVES[name].metric not in metrics]
    if missing:
        raise ValueError(f"the run has no {', '.join(missing)}")
    return [metrics[OBJECTIVES[name].metric] for name in names]


def dominates(one: Sequence[float], other: Sequence[float], maximize: Sequence[bool]) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better."""
    signed = [(a, b) if more else (-a, -b) for more, a, b in zip(maximize, one, other, strict=True)]
    return all(a >= b for a, b in signed) and any(a > b for a, b in signed)
