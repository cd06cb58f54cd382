"""The table of a study's front, as wide and narrow terminals show it."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from lrp_compress.config.schema import Config, SearchConfig
from lrp_compress.search.confirming import Candidate, Confirmed
from lrp_compress.search.table import front_table

CONFIG = SearchConfig(study="pong-size", objectives=["return_kept", "size_bytes"])
FRONT = [
    Confirmed(Candidate(number, [kept, size], Config(), Path()), {}, [kept - 0.01, size], stays)
    for number, kept, size, stays in ((7, 0.984, 1_250_112.0, True), (12, 0.95, 98_304.0, False))
]
TRIALS = [create_trial(state=TrialState.COMPLETE, values=[1.0, 2.0])]


@pytest.mark.parametrize(
    ("width", "heads", "rows", "left_out"),
    [
        (
            80,
            ["return_kept size_bytes stays on", "trial found confirmed found confirmed the front"],
            ["12 0.950 0.940 98,304 98,304 no", "7 0.984 0.974 1,250,112 1,250,112 yes"],
            [],
        ),
        (
            60,
            ["return_kept size_bytes stays on", "trial found confirmed confirmed the front"],
            ["12 0.950 0.940 98,304 no", "7 0.984 0.974 1,250,112 yes"],
            ["no room for: size_bytes found"],
        ),
        (
            40,
            ["return_kept size_bytes", "trial confirmed confirmed"],
            ["12 0.940 98,304", "7 0.974 1,250,112"],
            ["no room for: return_kept found,", "size_bytes found, stays on the front"],
        ),
    ],
)
def test_a_narrow_terminal_costs_columns_and_no_digits(
    width: int, heads: list[str], rows: list[str], left_out: list[str]
):
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(front_table(CONFIG, FRONT, TRIALS))
    title, above, names, _, *rest = (" ".join(line.split()) for line in capture.get().splitlines())
    assert title == "pong-size: 1 complete"
    assert [above, names] == heads
    assert rest == rows + left_out
