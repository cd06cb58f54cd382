"""The shipped teacher plays for a student: who acts, what is stored, and that the seed decides."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.inference import batched_outputs, dense_values
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.atari.acting import ActionRule
from lrp_compress.checks import conf_dir
from lrp_compress.compression.play import Play, play
from lrp_compress.config import DistillConfig

SAMPLE = ActionRule("sample", 0.0)


@pytest.fixture(scope="module")
def teacher() -> Agent:
    return load_agent(teachers_dir() / "breakout.safetensors")


def played(
    teacher: Agent,
    turns: int,
    actor: PolicyNetwork | None = None,
    seed: int = 0,
    rule: ActionRule = SAMPLE,
    kept: Mapping[str, Sequence[int]] = MappingProxyType({}),
    **changes: Any,
) -> Play:
    values = {**OmegaConf.to_container(OmegaConf.load(Path(conf_dir()) / "distill" / "kl.yaml")), "envs": 5, **changes}  # type: ignore[dict-item]
    config = DistillConfig(**values)
    network = actor or teacher.network
    with contextlib.closing(play(teacher, lambda: network, kept, config, rule, "noop", seed, torch.float32)) as plays:
        return list(itertools.islice(plays, turns))[-1]


def everything(state: Play) -> tuple[torch.Tensor, torch.Tensor]:
    return state.visited.gather(state.visited.stored())


@pytest.mark.parametrize("envs", [4, 5, 32])
def test_every_state_is_stored_once_with_the_teachers_outputs(teacher: Agent, envs: int):
    turns = 24
    state = played(teacher, turns, envs=envs)
    assert state.steps == envs * turns // 2
    assert len(state.visited) == envs * turns // 2  # no game is over so soon
    observations, outputs = everything(state)
    torch.testing.assert_close(outputs, batched_outputs(teacher.network, observations), rtol=1e-4, atol=1e-4)
    last = observations[:, -1].flatten(1)
    assert len(last.unique(dim=0)) > 0.25 * len(last)  # games begin alike, then every one goes its own way


def test_the_actor_decides_where_play_goes_and_the_teacher_labels_it(teacher: Agent):
    torch.manual_seed(0)
    other = PolicyNetwork({"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}, "policy", 4)
    own, others = everything(played(teacher, 40)), everything(played(teacher, 40, other))
    assert not torch.equal(own[0], others[0])
    torch.testing.assert_close(others[1], batched_outputs(teacher.network, others[0]), rtol=1e-4, atol=1e-4)


def test_greedy_play_is_made_to_explore(teacher: Agent):
    greedy = ActionRule("greedy", 0.0)
    still, moving = (everything(played(teacher, 40, rule=greedy, epsilon=epsilon)) for epsilon in (0.0, 0.5))
    again = everything(played(teacher, 40, seed=0, rule=greedy, epsilon=0.0))
    assert torch.equal(still[0], again[0])
    assert not torch.equal(still[0], moving[0])


def test_the_seed_decides(teacher: Agent):
    one, same, other = (everything(played(teacher, 20, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])


def test_the_teachers_units_are_stored_behind_its_outputs(teacher: Agent):
    units = [300, 7, 41]
    observations, labels = everything(played(teacher, 12, kept={"fc1": units}))
    network = teacher.network
    with torch.no_grad(), dense_values(network) as values:
        outputs = network(observations)
    torch.testing.assert_close(labels, torch.cat([outputs, values["fc1"][:, units]], 1), rtol=1e-4, atol=1e-4)
    assert labels[:, 4:].max() > 0
