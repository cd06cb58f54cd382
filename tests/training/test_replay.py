"""Transitions come back as they went in, from a fraction of the memory."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer

from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.training.replay import FrameReplayBuffer
from lrp_compress.training.vec_env import AtariVecEnv

pytestmark = pytest.mark.slow

ENVS = 2


@functools.cache  # only looked at
def filled(steps: int, size: int) -> tuple[FrameReplayBuffer, dict[bytes, set[tuple[int, float, float, bytes]]]]:
    """Play at random into a buffer; also every transition by hand, keyed by its observation."""
    rng = np.random.default_rng(0)
    with contextlib.closing(AtariVecEnv(AtariEnvs("breakout", ENVS, "noop", 3))) as env:
        buffer = FrameReplayBuffer(size, env.observation_space, env.action_space, "cpu", ENVS)
        truth: dict[bytes, set[tuple[int, float, float, bytes]]] = {}
        observations = env.reset()
        for _ in range(steps):
            actions = rng.integers(0, 4, ENVS)
            after, rewards, dones, infos = env.step(actions)
            following = after.copy()
            for row in np.flatnonzero(dones):
                following[row] = infos[row]["terminal_observation"]
            buffer.add(observations, following, actions, rewards, dones, infos)
            for row in range(ENVS):
                done = bool(dones[row])
                end = b"" if done else following[row].tobytes()
                entry = (int(actions[row]), float(rewards[row]), float(done), end)
                truth.setdefault(observations[row].tobytes(), set()).add(entry)
            observations = after
    return buffer, truth


@pytest.mark.parametrize("size", [4000, 300])  # the smaller one is written over several times
def test_transitions_are_those_that_were_played(size: int):
    buffer, truth = filled(700, size)
    done = 0
    for _ in range(20):
        batch = buffer.sample(64)
        done += int(batch.dones.sum())
        for before, action, reward, end, after in zip(
            batch.observations, batch.actions, batch.rewards, batch.dones, batch.next_observations, strict=True
        ):
            following = b"" if end else after.numpy().tobytes()
            entry = (int(action), float(reward), float(end), following)
            assert entry in truth[before.numpy().tobytes()]
    assert done > 0


def test_nearly_every_transition_can_be_drawn():
    buffer, _ = filled(700, 4000)
    assert len(buffer.frames.followed(2)) >= ENVS * 700 - ENVS  # all but the newest, which has no successor yet


def test_samples_have_the_shapes_of_stable_baselines3():
    buffer, _ = filled(60, 200)
    theirs = ReplayBuffer(200, buffer.observation_space, buffer.action_space, "cpu", ENVS)
    frames = np.zeros((ENVS, 4, 84, 84), np.uint8)
    theirs.add(frames, frames, np.zeros(ENVS), np.zeros(ENVS), np.zeros(ENVS), [{}] * ENVS)
    own = buffer.sample(8)
    for name, tensor in theirs.sample(8)._asdict().items():
        if tensor is not None:
            assert getattr(own, name).shape == tensor.shape, name
            assert getattr(own, name).dtype == tensor.dtype, name


def test_a_saved_buffer_goes_on():
    buffer, _ = filled(200, 1000)
    other = FrameReplayBuffer(1000, buffer.observation_space, buffer.action_space, "cpu", ENVS)
    other.load_state_dict({name: tensor.clone() for name, tensor in buffer.state_dict().items()})
    assert torch.equal(other.frames.followed(2), buffer.frames.followed(2))
    indices = other.frames.stored()
    for own, saved in zip(other.frames.gather(indices), buffer.frames.gather(indices), strict=True):
        assert torch.equal(own, saved)
    frames = np.full((ENVS, 4, 84, 84), 7, np.uint8)
    before = len(other.frames)
    other.add(frames, frames, np.zeros(ENVS), np.zeros(ENVS), np.zeros(ENVS), [{}] * ENVS)
    assert len(other.frames) == before + ENVS
    newest = other.frames.stored()
    assert (other.frames.gather(newest)[0] == 7).all(dim=(1, 2, 3)).sum() == ENVS  # whole stacks: games begin anew
