"""The shipped teacher plays for a student: who acts, what it says of the states, and that the seed decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.visited_states import Player
from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.groups import Emulators
from lrp_compress.networks.fast import batched_outputs, dense_values
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn

pytestmark = pytest.mark.slow

SAMPLE = ActionRule("sample", 0.0)
EMULATORS = Emulators()  # kept, which nobody can tell (tests/atari/test_groups.py)


@pytest.fixture(scope="module")
def teacher() -> Agent:
    return load_agent(teachers_dir() / "breakout.safetensors")


def played(
    teacher: Agent,
    steps: int,
    actor: Network | None = None,
    seed: int = 0,
    rule: ActionRule = SAMPLE,
    hinted: Mapping[str, Sequence[int]] = MappingProxyType({}),
    envs: int = 5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Observations and labels, step by step."""
    with EMULATORS.groups(teacher, envs, "noop", seed) as groups:
        player = Player(teacher, hinted, groups, rule, seed, torch.float32)
        visited = player.play(actor, steps - 3) + player.play(actor, 3)
    assert all(step.first.all() == (not number) for number, step in enumerate(visited))  # no game is over so soon
    assert not any(step.ended.any() for step in visited)
    return torch.from_numpy(np.concatenate([step.observations for step in visited])), torch.cat(
        [step.labels for step in visited]
    )


@pytest.mark.parametrize("envs", [1, 5, 16])
def test_every_state_comes_with_the_teachers_outputs(teacher: Agent, envs: int):
    observations, labels = played(teacher, 12, envs=envs)
    assert len(observations) == 12 * envs
    torch.testing.assert_close(labels, batched_outputs(teacher.network, observations), rtol=1e-4, atol=1e-4)
    steps = observations.view(12, envs, 4, 84, 84)
    assert torch.equal(steps[1:, :, :-1], steps[:-1, :, 1:])  # of each environment one goes on from the last


def test_the_actor_decides_where_play_goes_and_the_teacher_labels_it(teacher: Agent):
    torch.manual_seed(0)
    other = nature_cnn({"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}, "policy", 4)
    own, copied, others = (played(teacher, 20, actor) for actor in (None, teacher.network, other))
    assert torch.equal(own[0], copied[0])
    assert not torch.equal(own[0], others[0])
    torch.testing.assert_close(others[1], batched_outputs(teacher.network, others[0]), rtol=1e-4, atol=1e-4)


def test_random_actions_lead_elsewhere(teacher: Agent):
    rules = (ActionRule("greedy", epsilon) for epsilon in (0.0, 0.0, 0.5))
    still, again, moving = (played(teacher, 20, rule=rule)[0] for rule in rules)
    assert torch.equal(still, again)
    assert not torch.equal(still, moving)


def test_the_seed_decides(teacher: Agent):
    one, same, other = (played(teacher, 10, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_teachers_units_stand_behind_its_outputs(teacher: Agent):
    units = [300, 7, 41]
    observations, labels = played(teacher, 6, hinted={"fc1": units})
    network = teacher.network
    with torch.no_grad(), dense_values(network) as values:
        outputs = network(observations)
    torch.testing.assert_close(labels, torch.cat([outputs, values["fc1"][:, units]], 1), rtol=1e-4, atol=1e-4)
    assert labels[:, 4:].max() > 0
