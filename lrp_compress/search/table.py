"""The result of a study as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial

from lrp_compress.config.schema import SearchConfig
from lrp_compress.search.confirming import Confirmed
from lrp_compress.support.tables import FigureTable


def front_table(config: SearchConfig, front: Sequence[Confirmed], trials: Sequence[FrozenTrial]) -> FigureTable:
    """Lay out the front: a row per student, each objective as found in the search and as confirmed.

    Parameters
    ----------
    config : SearchConfig
        Names of the objectives.
    front : sequence of Confirmed
        What was evaluated anew.
    trials : sequence of FrozenTrial
        All trials of the study, to be counted by their ends.

    Returns
    -------
    FigureTable
        In a narrow terminal the trials' numbers and what was confirmed stay longest.
    """
    ends = Counter(trial.state.name.lower() for trial in trials)
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    heads = [("", "trial")]
    for name in config.objectives:
        heads += [(name, "found"), (name, "confirmed")]
    heads.append(("stays on", "the front"))
    rows = []
    for one in sorted(front, key=lambda one: one.values[-1]):
        cells = [str(one.candidate.number)]
        for found, confirmed in zip(one.candidate.values, one.values, strict=True):
            cells += [_number(found), _number(confirmed)]
        rows.append([*cells, "yes" if one.stays else "no"])
    last = len(heads) - 1
    in_search, anew = range(1, last, 2), range(2, last, 2)
    dispensable = [*reversed(in_search), last, *reversed(anew[1:])]
    return FigureTable(f"{config.study}: {told}", heads, [rows], dispensable)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
