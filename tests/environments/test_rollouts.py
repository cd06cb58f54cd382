"""Rollouts hold what the agent saw and said, spread over its games, each frame once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.environments.acting import ActionRule, act
from lrp_compress.environments.atari import envs_for
from lrp_compress.environments.groups import Acting, Emulators
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts, load_rollouts, save_rollouts, stacks
from lrp_compress.networks.nature import nature_cnn

pytestmark = pytest.mark.slow

SAMPLE = ActionRule("sample", 0.0)
EMULATORS = Emulators()  # kept, which nobody can tell (tests/atari/test_groups.py)


def agent() -> Agent:
    torch.manual_seed(0)
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "policy", 4).eval()
    return Agent(network, AgentInfo("breakout", "minimal", True, {}, {}))


def collected(states: int, envs: int, block: int, every: int, seed: int = 3) -> Rollouts:
    return collect_rollouts(
        agent(), RolloutsConfig(states, envs, block, every), Acting(SAMPLE, "noop", seed, EMULATORS)
    )


@pytest.fixture(scope="module")
def few() -> Rollouts:
    return collected(64, 2, 8, 2)


def seen_by_hand(envs: int, steps: int, seed: int) -> list[list[tuple[int, int, NDArray[np.uint8], torch.Tensor]]]:
    """Play as the agent does in two groups of one: per environment (time, episode, observation, outputs)."""
    player = agent()
    seen: list[list[tuple[int, int, NDArray[np.uint8], torch.Tensor]]] = [[] for _ in range(envs)]
    for row, own in enumerate(seen):
        rng, episode = np.random.default_rng([seed, row]), 0
        with envs_for(player, 1, "noop", seed + row) as games:
            step = games.reset()
            for t in range(steps):
                actions, outputs = act(player.network, step.observations, SAMPLE, rng)
                if step.ended[0]:
                    episode += 1
                else:
                    own.append((t, episode, step.observations[0], outputs[0]))
                step = games.step(actions)
    return seen


def test_the_states_are_those_the_agent_saw():
    """Random play of Breakout loses its five lives within 200 steps or so: both environments begin anew."""
    states, envs = 600, 2
    rollouts = collected(states, envs, block=10_000, every=1)
    assert len(rollouts) == states
    seen = seen_by_hand(envs, states // envs + 20, seed=3)
    expected = [state for own in seen for state in own[: states // envs]]
    observations = rollouts.observations(torch.arange(states))
    assert (observations.dtype, observations.shape) == (torch.uint8, (states, 4, 84, 84))
    assert np.array_equal(observations.numpy(), np.stack([state[2] for state in expected]))
    # not to the bit: the network sees other batches
    torch.testing.assert_close(rollouts.outputs, torch.stack([state[3] for state in expected]), rtol=0, atol=1e-5)
    by_hand = torch.tensor([state[1] for state in expected]).view(envs, -1)
    assert by_hand.max(1).values.min() >= 1
    own, other = rollouts.episodes.view(envs, -1)
    assert torch.equal(own, by_hand[0])
    assert len((other - by_hand[1]).unique()) == 1
    assert other.min() > own.max()
    assert (rollouts.protocol, rollouts.seed) == ("noop", 3)


def test_outputs_are_the_networks(few: Rollouts):
    with torch.no_grad():
        expected = agent().network(few.observations(torch.arange(64)))
    torch.testing.assert_close(few.outputs, expected, rtol=0, atol=1e-4)


def test_blocks_are_spread_over_the_games():
    """One block in six, in each environment at times of its own."""
    states, envs, block, every = 120, 2, 10, 6
    rollouts = collected(states, envs, block, every)
    seen = seen_by_hand(envs, 450, seed=3)
    observations = rollouts.observations(torch.arange(states)).numpy()
    first_blocks = []
    for row in range(envs):
        own, at, times = seen[row], 0, []
        for i in range(row * states // envs, (row + 1) * states // envs):
            while not (np.array_equal(own[at][2], observations[i]) and torch.allclose(own[at][3], rollouts.outputs[i])):
                at += 1
            times.append(own[at][0])
            at += 1
        assert times == sorted(set(times))
        assert times[-1] > 0.8 * every * states / envs
        first_blocks.append(times[0])
    assert len(set(first_blocks)) > 1
    assert len(rollouts.episodes.unique()) >= 2 * envs


@pytest.mark.parametrize(("block", "every"), [(16, 1), (16, 3), (1, 4)])
def test_frames_are_shared_within_a_block(block: int, every: int):
    states = 220
    rollouts = collected(states, 2, block, every)
    assert len(rollouts) == states
    blocks = states / block
    count = len(rollouts.frames)
    episodes = len(rollouts.episodes.unique())
    assert count >= states
    assert count <= (states + 3 * (2 + episodes) if every == 1 else states + 3 * (blocks + 2 + episodes))
    assert rollouts.frames.dtype == torch.uint8


@pytest.mark.parametrize(
    ("states", "envs", "block", "every"),
    [(151, 2, 7, 3), (24, 6, 16, 8), (257, 2, 16, 1), (40, 3, 3, 5)],
)
def test_as_many_states_as_asked_for(states: int, envs: int, block: int, every: int):
    rollouts = collected(states, envs, block, every)
    assert len(rollouts) == states
    for values in (rollouts.starts, rollouts.outputs, rollouts.episodes):
        assert len(values) == states
    assert len(rollouts.starts.unique()) == states
    assert len(rollouts.episodes.unique()) >= envs  # everyone contributes
    assert int(rollouts.starts.max()) + 4 <= len(rollouts.frames)


def test_the_seed_decides(few: Rollouts):
    same, other = (collected(64, 2, 8, 2, seed) for seed in (3, 4))
    for name in ("frames", "starts", "outputs", "episodes"):
        assert torch.equal(getattr(few, name), getattr(same, name)), name
    assert not torch.equal(few.outputs, other.outputs)


def test_save_and_load(tmp_path: Path, few: Rollouts):
    path = tmp_path / "cache" / "rollouts.safetensors"
    save_rollouts(path, few)
    loaded = load_rollouts(path, "noop", 3)
    for name in ("frames", "starts", "outputs", "episodes"):
        assert torch.equal(getattr(loaded, name), getattr(few, name)), name
        assert getattr(loaded, name).dtype == getattr(few, name).dtype, name
    assert (loaded.protocol, loaded.seed) == ("noop", 3)
    picked = torch.tensor([5, 0, 63])
    assert torch.equal(loaded.observations(picked), few.observations(torch.arange(64))[picked])


def test_stacks():
    frames = torch.randint(0, 256, (9, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([0, 5, 2, 2])
    assert torch.equal(stacks(frames, starts), torch.stack([frames[start : start + 4] for start in starts]))
    with pytest.raises(IndexError):
        stacks(frames, torch.tensor([6]))


def test_whole_games_are_held_out():
    def of(*episodes: int) -> Rollouts:
        count = len(episodes)
        frames = torch.arange(count + 3, dtype=torch.uint8)[:, None, None].expand(-1, 84, 84).contiguous()
        outputs = torch.arange(count)[:, None].float()
        return Rollouts(frames, torch.arange(count), outputs, torch.tensor(episodes), "noop", 0)

    play = of(0, 0, 0, 1, 1, 2, 2, 2, 3, 3)
    assert play.held_out(1 / 6).tolist() == [False] * 8 + [True] * 2
    assert play.held_out(0.3).tolist() == [False] * 5 + [True] * 5
    assert of(*[0] * 10).held_out(0.2).tolist() == [False] * 8 + [True] * 2
    part = play.part(play.held_out(1 / 6))
    assert part.outputs.flatten().tolist() == [8, 9]
    assert part.observations[:, :, 0, 0].tolist() == [[8, 9, 10, 11], [9, 10, 11, 12]]
