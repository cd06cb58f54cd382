"""The vector environment against gymnasium's own preprocessing, its protocols, and what it refuses."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.environments.atari import PROTOCOLS, AtariEnvs, Interface, Protocol, Step, envs_for, game_spaces
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.networks.spaces import ATARI
from lrp_compress.support.errors import UserError
from lrp_compress.support.processes import process_start
from tests.commands.forks import Forks

pytestmark = pytest.mark.slow

BREAKOUT_ACTIONS = ["NOOP", "FIRE", "RIGHT", "LEFT"]


@pytest.fixture(autouse=True)
def _plain_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a protocol without any randomness, under which other stacks can be compared."""
    monkeypatch.setitem(PROTOCOLS, "plain", Protocol(repeat_action_probability=0.0, noop_max=0))


def played(envs: AtariEnvs, actions: NDArray[np.int64]) -> list[Step]:
    """Reset and play `actions`, shape (steps, envs)."""
    with envs:
        return [envs.reset(), *(envs.step(row) for row in actions)]


def random_actions(steps: int, envs: int, actions: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(actions, size=(steps, envs))


def same(one: list[Step], other: list[Step], rows: slice = slice(None), other_rows: slice = slice(None)) -> bool:
    return all(
        np.array_equal(getattr(a, name)[rows], getattr(b, name)[other_rows])
        for a, b in zip(one, other, strict=True)
        for name in ("observations", "rewards", "ended", "capped", "first", "lives")
    )


def peer_steps(game_id: str, actions: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], float, bool, bool, int]]:
    """Play one game of gymnasium, the reset in a step of its own: observation, reward, ended, first, lives."""
    gymnasium.register_envs(ale_py)
    game = gymnasium.make(f"ALE/{game_id}-v5", frameskip=1, repeat_action_probability=0.0, disable_env_checker=True)
    env = FrameStackObservation(AtariPreprocessing(game, noop_max=0), 4, padding_type="zero")
    observation, info = env.reset(seed=0)
    yield observation, 0.0, False, True, info["lives"]
    ended = False
    for action in actions:
        if ended:
            ended = False
            observation, info = env.reset()
            yield observation, 0.0, False, True, info["lives"]
        else:
            observation, reward, terminated, truncated, info = env.step(action)
            ended = terminated or truncated
            yield observation, float(reward), ended, False, info["lives"]
    env.close()


@pytest.mark.parametrize(
    ("game", "game_id", "actions", "steps"),
    [("breakout", "Breakout", 4, 450), ("space_invaders", "SpaceInvaders", 6, 700)],
)
def test_the_games_are_gymnasiums(game: str, game_id: str, actions: int, steps: int):
    played_actions = random_actions(steps, 2, actions)
    own = played(AtariEnvs(game, 2, "plain", seed=0), played_actions)
    for env in range(2):
        ends = 0
        for step, peer in zip(own, peer_steps(game_id, played_actions[:, env]), strict=True):
            observation, reward, ended, first, lives = peer
            assert np.array_equal(step.observations[env], observation)
            assert (step.rewards[env], step.ended[env], step.first[env]) == (reward, ended, first)
            assert step.lives[env] == lives
            ends += ended
        assert ends >= 1


def test_rewards_are_unclipped():
    steps = played(AtariEnvs("space_invaders", 2, "noop", seed=0), random_actions(200, 2, 6))
    rewards = np.array([step.rewards for step in steps])
    assert rewards.max() > 1
    assert set(np.unique(rewards)) <= {0, 5, 10, 15, 20, 25, 30, 200}


def test_the_types_and_shapes_are_as_documented():
    step = played(AtariEnvs("breakout", 3, "noop", seed=0), random_actions(1, 3, 4))[-1]
    assert (step.observations.dtype, step.observations.shape) == (np.uint8, (3, 4, 84, 84))
    assert (step.rewards.dtype, step.rewards.shape) == (np.float64, (3,))
    for flags in (step.ended, step.capped, step.first):
        assert (flags.dtype, flags.shape) == (np.bool_, (3,))
    assert (step.lives.dtype, step.lives.tolist()) == (np.int64, [5, 5, 5])


@pytest.mark.parametrize(("game", "minimal"), [("pong", 6), ("freeway", 3), ("seaquest", 18)])
def test_an_environment_declares_what_it_gives_and_takes(game: str, minimal: int):
    spaces = game_spaces(game)
    assert spaces.observations == ATARI
    assert {name: len(actions) for name, actions in spaces.actions.items()} == {"minimal": minimal, "full": 18}
    assert spaces.action_sets == ({minimal: "minimal", 18: "full"} if minimal < 18 else {18: "full"})
    with AtariEnvs(game, 2, "noop", seed=0) as envs:
        step = envs.reset()
        assert envs.observations == spaces.observations
        assert (step.observations.shape[1:], str(step.observations.dtype)) == (ATARI.shape, ATARI.dtype)


def test_observations_of_earlier_steps_stay_as_they_were():
    with AtariEnvs("space_invaders", 1, "plain", seed=0) as envs:
        kept = envs.reset().observations
        copied = kept.copy()
        for _ in range(5):
            envs.step(np.array([1]))
    assert np.array_equal(kept, copied)


@pytest.mark.parametrize("protocol", ["noop", "sticky"])
def test_the_same_seed_is_the_same_play_whatever_the_threads(protocol: str):
    actions = random_actions(80, 2, 6)
    one = played(AtariEnvs("space_invaders", 2, protocol, seed=5, threads=1), actions)
    with AtariEnvs("space_invaders", 2, protocol, seed=5, threads=2) as envs:
        for _ in range(2):  # a reset starts the random streams again
            again = [envs.reset(), *(envs.step(row) for row in actions)]
    assert same(one, again)
    # environment i has the seed 5 + i
    shifted = played(AtariEnvs("space_invaders", 1, protocol, seed=6), actions[:, 1:])
    assert same(one, shifted, slice(1, 2))
    unlike = played(AtariEnvs("space_invaders", 1, protocol, seed=5), actions[:, 1:])
    assert not same(unlike, shifted)


def test_sticky_actions_repeat_the_previous_one():
    plain = AtariEnvs("space_invaders", 2, "plain", seed=0)
    sticky = AtariEnvs("space_invaders", 2, "sticky", seed=0)
    moving, still = random_actions(60, 2, 6), np.zeros((60, 2), dtype=np.int64)
    one, other = played(plain, moving), played(sticky, moving)
    assert np.array_equal(one[0].observations, other[0].observations)
    assert not np.array_equal(one[-1].observations, other[-1].observations)
    # where every action is the one before, sticking to it changes nothing
    unmoved = [played(AtariEnvs("space_invaders", 2, name, seed=0), still) for name in ("plain", "sticky")]
    assert same(*unmoved)


def test_noop_starts_vary_and_sticky_starts_do_not():
    different = {}
    for protocol in ("noop", "sticky"):
        starts = []
        with AtariEnvs("freeway", 3, protocol, 0, Interface(max_frames=8)) as envs:
            step = envs.reset()
            for _ in range(24):
                starts += [observation.tobytes() for observation in step.observations[step.first]]
                step = envs.step(np.zeros(3, dtype=np.int64))
        assert len(starts) == 3 * 8
        different[protocol] = len(set(starts))
    assert different["sticky"] == 1
    assert 6 <= different["noop"] <= 30


def test_a_lost_life_does_not_end_an_episode():
    steps = played(
        AtariEnvs("breakout", 2, "noop", 0, Interface(fire_on_life_loss=True)), np.zeros((300, 2), dtype=np.int64)
    )
    lives = np.array([step.lives for step in steps])
    ended = np.array([step.ended for step in steps])
    assert set(lives.flat) == {0, 1, 2, 3, 4, 5}
    assert np.array_equal(ended, lives == 0)
    first = np.array([step.first for step in steps])
    assert np.array_equal(first[1:], ended[:-1])
    assert first[0].all()


def test_without_the_option_nobody_serves_the_ball():
    steps = played(AtariEnvs("breakout", 2, "noop", seed=0), np.zeros((300, 2), dtype=np.int64))
    assert all((step.lives == 5).all() and not step.ended.any() for step in steps)


@pytest.mark.parametrize(("game", "steps", "over"), [("breakout", 400, 1), ("space_invaders", 600, 0)])
def test_fire_is_pressed_after_each_lost_life_and_never_else(game: str, steps: int, over: int):
    chosen = np.random.default_rng(0).choice([0, 2, 3], size=(steps, 1))
    pressed = played(AtariEnvs(game, 1, "plain", 0, Interface(fire_on_life_loss=True)), chosen)
    losses = ends = 0
    with AtariEnvs(game, 1, "plain", seed=0) as envs:
        before = now = envs.reset()
        by_hand = [now]
        for row in chosen:
            lost = (now.lives < before.lives) & ~now.ended
            before, now = now, envs.step(np.where(now.first | lost, 1, row))
            by_hand.append(now)
            losses += int(lost.sum())
            ends += int(now.ended.sum())
    assert same(pressed, by_hand)
    assert losses >= 1
    assert ends >= over
    if game == "space_invaders":  # where one shot too many would be seen
        chosen[200] = 1
        assert not same(pressed, played(AtariEnvs(game, 1, "plain", 0, Interface(fire_on_life_loss=True)), chosen))


def test_fire_in_a_game_that_has_none():
    with pytest.raises(UserError, match=r"freeway has no FIRE action.*teacher\.fire_on_life_loss=false"):
        AtariEnvs("freeway", 1, "noop", 0, Interface(fire_on_life_loss=True))
    AtariEnvs("freeway", 1, "noop", 0, Interface(fire_on_life_loss=True, action_set="full")).close()


def test_the_full_action_set():
    with AtariEnvs("breakout", 1, "noop", seed=0) as envs:
        assert (envs.actions, list(envs.action_names)) == (4, BREAKOUT_ACTIONS)
    with AtariEnvs("breakout", 1, "noop", 0, Interface(action_set="full")) as envs:
        assert envs.actions == 18


def test_the_frame_cap_cuts_an_episode():
    steps = played(AtariEnvs("breakout", 2, "plain", 0, Interface(max_frames=80)), np.zeros((45, 2), dtype=np.int64))
    for t, step in enumerate(steps):
        assert (step.capped == (t in (20, 41))).all()
        assert (step.ended == step.capped).all()
        assert (step.first == (t in (0, 21, 42))).all()


def test_game_over_is_not_a_cap():
    steps = played(
        AtariEnvs("breakout", 1, "noop", 0, Interface(fire_on_life_loss=True)), np.zeros((300, 1), dtype=np.int64)
    )
    assert any(step.ended.any() for step in steps)
    assert not any(step.capped.any() for step in steps)


@pytest.mark.parametrize("protocol", ["noop", "sticky"])
def test_restart_touches_the_given_rows_only(protocol: str):
    actions = random_actions(160, 3, 6)
    rows = np.array([False, True, False])
    untouched = played(AtariEnvs("space_invaders", 3, protocol, seed=3), actions)
    with AtariEnvs("space_invaders", 3, protocol, seed=3) as envs:
        envs.reset()
        for row in actions[:60]:
            before = envs.step(row)
        step = envs.restart(rows)
        after = [envs.step(row) for row in actions[60:]]
    assert step.first.tolist() == rows.tolist()
    assert not step.ended.any()
    assert not step.rewards.any()
    assert np.array_equal(step.observations[~rows], before.observations[~rows])
    assert not step.observations[1, :3].any()  # nothing before the start of an episode
    assert step.observations[1, 3].any()
    others = slice(0, 3, 2)
    assert same(after, untouched[61:], others, others)
    assert not after[0].first.any()
    assert not same(after, untouched[61:], slice(1, 2), slice(1, 2))


def test_restart_leaves_ended_rows_their_turn():
    """An ended row begins anew in the next step unless it was restarted itself."""
    with AtariEnvs("space_invaders", 2, "plain", 0, Interface(max_frames=40)) as envs:
        envs.reset()
        for _ in range(10):
            step = envs.step(np.zeros(2, dtype=np.int64))
        assert step.ended.all()
        step = envs.restart(np.array([True, False]))
        assert step.ended.tolist() == [False, True]
        step = envs.step(np.zeros(2, dtype=np.int64))
        assert step.first.tolist() == [False, True]
        frames_seen = step.observations.any(axis=(2, 3)).sum(axis=1)
        assert frames_seen.tolist() == [2, 1]


def test_restart_serves_the_ball_again():
    with AtariEnvs("breakout", 2, "plain", 0, Interface(fire_on_life_loss=True)) as envs:
        envs.reset()
        still = np.zeros(2, dtype=np.int64)
        fresh = [envs.step(still) for _ in range(40)]
        step = envs.restart(np.array([True, False]))
        assert step.lives[0] == 5
        again = [envs.step(still) for _ in range(40)]
    for one, other in zip(fresh, again, strict=True):
        assert np.array_equal(one.observations[0], other.observations[0])


@pytest.mark.parametrize(
    "actions",
    [[0, 4], [-1, 0], [0, 1, 2], [0], [[0, 1]], [], 0],
    ids=["high", "low", "long", "short", "2d", "none", "0d"],
)
def test_wrong_actions_are_refused_and_harmless(actions: object):
    with AtariEnvs("breakout", 2, "plain", seed=0) as envs:
        envs.reset()
        with pytest.raises(ValueError, match=r"2 integers in \[0, 4\)"):
            envs.step(np.array(actions, dtype=np.int64))
        assert not envs.step(np.array([3, 0])).first.any()


def test_actions_may_be_of_any_integer_type():
    seen = set()
    with AtariEnvs("breakout", 1, "plain", seed=0) as envs:
        for dtype in (np.int8, np.uint8, np.int32, np.int64):
            envs.reset()
            seen.add(envs.step(np.array([3], dtype=dtype)).observations.tobytes())
    assert len(seen) == 1


def test_unknown_names():
    with pytest.raises(UserError, match=r"game\.name=brekout is unknown \(did you mean breakout\?\)"):
        AtariEnvs("brekout", 1, "noop", seed=0)
    with pytest.raises(UserError, match=r"protocol=stiky is unknown \(did you mean sticky\?\)"):
        AtariEnvs("breakout", 1, "stiky", seed=0)


@pytest.mark.parametrize("frame_skip", [1, 4, 7])
def test_a_step_has_as_many_frames_as_asked(frame_skip: int):
    most = 10 * frame_skip
    with AtariEnvs("pong", 1, "plain", 0, Interface(frame_skip=frame_skip, max_frames=most)) as envs:
        envs.reset()
        steps = next(number for number in range(1, 100) if envs.step(np.array([0])).capped.all())
    assert steps == 10


def agent(actions: int, game: str = "breakout", action_set: str = "minimal", fire: bool = False) -> Agent:
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "q", actions)
    return Agent(network, AgentInfo(game, action_set, fire, {}, {}))


def test_an_agent_gets_its_own_environments():
    with envs_for(agent(18, action_set="full"), 2, "plain", 0, max_frames=40) as envs:
        assert (envs.envs, envs.actions) == (2, 18)
        envs.reset()
        assert [envs.step(np.array([17, 17])).capped.all() for _ in range(10)] == [False] * 9 + [True]
    with envs_for(agent(4, fire=True), 1, "noop", 0) as envs:
        envs.reset()
        assert min(envs.step(np.array([0])).lives[0] for _ in range(100)) < 5


@pytest.mark.parametrize(("actions", "action_set", "has"), [(6, "minimal", 4), (4, "full", 18)])
def test_an_agent_with_another_number_of_actions(actions: int, action_set: str, has: int):
    with pytest.raises(UserError, match=f"the agent has {actions} actions, but breakout's {action_set}.* {has};"):
        envs_for(agent(actions, action_set=action_set), 1, "noop", 0)


def test_a_signal_while_a_step_is_awaited_does_not_keep_the_process(forks: Forks, tmp_path: Path):
    program = """
import numpy
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.support.processes import sigterm_exits
with sigterm_exits(), AtariEnvs("pong", 8, "noop", seed=0) as envs:
    envs.reset()
    print("ready", flush=True)
    while True:
        envs.step(numpy.zeros(8, int))
"""
    for _ in range(3):
        with forks.start("-c", [program], tmp_path) as process:
            assert process.first_line() == "ready"
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            process.until(lambda: process_start(process.pid) is None)
            assert process.wait().returncode == 143


def test_closing_with_a_step_in_flight():
    with AtariEnvs("breakout", 4, "noop", seed=0) as envs:
        envs.reset()
        envs.send(np.zeros(4, dtype=np.int64))


def test_an_error_inside_closes_the_environments():
    envs = AtariEnvs("breakout", 2, "noop", seed=0)

    def fail() -> None:
        with envs:
            envs.reset()
            envs.send(np.zeros(2, dtype=np.int64))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert envs._env.closed
