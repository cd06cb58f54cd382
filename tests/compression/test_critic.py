"""The critic finds linear values again and follows them; advantages are Stable-Baselines3's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from lrp_compress.compression.critic import MEMORY, LinearCritic, estimate_advantages

UNITS = 12


def states(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, UNITS, generator=torch.Generator().manual_seed(seed)).relu() * 40


def test_a_new_critic_expects_nothing():
    assert not LinearCritic().values(states(5)).any()


def test_linear_values_are_found_again():
    weights = torch.linspace(-1, 1, UNITS)
    critic = LinearCritic()
    critic.fit(states(200), states(200) @ weights + 3)
    others = states(50, seed=1)
    assert critic.values(others).shape == (50, 3)
    assert torch.allclose(critic.values(others), others @ weights + 3, atol=0.2)


def test_a_unit_that_is_always_zero_does_no_harm():
    hidden = states(200)
    hidden[..., 4] = 0
    critic = LinearCritic()
    critic.fit(hidden, hidden.sum(-1))
    assert torch.allclose(critic.values(hidden), hidden.sum(-1), rtol=0.01)


def test_what_is_long_ago_fades():
    critic, hidden = LinearCritic(), states(200)
    critic.fit(hidden, torch.full((200, 3), 10.0))
    fits = 30
    for _ in range(fits):
        critic.fit(hidden, torch.zeros(200, 3))
    old = MEMORY**fits / sum(MEMORY**age for age in range(fits + 1))  # share of the first fit
    assert critic.values(hidden).mean().item() == pytest.approx(10 * old, rel=0.05)


def test_a_copy_goes_on_as_the_original():
    one, other = LinearCritic(), LinearCritic()
    one.fit(states(20), states(20).sum(-1))
    other.load_state_dict(one.state_dict())
    for critic in (one, other):
        critic.fit(states(20, 1), states(20, 1).mean(-1))
    assert one.fits == other.fits == 2
    assert one.values(states(9, 2)).equal(other.values(states(9, 2)))


def test_advantages_are_those_of_stable_baselines3():
    steps, envs, gamma, gae_lambda = 40, 5, 0.97, 0.9
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(steps, envs)), rng.normal(size=(steps + 1, envs))
    ends = rng.random((steps, envs)) < 0.2
    begins = np.vstack([np.ones((1, envs), dtype=bool), ends[:-1]])
    buffer = RolloutBuffer(steps, spaces.Box(0, 1, (1,)), spaces.Discrete(2), "cpu", gae_lambda, gamma, envs)
    for time in range(steps):
        value = torch.from_numpy(values[time]).float()
        buffer.add(np.zeros((envs, 1)), np.zeros(envs), rewards[time], begins[time], value, torch.zeros(envs))
    buffer.compute_returns_and_advantage(torch.from_numpy(values[-1]).float(), ends[-1])
    ours = estimate_advantages(
        torch.from_numpy(rewards).float(), torch.from_numpy(ends), torch.from_numpy(values).float(), gamma, gae_lambda
    )
    assert np.allclose(ours.numpy(), buffer.advantages, atol=1e-5)
