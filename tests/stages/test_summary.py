"""The table of a run's result, as it is printed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest
from rich.console import Console

from lrp_compress.stages.summary import file_table, result_page, result_table

DASH = "\N{EN DASH}"
METRICS: dict[str, float | None] = {
    "teacher/return_mean": 401.234,
    "teacher/return_ci_low": 389.91,
    "teacher/return_ci_high": 412.25,
    "teacher/return_iqm": 405.5,
    "teacher/return_human_normalised": 13.877,
    "teacher/params": 1_687_206,
    "teacher/macs": 9_346_048,
    "teacher/size_bytes": 6_749_424,
    "teacher/latency_p50_ms": 0.3241,
    "teacher/latency_p99_ms": 12.345,
    "pruned/return_mean": -20.96,
    "pruned/action_agreement": 0.4312,
    "repaired/kl": 0.004912,
    "student/return_mean": 15_280.6,
    "student/return_ci_low": 14_900.2,
    "student/return_ci_high": 15_700.7,
    "student/action_agreement": 0.9051,
    "student/params": 57_070,
    "student/macs": 492_032,
    "student/size_bytes": 9_876,
    "student/return_kept": 0.98765,
    "student/params_kept": 0.0338,
    "student/speedup": 1.8361,
    "student/speedup_low": 1.7,
    "student/speedup_high": 1.955,
    "student/compression": 683.4,
    "int8/return_kept": 0.5,
    "int8/load_ms": 3.25,
}


def printed(metrics: Mapping[str, float | None], files: bool = False, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(file_table(metrics, 0.95) if files else result_table(metrics, "breakout-lrp-r0.50-s0", 0.95))
    return capture.get().splitlines()


def cells(metrics: Mapping[str, float | None], label: str, files: bool = False, width: int = 80) -> list[str]:
    rows = [re.split(r"\s{2,}", line.strip()) for line in printed(metrics, files, width)]
    (row,) = [row[1:] for row in rows if row[0] == label]
    return row


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("return mean", ["401.2", "-21.0", DASH, "15,281"]),
        ("95 % interval", ["389.9", DASH, DASH, "14,900"]),
        ("to", ["412.2", DASH, DASH, "15,701"]),
        ("KL to the teacher", [DASH, DASH, "0.0049", DASH]),
        ("return IQM", ["405.5", DASH, DASH, DASH]),
        ("human-normalised", ["1387.7 %", DASH, DASH, DASH]),
        ("action agreement", [DASH, "43.1 %", DASH, "90.5 %"]),
        ("parameters", ["1,687,206", DASH, DASH, "57,070"]),
        ("MACs", ["9.35 M", DASH, DASH, "492 k"]),
        ("size, kB", ["6,749", DASH, DASH, "9.9"]),
        ("return kept", [DASH, DASH, DASH, "98.8 %"]),
        ("parameters kept", [DASH, DASH, DASH, "3.4 %"]),
    ],
)
def test_figures_are_written_for_people(label: str, expected: list[str]) -> None:
    assert cells(METRICS, label) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("return mean", ["401.2", "15,281", DASH]),
        ("95 % interval", ["389.9 to 412.2", "14,900 to 15,701", DASH]),
        ("size, kB", ["6,749", "9.9", DASH]),
        ("latency p50, ms", ["0.324", DASH, DASH]),
        ("latency p99, ms", ["12.3", DASH, DASH]),
        ("loading, ms", [DASH, DASH, "3.250"]),
        ("return kept", [DASH, "98.8 %", "50.0 %"]),
        ("times smaller", [DASH, "683.40 x", DASH]),
        ("speedup", [DASH, "1.84 x", DASH]),
        ("over rounds", [DASH, "1.70 x to 1.96 x", DASH]),
    ],
)
def test_figures_of_files_are_written_for_people(label: str, expected: list[str]) -> None:
    assert cells(METRICS, label, files=True) == expected


def test_the_interval_is_named_by_its_confidence() -> None:
    rows, _ = result_table(METRICS, "run", 0.9).sections
    assert "  90 % interval" in [label for label, *_ in rows]


def test_a_stored_result_prints_the_same_again() -> None:
    assert printed(json.loads(json.dumps(METRICS))) == printed(METRICS)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_values_that_say_nothing_are_shown_as_missing(value: float | None) -> None:
    assert cells({"teacher/return_human_normalised": value}, "human-normalised") == [DASH] * 4


def test_games_that_did_not_end_by_themselves_are_shown_where_there_are_any() -> None:
    ended = {"teacher/episodes_stalled": 0.0, "student/episodes_stalled": 3.0, "int8/episodes_capped": 2.0}
    assert cells(METRICS | ended, "games stalled") == ["0", DASH, DASH, "3"]
    assert not [line for line in printed(METRICS | ended) if "capped" in line]
    assert cells(METRICS | ended, "games capped", files=True) == [DASH, DASH, "2"]
    assert not [line for line in printed(METRICS) if "stalled" in line or "capped" in line]


def test_nothing_measured_yet() -> None:
    lines = printed({})
    assert "breakout-lrp-r0.50-s0" in lines[0]
    assert sum(line.count(DASH) for line in lines) == 12 * 4


@pytest.mark.parametrize(
    ("width", "files", "left_out", "returns", "loading"),
    [
        (40, False, "no room for: pruned, repaired", ["401.2", "15,281"], None),
        (40, True, "no room for: teacher, student", [DASH], ["3.250"]),
        (60, False, None, ["401.2", "-21.0", DASH, "15,281"], None),
        (60, True, "no room for: teacher", ["15,281", DASH], [DASH, "3.250"]),
        (120, False, None, ["401.2", "-21.0", DASH, "15,281"], None),
        (120, True, None, ["401.2", "15,281", DASH], [DASH, DASH, "3.250"]),
    ],
)
def test_a_narrow_terminal_costs_columns_and_no_digits(
    width: int, files: bool, left_out: str | None, returns: list[str], loading: list[str] | None
) -> None:
    lines = printed(METRICS, files, width)
    assert max(map(len, lines)) <= width
    assert [line for line in lines if "room" in line] == ([left_out] if left_out else [])
    assert cells(METRICS, "return mean", files, width) == returns
    if loading:
        assert cells(METRICS, "loading, ms", files, width) == loading


@pytest.mark.parametrize(
    ("value", "interval"),
    [(-98_765.4, "-98,765 to -98,765"), (123_456.7, "123.5k to 123.5k"), (1_234_567.8, "1.235M to 1.235M")],
)
def test_large_figures_are_never_cut(value: float, interval: str) -> None:
    agents = ("teacher", "pruned", "repaired", "student", "int8")
    large = {f"{agent}/{name.split('/')[1]}": value for agent in agents for name in METRICS}
    large |= {f"{agent}/{end}": 12.345 for agent in agents for end in ("speedup_low", "speedup_high")}
    lines = [*printed(large), *printed(large, files=True)]
    assert max(len(line) for line in lines) <= 80
    assert not any("…" in line for line in lines)
    assert cells(large, "95 % interval", files=True) == [interval] * 3
    assert cells(large, "95 % interval", files=True, width=40) == [interval]
    assert not any("…" in line for files in (False, True) for line in printed(large, files, 40))
    ends = interval.split(" to ")
    assert [cells(large, label) for label in ("95 % interval", "to")] == [[end] * 4 for end in ends]


def test_the_page_has_both_tables_and_a_sentence() -> None:
    sentence, _, *lines = result_page(METRICS, "breakout-lrp-r0.50-s0", 0.95, "maps.png").splitlines()
    assert sentence == (
        "The student of **breakout-lrp-r0.50-s0** keeps 98.8 % of its teacher's return, is 683.40 x smaller and 1.84 x "
        "as fast."
    )
    assert lines[:2] == ["| networks | teacher | pruned | repaired | student |", "| :-- | --: | --: | --: | --: |"]
    assert f"| parameters | 1,687,206 | {DASH} | {DASH} | 57,070 |" in lines
    assert "| as files, in ONNX Runtime | teacher | student | student in int8 |" in lines
    assert f"| return kept | {DASH} | 98.8 % | 50.0 % |" in lines
    assert lines[-1] == "![Relevance maps of teacher and student](maps.png)"


def test_without_an_int8_file_there_is_no_column_for_it() -> None:
    metrics = {name: value for name, value in METRICS.items() if not name.startswith("int8/")}
    assert cells(metrics, "return kept", files=True) == [DASH, "98.8 %"]
    assert "int8" not in "".join(printed(metrics, files=True))
