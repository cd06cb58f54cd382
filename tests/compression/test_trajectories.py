"""A student plays real Breakout: what is noted of it is what happened."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.trajectories import Trajectories, trajectories
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.networks.fast import batched_outputs, dense_values
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.seeding import stage_seed

pytestmark = pytest.mark.slow

TOLERANCE = {"cpu": 1e-5, "cuda": 1e-3}  # of logits; a GPU multiplies with TF32's 10 bits


@pytest.fixture(scope="module")
def teacher(device: str) -> Agent:
    agent = load_agent(teachers_dir() / "breakout.safetensors")
    return Agent(agent.network.to(device), agent.info)


@pytest.fixture(scope="module")
def student(device: str) -> Network:
    torch.manual_seed(0)
    return nature_cnn({"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}, "policy", 4).to(device)


def blocks(
    student: Network, teacher: Agent, count: int, envs: int = 5, steps: int = 80, seed: int = 0
) -> list[Trajectories]:
    play = trajectories(student, teacher, (steps, envs), "noop", seed, torch.float32)
    with contextlib.closing(play) as made:
        return list(itertools.islice(made, count))


@pytest.fixture(scope="module")
def played(student: Network, teacher: Agent) -> list[Trajectories]:
    return blocks(student, teacher, 4)


def test_policies_are_those_of_both_networks(played: list[Trajectories], student: Network, teacher: Agent, device: str):
    block, tolerance = played[1], TOLERANCE[device]
    states = block.observations.flatten(0, 1)
    own = batched_outputs(student, states).log_softmax(1).gather(1, block.actions.view(-1, 1))
    assert torch.allclose(block.log_probs.view(-1, 1), own, atol=tolerance)
    with dense_values(teacher.network) as values:
        theirs = batched_outputs(teacher.network, states, batch_size=len(states)).log_softmax(1)
    assert torch.allclose(block.teacher_log_probs.flatten(0, 1), theirs, atol=10 * tolerance)
    assert torch.allclose(block.hidden[:-1].flatten(0, 1), values["fc1"], atol=100 * tolerance)


def test_blocks_follow_each_other(played: list[Trajectories], device: str):
    for one, next_one in itertools.pairwise(played):
        assert torch.allclose(one.hidden[-1], next_one.hidden[0], atol=10 * TOLERANCE[device])
        goes_on = ~one.ends[-1]
        assert next_one.observations[0, goes_on, :3].equal(one.observations[-1, goes_on, 1:])


def test_games_played_again_give_the_same_rewards_and_ends(played: list[Trajectories]):
    """One environment's actions, given to an emulator of the same seed, lead through the same states."""
    observations, actions = (
        torch.cat([getattr(block, name)[:, 0] for block in played]).cpu().numpy()
        for name in ("observations", "actions")
    )
    rewards, ends = (
        torch.cat([getattr(block, name)[:, 0] for block in played]).cpu().numpy() for name in ("rewards", "ends")
    )
    assert ends.any()
    assert rewards.any()
    with AtariEnvs("breakout", 3, "noop", stage_seed(0, "envs")) as envs:
        step = envs.reset()
        total, returns = 0.0, []
        for time in range(len(actions)):
            assert np.array_equal(step.observations[0], observations[time]), time
            lives = step.lives[0]
            step = envs.step(np.array([actions[time], 0, 0]))
            assert rewards[time] == np.sign(step.rewards[0])
            assert ends[time] == (step.ended[0] or step.lives[0] < lives)
            total += step.rewards[0]
            if step.ended[0]:
                returns.append(total)
                break
    assert returns, "no game ended"
    assert returns[0] in [value for block in played for value in block.returns]


def test_actions_are_drawn_from_the_policy(played: list[Trajectories], student: Network):
    actions = torch.cat([block.actions.flatten() for block in played])
    states = torch.cat([block.observations.flatten(0, 1) for block in played])
    shares = actions.bincount(minlength=4) / len(actions)
    assert torch.allclose(shares, batched_outputs(student, states).softmax(1).mean(0), atol=0.05)


@pytest.mark.parametrize("envs", [1, 4])
def test_the_seed_decides(student: Network, teacher: Agent, envs: int):
    one, same, other = (blocks(student, teacher, 1, envs, 30, seed)[0] for seed in (3, 3, 4))
    assert one.actions.equal(same.actions)
    assert one.observations.equal(same.observations)
    assert not one.actions.equal(other.actions)
