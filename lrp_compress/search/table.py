"""The result of a study as a table for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial
from rich import box
from rich.table import Table

from lrp_compress.config import SearchConfig
from lrp_compress.search.confirming import Confirmed


def front_table(config: SearchConfig, front: Sequence[Confirmed], trials: Sequence[FrozenTrial]) -> Table:
    """Lay out the front: a row per student, each objective as found in the search and as confirmed.

    Parameters
    ----------
    config : SearchConfig
        Names of the objectives.
    front : sequence of Confirmed
        What was evaluated anew.
    trials : sequence of FrozenTrial
        All trials of the study, to be counted by their ends.
    """
    ends = Counter(trial.state.name.lower() for trial in trials)
    told = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
    table = Table(
        title=f"{config.study}: {told}", title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    table.add_column("\ntrial", justify="right")
    for name in config.objectives:
        table.add_column(f"{name}\nfound", justify="right")
        table.add_column("\nconfirmed", justify="right")
    table.add_column("stays on\nthe front")
    for one in sorted(front, key=lambda one: one.values[-1]):
        cells = []
        for found, confirmed in zip(one.candidate.values, one.values, strict=True):
            cells += [_number(found), _number(confirmed)]
        table.add_row(str(one.candidate.number), *cells, "yes" if one.stays else "no")
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
