"""The lines of a log."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lrp_compress.support import progress
from lrp_compress.support.files import read_json, stored, write_json
from lrp_compress.support.progress import Pace, announced, duration


def test_a_stage_is_told_with_its_figure(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    assert announced("score", lambda: 42, lambda value: f"answer {value}") == 42
    announced("publish", lambda: None)
    first, second, third, fourth = caplog.messages
    assert (first, third) == ("score: begins", "publish: begins")
    assert re.fullmatch(r"score: done in \d\.\d s, answer 42", second)
    assert re.fullmatch(r"publish: done in \d\.\d s", fourth)


def test_a_stage_that_fails_is_not_told_to_be_done(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    with pytest.raises(ZeroDivisionError):
        announced("score", lambda: 1 / 0)
    assert caplog.messages == ["score: begins"]


def test_what_is_there_is_told_in_one_line(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    write_json(tmp_path / "step-1" / "scores.json", 42)
    caplog.set_level("INFO")
    how = (tmp_path / "step-1" / "scores.json", lambda: 0, write_json, read_json)
    stored(*how, "score", lambda value: f"answer {value}")
    stored(*how)
    assert caplog.messages == ["score: there already, answer 42", "step-1/scores: there already"]


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (90, "1.5 min"),
        (3599, "60.0 min"),
        (5400, "1.5 h"),
    ],
)
def test_duration(seconds: float, written: str):
    assert duration(seconds) == written


def test_pace_lets_a_line_through_once_a_minute(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    caplog.set_level("INFO")
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    pace = Pace()
    for now in (110.0, 160.0, 219.0, 220.0):
        pace.say("%d s", now)
    assert caplog.messages == ["160 s", "220 s"]
