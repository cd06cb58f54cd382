"""What the learner sees of real games: clipped rewards, lives as episodes, games whole in the statistics."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from lrp_compress.environments.atari import AtariEnvs, Interface, Step
from lrp_compress.training.vec_env import AtariVecEnv

pytestmark = pytest.mark.slow

ENVS = 3


def by_hand(game: str, actions: list[np.ndarray], seed: int) -> list[Step]:
    """Play the same actions until the first game is over; after that the two go different ways."""
    with AtariEnvs(game, ENVS, "noop", seed) as envs:
        steps = [envs.reset()]
        for action in actions:
            steps.append(envs.step(action))
            if steps[-1].ended.any():
                break
    return steps


@pytest.mark.parametrize("game", ["breakout", "space_invaders"])
def test_steps_until_a_game_is_over(game: str):
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, 4, ENVS) for _ in range(1000)]
    steps = by_hand(game, actions, seed=5)
    with contextlib.closing(AtariVecEnv(AtariEnvs(game, ENVS, "noop", 5))) as env:
        np.testing.assert_array_equal(env.reset(), steps[0].observations)
        lives_lost = 0
        for before, after, action in zip(steps[:-1], steps[1:], actions, strict=False):
            observations, rewards, dones, infos = env.step(action)
            lost = after.lives < before.lives
            lives_lost += int(lost.sum())
            np.testing.assert_array_equal(rewards, np.sign(after.rewards))
            np.testing.assert_array_equal(dones, lost | after.ended)
            for row in range(ENVS):
                if dones[row]:
                    np.testing.assert_array_equal(infos[row]["terminal_observation"], after.observations[row])
                    assert infos[row]["TimeLimit.truncated"] is False
                assert ("episode" in infos[row]) == after.ended[row]
                if not after.ended[row]:  # a lost life changes nothing of what is seen
                    np.testing.assert_array_equal(observations[row], after.observations[row])
    assert lives_lost > 1
    row = int(np.flatnonzero(steps[-1].ended)[0])
    played = infos[row]["episode"]
    assert played == {"r": sum(step.rewards[row] for step in steps), "l": len(steps) - 1}
    assert np.abs([step.rewards for step in steps]).max() > (1 if game == "space_invaders" else 0)


def test_a_new_game_begins_where_one_is_over():
    rng = np.random.default_rng(1)
    games = 0
    with contextlib.closing(AtariVecEnv(AtariEnvs("breakout", ENVS, "noop", 0))) as env:
        env.reset()
        lengths = np.zeros(ENVS, dtype=int)
        while games < 4:
            observations, _, dones, infos = env.step(rng.integers(0, 4, ENVS))
            lengths += 1
            for row, info in enumerate(infos):
                if "episode" not in info:
                    continue
                games += 1
                assert dones[row]
                assert info["episode"]["l"] == lengths[row]
                lengths[row] = 0
                assert not observations[row, :3].any()  # nothing has been seen before
                assert observations[row, 3].any()
                first = observations[row, 3].copy()
                observations, _, again, _ = env.step(rng.integers(0, 4, ENVS))
                lengths += 1
                np.testing.assert_array_equal(observations[row, 2], first)  # no step of the new game is swallowed
                assert not again[row]
                break


def test_a_game_cut_at_the_frame_cap_is_truncated():
    with contextlib.closing(AtariVecEnv(AtariEnvs("pong", 1, "noop", 0, Interface(max_frames=200)))) as env:
        env.reset()
        steps = [env.step(np.zeros(1, dtype=int)) for _ in range(60)]
    cut = [infos[0] for *_, dones, infos in steps if dones[0]]
    assert cut
    assert all(info["TimeLimit.truncated"] for info in cut)


def test_spaces_are_those_of_stable_baselines3():
    theirs = VecFrameStack(make_atari_env("ALE/Pong-v5", 2, env_kwargs={"frameskip": 1}), 4)
    with contextlib.closing(AtariVecEnv(AtariEnvs("pong", 2, "noop", 0))) as env:
        assert env.action_space == theirs.action_space
        height, width, stack = theirs.observation_space.shape
        assert env.observation_space.shape == (stack, height, width)
        assert env.env_is_wrapped(object) == [False, False]
        with pytest.raises(AttributeError, match="share their settings"):
            env.set_attr("x", 1)
    theirs.close()
