"""Single games, decided by any function."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.environments.acting import ActionRule
from lrp_compress.environments.atari import AtariEnvs, Interface
from lrp_compress.environments.games import Game, play_game, turns

pytestmark = pytest.mark.slow

SAMPLE = ActionRule("sample", 0.0)


def brightness(observations: NDArray[np.uint8]) -> Tensor:
    """Outputs that depend on what is seen."""
    mean = torch.from_numpy(observations).float().mean((1, 2, 3))
    return torch.stack([mean.sin(), mean.cos(), (2 * mean).sin(), (2 * mean).cos()], dim=1)


def play(seed: int) -> Game:
    with AtariEnvs("breakout", 1, "noop", seed, Interface(max_frames=800), threads=1) as envs:
        return play_game(envs, brightness, SAMPLE, seed, stall_limit=1000)


def test_the_same_seed_gives_the_same_game():
    first, again, other = play(1), play(1), play(2)
    assert first.same_as(again)
    assert not first.same_as(other)
    steps = len(first.actions)
    assert first.frames.shape == (steps, 84, 84)
    assert first.outputs.shape == (steps, 4)


def test_the_return_is_the_sum_of_the_rewards():
    with AtariEnvs("breakout", 1, "noop", 1, Interface(max_frames=800), threads=1) as envs:
        played = list(turns(envs, brightness, SAMPLE, 1, stall_limit=1000))
    assert sum(turn.after.rewards[0] for turn in played) == play(1).score
    assert played[-1].after.ended[0]
    assert [turn.after.ended[0] for turn in played].count(True) == 1


def test_a_game_in_which_nothing_happens_is_ended():
    def nothing(observations: NDArray[np.uint8]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0, 0.0]])

    with AtariEnvs("breakout", 1, "noop", 0, threads=1) as envs:
        assert len(list(turns(envs, nothing, ActionRule("greedy", 0.0), 0, stall_limit=30))) == 30
