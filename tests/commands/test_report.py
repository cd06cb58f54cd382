"""The report, as users ask for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands.running import Command
from tests.reporting.test_reports import made_run


def test_a_folder_gets_its_report(lrp_compress: Command, tmp_path: Path):
    made_run(tmp_path / "sweep", "lrp", 0.5, 0, 90.0)
    done = lrp_compress("sweep", module="lrp_compress.report")
    assert (done.returncode, done.stdout, done.stderr) == (0, "sweep/report.html\n", "")
    assert "<svg" in (tmp_path / "sweep" / "report.html").read_text()
    assert (tmp_path / "sweep" / "report.csv").read_text().startswith("run,game,seed,")
    done = lrp_compress("sweep", "--out", "elsewhere", module="lrp_compress.report")
    assert (tmp_path / "elsewhere" / "report.html").is_file(), done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "there is no folder no/such"),
        (["mine"], "there is no database studies.db; name the one that the study is in"),
        (["."], ". holds no finished run; name the folder of a sweep or of a run"),
        (["tags.game = 'pong'"], "tags.game = 'pong': 0 finished runs in sqlite:///mlflow.db"),
        (["mine", "--storage", "nosql"], "nosql: Could not parse SQLAlchemy URL"),
    ],
)
def test_mistakes_end_in_one_line(lrp_compress: Command, tmp_path: Path, arguments: list[str], message: str):
    done = lrp_compress(*arguments, module="lrp_compress.report")
    assert re.fullmatch(rf"error: {re.escape(message)}.*\n", done.stderr), done.stderr
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []
