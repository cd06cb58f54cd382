"""Which agent is the teacher, and which is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, save_agent
from lrp_compress.agents.teachers import load_teacher, teacher_path, teachers_dir
from lrp_compress.config.schema import GameConfig, TeacherConfig, TrackingConfig
from lrp_compress.environments.atari import game_spaces
from lrp_compress.networks.graph import Layer, Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.networks.spaces import Decision, Observations
from lrp_compress.support.errors import UserError
from tests.agents.environments import PONG_ACTIONS, atari

BREAKOUT = GameConfig("breakout", "Breakout", 1.7, 30.5)
PONG = GameConfig("pong", "Pong", -20.7, 14.6)
SHIPPED = TeacherConfig("auto", None, None, "auto", None)
NOWHERE = TrackingConfig(None, "lrp_compress", 1.0)
SPACES = {
    "breakout": atari("NOOP", "FIRE", "RIGHT", "LEFT"),
    "pong": atari(*PONG_ACTIONS),
    "freeway": atari("NOOP", "UP", "DOWN"),
}


def load(config: TeacherConfig, game: GameConfig, cache: Path = Path("unused")) -> Agent:
    path = teacher_path(config, game, cache, NOWHERE)
    return load_teacher(path, config, game, SPACES[game.name])


def own_agent(path: Path, fire: bool) -> TeacherConfig:
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", 6)
    save_agent(path, Agent(network, AgentInfo("pong", "minimal", fire, {"by": "test"}, {})))
    return TeacherConfig(str(path), None, None, "auto", None)


def test_the_shipped_agent_is_found():
    assert teacher_path(SHIPPED, BREAKOUT, Path("unused"), NOWHERE) == teachers_dir() / "breakout.safetensors"
    teacher = load(SHIPPED, BREAKOUT)
    assert teacher.info.game == "breakout"
    assert teacher.network.widths == NATURE_WIDTHS
    assert teacher.network.actions == 4
    assert teacher.network.device == torch.device("cpu")
    assert not teacher.network.training


@pytest.mark.slow
def test_every_shipped_agent_plays_the_game_it_is_named_after():
    paths = sorted(teachers_dir().glob("*.safetensors"))
    assert paths
    for path in paths:
        game = dataclasses.replace(PONG, name=path.stem)
        assert load_teacher(path, SHIPPED, game, game_spaces(path.stem)).info.game == path.stem


def test_a_game_without_a_shipped_agent():
    with pytest.raises(UserError, match=r"no agent is shipped for game klax \(only: .*breakout.*teacher\.source=FILE"):
        load(SHIPPED, dataclasses.replace(PONG, name="klax"))


def test_an_own_file(tmp_path: Path):
    teacher = load(own_agent(tmp_path / "mine.safetensors", True), PONG)
    assert teacher.info == AgentInfo("pong", "minimal", True, {"by": "test"}, all_channels(teacher.network.widths))


def test_an_agent_of_another_game(tmp_path: Path):
    config = own_agent(tmp_path / "mine.safetensors", True)
    with pytest.raises(UserError, match=r"mine\.safetensors plays pong, not breakout; choose game=pong"):
        load(config, BREAKOUT)


def test_a_file_that_is_not_there(tmp_path: Path):
    with pytest.raises(UserError, match=r"none\.safetensors does not exist"):
        load(TeacherConfig(str(tmp_path / "none.safetensors"), None, None, "auto", None), BREAKOUT)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("asked", [True, False, None])
def test_fire_on_life_loss_can_be_overridden(tmp_path: Path, in_file: bool, asked: bool | None):
    config = own_agent(tmp_path / "mine.safetensors", in_file)
    info = load(dataclasses.replace(config, fire_on_life_loss=asked), PONG).info
    assert info.fire_on_life_loss is (in_file if asked is None else asked)
    assert info.lineage == {"by": "test"}


@pytest.mark.parametrize("in_file", [4, 2])
@pytest.mark.parametrize("asked", [5, None])
def test_the_frame_skip_can_be_overridden(tmp_path: Path, in_file: int, asked: int | None):
    config = own_agent(tmp_path / "mine.safetensors", True)
    mine = load(config, PONG)
    info = dataclasses.replace(mine.info, frame_skip=in_file)
    save_agent(tmp_path / "mine.safetensors", Agent(mine.network, info))
    assert load(dataclasses.replace(config, frame_skip=asked), PONG).info.frame_skip == (asked or in_file)


@pytest.mark.parametrize(
    ("inside", "beside", "score"),
    [
        ({"mean_reward": 19.5}, None, 19.5),
        ({}, {"mean_reward": 20.0, "std_reward": 1.0}, 20.0),
        ({"score": float("nan")}, {"mean_reward": "high"}, None),
        ({"score": True}, ["mean_reward"], None),
    ],
)
def test_the_score_that_a_file_states(tmp_path: Path, inside: dict[str, Any], beside: Any, score: float | None):
    config = dqn_file(tmp_path / "agent.pth", 6)
    state = torch.load(tmp_path / "agent.pth", weights_only=True)
    torch.save({"state_dict": state, **inside}, tmp_path / "agent.pth")
    if beside is not None:
        (tmp_path / "results.json").write_text(json.dumps(beside))
    assert load(config, PONG).info.lineage.get("score") == score


def dqn_file(path: Path, actions: int) -> TeacherConfig:
    """Write a network in CleanRL's layout."""
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", actions)
    names = {"conv1": "0", "conv2": "2", "conv3": "4", "fc1": "7", "head": "9"}
    split = {key: key.split(".") for key in network.state_dict()}
    torch.save({f"network.{names[k[0]]}.{k[1]}": network.state_dict()[key] for key, k in split.items()}, path)
    return TeacherConfig(str(path), None, None, "auto", None)


@pytest.mark.parametrize(("actions", "action_set"), [(4, "minimal"), (18, "full")])
def test_another_librarys_agent(tmp_path: Path, actions: int, action_set: str):
    config = dqn_file(tmp_path / "agent.cleanrl_model", actions)
    teacher = load(config, BREAKOUT)
    assert (teacher.info.game, teacher.info.action_set, teacher.info.fire_on_life_loss) == (
        "breakout",
        action_set,
        True,
    )
    assert teacher.info.lineage["format"] == "CleanRL DQN"
    assert teacher.info.kept == all_channels(teacher.network.widths)
    assert not load(dataclasses.replace(config, fire_on_life_loss=False), BREAKOUT).info.fire_on_life_loss


def test_what_is_no_file_is_not_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UserError, match="is no regular file"):
            load(dataclasses.replace(SHIPPED, source=str(path)), PONG)


def test_a_score_that_is_no_number(tmp_path: Path):
    config = dqn_file(tmp_path / "agent.pt", 6)
    state = torch.load(tmp_path / "agent.pt", weights_only=True)
    torch.save({"state_dict": state, "score": 10**400}, tmp_path / "agent.pt")
    assert "score" not in load(config, PONG).info.lineage
    (tmp_path / "results.json").write_text(f'{{"mean_reward": 1{"0" * 400}}}')
    assert "score" not in load(config, PONG).info.lineage


def test_fire_is_not_pressed_where_there_is_none(tmp_path: Path):
    freeway = GameConfig("freeway", "Freeway", 0.0, 29.6)
    config = dqn_file(tmp_path / "agent", 3)
    assert not load(config, freeway).info.fire_on_life_loss
    with pytest.raises(UserError, match=r"^freeway has no FIRE action .*fire_on_life_loss=false"):
        load(dataclasses.replace(config, fire_on_life_loss=True), freeway)


def test_another_librarys_agent_of_another_game(tmp_path: Path):
    expected = r"chooses among 6 actions, but breakout has 4 \(minimal\) or 18 \(full\); it was trained for another"
    with pytest.raises(UserError, match=expected):
        load(dqn_file(tmp_path / "agent", 6), BREAKOUT)


def test_an_agent_that_sees_other_pictures(tmp_path: Path):
    layers = [
        Layer("conv1", "conv", ("observations",), {"width": 2, "kernel": (8, 8), "stride": (8, 8), "padding": (0, 0)}),
        Layer("flatten", "flatten", ("conv1",)),
        Layer("head", "dense", ("flatten",), {"width": 6}),
    ]
    network = Network(layers, Observations((3, 64, 64), "uint8", 255.0), Decision("policy", 6))
    save_agent(tmp_path / "mine.safetensors", Agent(network, AgentInfo("pong", "minimal", False, {}, {})))
    config = TeacherConfig(str(tmp_path / "mine.safetensors"), None, None, "auto", None)
    with pytest.raises(
        UserError, match=r"shape \(3, 64, 64\), uint8, but pong gives \(4, 84, 84\), uint8; it was trained"
    ):
        load(config, PONG)
