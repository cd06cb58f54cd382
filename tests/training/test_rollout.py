"""PPO's samples are the base class's, to the last bit."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer

from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.training.rollout import PixelRolloutBuffer
from lrp_compress.training.vec_env import AtariVecEnv

ENVS, STEPS, BATCH = 3, 40, 32


@pytest.mark.slow
def test_minibatches_are_those_of_the_base_class():
    rng = np.random.default_rng(0)
    with contextlib.closing(AtariVecEnv(AtariEnvs("breakout", ENVS, "noop", 3))) as env:
        buffers = [
            kind(STEPS, env.observation_space, env.action_space, "cpu", gae_lambda=0.95, gamma=0.99, n_envs=ENVS)
            for kind in (PixelRolloutBuffer, RolloutBuffer)
        ]
        observations = env.reset()
        for _ in range(2):  # updates
            for buffer in buffers:
                buffer.reset()
            starts = np.ones(ENVS, dtype=bool)
            for _ in range(STEPS):
                actions = rng.integers(0, 4, ENVS)
                values, log_probs = torch.from_numpy(rng.normal(size=(2, ENVS)).astype(np.float32))
                after, rewards, dones, _ = env.step(actions)
                for buffer in buffers:
                    buffer.add(observations, actions[:, None], rewards, starts, values, log_probs)
                observations, starts = after, dones
            samples = []
            for buffer in buffers:
                buffer.compute_returns_and_advantage(values, starts)
                np.random.seed(1)
                samples.append([batch for _ in range(2) for batch in buffer.get(BATCH)])  # two epochs
            ours, theirs = samples
            assert len(ours) == len(theirs) == 2 * -(-ENVS * STEPS // BATCH)
            for mine, other in zip(ours, theirs, strict=True):
                for one, two in zip(mine, other, strict=True):
                    torch.testing.assert_close(one, two, rtol=0, atol=0)
