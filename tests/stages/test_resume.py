"""A run's folder belongs to one run and, at a time, to one process."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console

from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config
from lrp_compress.stages.resume import IDENTITY, RESULT, SETTINGS, STAGES, run_once
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import read_json, sign
from lrp_compress.tracking.tracker import Tracker
from tests.commands.forks import Forks

WORKS = """
import sys, time
from pathlib import Path
from lrp_compress.stages.resume import _claimed
with _claimed(Path(sys.argv[1])):
    print("claimed", flush=True)
    time.sleep(60)
"""


def composed(*overrides: str) -> Config:
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str, replace=True)
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_config(compose("config", ["+game=breakout", "tracking=none", *overrides]), Config)


def run(config: Config, folder: Path, agent: str = "a") -> list[str]:
    """Run once, and say what was worked on."""
    done: list[str] = []

    def work(tracker: Tracker) -> dict[str, float]:
        done.append(agent)
        (folder / STAGES).mkdir(parents=True, exist_ok=True)
        (folder / STAGES / "one.json").write_text("1")
        return {"value": 1.0}

    assert run_once(config, folder, {"agent": agent}, {}, work, Console(quiet=True)) == {"value": 1.0}
    return done


def test_a_finished_run_is_not_repeated_and_not_replaced(tmp_path: Path) -> None:
    config = composed()
    assert run(config, tmp_path) == ["a"]
    assert run(config, tmp_path) == []
    with pytest.raises(UserError, match=r"holds another run.*force=true to replace it"):
        run(config, tmp_path, agent="b")
    settings = (tmp_path / SETTINGS / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"holds another run"):
        run(composed("prune.ratio=0.3"), tmp_path)
    assert (tmp_path / SETTINGS / "config.yaml").read_text() == settings
    assert OmegaConf.create(settings).prune.ratio == 0.5
    assert read_json(tmp_path / RESULT) == {"value": 1.0}
    assert (tmp_path / STAGES / "one.json").exists()
    forced = composed("force=true")
    assert run(forced, tmp_path, agent="b") == ["b"]


@pytest.mark.parametrize(("name", "again"), [(RESULT, ["a"]), (IDENTITY, []), (f"{STAGES}/{IDENTITY}", [])])
@pytest.mark.parametrize("content", ["", "{", "\0\0\0", "[]", '{"value": []}'])
def test_a_damaged_record_is_made_again_from_what_is_left(
    tmp_path: Path, name: str, again: list[str], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed()
    run(config, tmp_path)
    whole = (tmp_path / name).read_text()
    (tmp_path / name).write_text(content)
    assert run(config, tmp_path) == again
    assert caplog.text.count(f"{name} is damaged") == 1
    assert "made again" in caplog.text
    assert (tmp_path / name).read_text() == whole
    assert run(config, tmp_path) == []
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="holds another run"):
        run(config, tmp_path, agent="b")


def test_a_damaged_file_of_a_finished_run_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = composed()
    run(config, tmp_path)
    student = tmp_path / "student.safetensors"
    student.write_text("weights")
    sign(student)
    assert run(config, tmp_path) == []
    for damage in (lambda: student.write_text("wei"), student.unlink):
        damage()
        assert run(config, tmp_path) == ["a"]
        assert caplog.text.count(f"{tmp_path} is damaged") == 1
        assert student.name in caplog.text
        caplog.clear()
        student.write_text("weights")


def test_stages_of_nobody_knows_which_run_are_not_used(tmp_path: Path) -> None:
    config = composed()
    run(config, tmp_path)
    for folder in (tmp_path, tmp_path / STAGES):
        (folder / IDENTITY).write_text("")
    (tmp_path / STAGES / "left").touch()
    assert run(config, tmp_path, agent="b") == ["b"]
    assert not (tmp_path / STAGES / "left").exists()


def test_a_folder_is_one_process_at_a_time_also_under_force(forks: Forks, tmp_path: Path) -> None:
    config = composed()
    run(config, tmp_path)
    with forks.start("-c", [WORKS, str(tmp_path)], tmp_path) as other:
        assert other.first_line() == "claimed"
        with pytest.raises(UserError, match="another process works in"):
            run(composed("force=true"), tmp_path)
        assert (tmp_path / STAGES / "one.json").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert run(config, tmp_path) == []
