"""Students of a front that another machine has made."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import Config, SearchConfig, SpaceConfig, config_hash
from lrp_compress.pipeline import find_teacher
from lrp_compress.search.confirming import Candidate, confirm_front
from lrp_compress.support.files import read_json
from lrp_compress.tracking.runs import open_run

pytestmark = pytest.mark.slow

SEARCH = SearchConfig(
    "mine", "sqlite:///studies.db", SpaceConfig(), ["return_kept", "speedup"], None, "random", 0, 2, 1, 2, 10
)
TINY = (
    *(
        "evaluate={envs: 2, max_frames: 400}",
        "criterion.states=32",
        "rollouts={states: 64, envs: 4, every: 1, block: 16}",
    ),
    "latency={rounds: 2, decisions: 2, warmup: 0, max_rounds: 2}",
)


def config(folder: Path, ratio: float) -> Config:
    register_schemas()
    for name in ("run_folder", "sweep_folder", "config_groups"):
        OmegaConf.register_new_resolver(name, str, replace=True)
    places = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"cache_dir={folder}/cache"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check_config(
            compose("config", overrides=["+game=breakout", f"prune.ratio={ratio}", *TINY, *places]), Config
        )


def test_a_student_that_is_not_here_is_fetched_or_left_out(
    tmp_path: Path, new_store: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
):
    new_store(tmp_path / "mlflow.db")
    fetched, lost = (
        Candidate(number, [1.0, 1.0], config(tmp_path, ratio), Path(f"/elsewhere/{number}"))
        for number, ratio in enumerate((0.3, 0.5))
    )
    student = tmp_path / "student.safetensors"
    student.write_bytes((teachers_dir() / "breakout.safetensors").read_bytes())
    with open_run(
        fetched.config.tracking, name="run", tags={"config_hash": config_hash(fetched.config)}, params={}
    ) as run:
        run.artifact(student)
    teacher, digest = find_teacher(fetched.config)
    with caplog.at_level(logging.WARNING):
        (one,) = confirm_front([fetched, lost], SEARCH, teacher, digest, tmp_path)
    assert one.candidate is fetched
    assert one.stays
    assert one.metrics["student/params_kept"] == 1
    assert [entry["trial"] for entry in read_json(tmp_path / "front.json")] == [0]
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("confirming")]
    assert line.startswith(
        "trial 1 is left out of the confirmation: no student.safetensors in /elsewhere/1 on this machine, and "
        f"no finished run {config_hash(lost.config)} in sqlite:///{tmp_path}/mlflow.db; give all workers one "
    )
    assert "\n" not in line
    untracked = dataclasses.replace(fetched.config, tracking=dataclasses.replace(fetched.config.tracking, uri=None))
    assert confirm_front([dataclasses.replace(fetched, config=untracked)], SEARCH, teacher, digest, tmp_path) == []
    assert read_json(tmp_path / "front.json") == []
