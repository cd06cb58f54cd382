"""Which agent is the teacher, and which is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, save_agent
from lrp_compress.agents.networks import NATURE_WIDTHS, PolicyNetwork
from lrp_compress.agents.teachers import load_teacher, teacher_path, teachers_dir
from lrp_compress.config import GameConfig, TeacherConfig
from lrp_compress.errors import UserError

BREAKOUT = GameConfig("breakout", "Breakout", 1.7, 30.5)
PONG = GameConfig("pong", "Pong", -20.7, 14.6)
SHIPPED = TeacherConfig("auto", None)


def own_agent(path: Path, fire: bool) -> TeacherConfig:
    network = PolicyNetwork({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", 6)
    save_agent(path, Agent(network, AgentInfo("pong", "minimal", fire, {"by": "test"}, {})))
    return TeacherConfig(str(path), None)


def test_the_shipped_agent_is_found():
    assert teacher_path(SHIPPED, BREAKOUT) == teachers_dir() / "breakout.safetensors"
    teacher = load_teacher(SHIPPED, BREAKOUT)
    assert teacher.info.game == "breakout"
    assert teacher.network.widths == NATURE_WIDTHS
    assert teacher.network.actions == 4
    assert teacher.network.device == torch.device("cpu")
    assert not teacher.network.training


def test_every_shipped_agent_plays_the_game_it_is_named_after():
    paths = sorted(teachers_dir().glob("*.safetensors"))
    assert paths
    for path in paths:
        game = dataclasses.replace(PONG, name=path.stem)
        assert load_teacher(SHIPPED, game).info.game == path.stem


def test_a_game_without_a_shipped_agent():
    with pytest.raises(UserError, match=r"no agent is shipped for game pong \(only: .*breakout.*teacher\.source=FILE"):
        load_teacher(SHIPPED, PONG)


def test_an_own_file(tmp_path: Path):
    teacher = load_teacher(own_agent(tmp_path / "mine.safetensors", True), PONG)
    assert teacher.info == AgentInfo("pong", "minimal", True, {"by": "test"}, {})


def test_an_agent_of_another_game(tmp_path: Path):
    config = own_agent(tmp_path / "mine.safetensors", True)
    with pytest.raises(UserError, match=r"mine\.safetensors plays pong, not breakout; choose game=pong"):
        load_teacher(config, BREAKOUT)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.safetensors does not exist"):
        load_teacher(TeacherConfig(str(tmp_path / "none.safetensors"), None), BREAKOUT)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("asked", [True, False, None])
def test_fire_on_life_loss_can_be_overridden(tmp_path: Path, in_file: bool, asked: bool | None):
    config = own_agent(tmp_path / "mine.safetensors", in_file)
    info = load_teacher(dataclasses.replace(config, fire_on_life_loss=asked), PONG).info
    assert info.fire_on_life_loss is (in_file if asked is None else asked)
    assert info.lineage == {"by": "test"}
