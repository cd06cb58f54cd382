"""The package in Python: the same steps, and a whole run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import lrp_compress as lc
from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.config.checks import conf_dir
from lrp_compress.config.schema import Config
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.stages.resume import RESULT
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import read_json

pytestmark = pytest.mark.slow

SMALL = (
    "rollouts={states: 128, envs: 2, every: 2}",
    "criterion.states=32",
    "repair={states: 64, strength: 0.1}",
    "distill={samples: 512, envs: 4, replay_states: 4096, precision: float32}",
    "evaluate={episodes: 2, pruned_episodes: 2, envs: 1, stall_limit: 200, max_frames: 400}",
    "quantize=none",
    "export=[]",
    "latency={rounds: 2, decisions: 5, warmup: 2, max_rounds: 2}",
    "tracking=none",
)


@pytest.fixture(scope="module")
def config() -> Config:
    return lc.settings("pong", *SMALL)


@pytest.fixture(scope="module")
def teacher() -> Agent:
    return lc.load_agent("auto", "pong")


@pytest.fixture(scope="module")
def states(teacher: Agent, config: Config) -> Rollouts:
    return lc.rollouts(teacher, config)


def test_the_steps_are_those_of_a_run(teacher: Agent, states: Rollouts, config: Config, tmp_path: Path):
    whole = lc.compress(teacher, "pong", 0.5, *SMALL, f"cache_dir={tmp_path}", folder=tmp_path / "run")
    pruned = lc.prune(teacher, lc.relevance(teacher, states, config), 0.5, config)
    repaired = lc.repair(pruned, teacher, states, config)
    for file, agent in (("pruned", pruned), ("repaired", repaired)):
        theirs = lc.load_agent(whole.folder / "stages" / "step-1" / f"{file}.safetensors")
        torch.testing.assert_close(agent.network.state_dict(), theirs.network.state_dict(), rtol=0, atol=0)
    student = lc.distill(repaired, teacher, states, config)
    assert student.network.widths == whole.student.network.widths == {"conv1": 16, "conv2": 32, "conv3": 32, "fc1": 256}
    assert lc.evaluate(teacher, config).mean == whole.metrics["teacher/return_mean"]
    assert whole.metrics == read_json(whole.folder / RESULT)
    again = lc.compress(teacher, "pong", 0.5, *SMALL, f"cache_dir={tmp_path}", folder=tmp_path / "run")
    assert again.metrics == whole.metrics
    with pytest.raises(UserError, match="holds another run"):
        lc.compress("auto", "pong", 0.6, *SMALL, f"cache_dir={tmp_path}", folder=tmp_path / "run")


def test_an_agent_is_written_and_read(teacher: Agent, states: Rollouts, tmp_path: Path):
    lc.save_agent(tmp_path / "agent.safetensors", teacher)
    read = lc.load_agent(tmp_path / "agent.safetensors")
    assert read.info == teacher.info
    lc.save_agent(tmp_path / "agent.onnx", teacher)
    lc.save_agent(tmp_path / "int8.onnx", teacher, calibration=states)
    sizes = [(tmp_path / name).stat().st_size for name in ("agent.onnx", "int8.onnx")]
    assert 3.5 < sizes[0] / sizes[1] < 4.1


def test_relevance_of_pixels(teacher: Agent, states: Rollouts, config: Config):
    maps = lc.heat_maps(teacher, states.observations(torch.arange(3)), config)
    assert maps.shape == (3, 84, 84)
    assert maps.abs().sum() > 0


def test_settings_inside_an_application_of_hydra():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        assert lc.settings("pong", "criterion=taylor").criterion.name == "taylor"
        assert compose("config", ["+game=freeway"]).game.name == "freeway"


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (lambda: lc.settings("pongg"), "game=pongg is unknown .did you mean pong"),
        (lambda: lc.settings("pong", "prune.ratio=2"), "prune.ratio=2.* is not allowed"),
        (lambda: lc.settings("pong", "prune.ration=0.2"), "did you mean prune.ratio"),
        (lambda: lc.load_agent("nothing.zip"), "nothing.zip is no file that says which game"),
        (lambda: lc.load_agent("nothing.zip", "pong"), "nothing.zip does not exist"),
        (lambda: lc.compress("auto", "pong", 1.5), "prune.ratio=1.5 is not allowed"),
    ],
)
def test_a_mistake_is_one_line(wrong, line: str):  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=line) as raised:
        wrong()
    assert "\n" not in str(raised.value)


def test_what_does_not_belong_together(teacher: Agent, states: Rollouts, config: Config):
    scores = lc.relevance(teacher, states, config)
    for ratio in (-1, 1, math.nan, True, "0.5"):
        with pytest.raises(UserError, match=r"is not allowed; it must be in \[0, 1\)"):
            lc.prune(teacher, scores, ratio, config)  # type: ignore[arg-type]
    pruned, other = lc.prune(teacher, scores, 0.5, config), lc.load_agent(teachers_dir() / "freeway.safetensors")
    for teach in (lc.repair, lc.distill):
        with pytest.raises(UserError, match="cannot learn from this teacher: its game or its outputs are others"):
            teach(pruned, other, states)
    with pytest.raises(UserError, match="was not pruned from this teacher"):
        lc.repair(teacher, pruned, states)
    with pytest.raises(UserError, match=f"the settings are of freeway, but the agent plays {teacher.info.game}"):
        lc.evaluate(teacher, lc.settings("freeway"))


def test_files_of_no_known_kind(teacher: Agent, states: Rollouts, tmp_path: Path):
    with pytest.raises(UserError, match="ends in neither"):
        lc.save_agent(tmp_path / "agent.pt", teacher)
    with pytest.raises(UserError, match="is to be int8"):
        lc.save_agent(tmp_path / "agent.safetensors", teacher, calibration=states)
    assert not list(tmp_path.iterdir())
