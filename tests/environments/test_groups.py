"""Emulators are kept between those who need them, and nobody can tell."""

from __future__ import annotations

import numpy as np
import pytest

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.environments.atari import AtariEnvs, Step
from lrp_compress.environments.groups import Emulators, env_groups, reset_groups
from lrp_compress.networks.nature import nature_cnn

pytestmark = pytest.mark.slow

ENVS = 3


def agent(game: str = "breakout", actions: int = 4) -> Agent:
    network = nature_cnn({"conv1": 2, "conv2": 2, "conv3": 2, "fc1": 2}, "policy", actions)
    return Agent(network, AgentInfo(game, "minimal", False, {}, {}))


def played(groups: list[AtariEnvs], steps: int = 60) -> list[Step]:
    rng = np.random.default_rng(0)
    taken = reset_groups(groups)
    for _ in range(steps):
        taken += [envs.step(rng.integers(4, size=envs.envs)) for envs in groups]
    return taken


def same(one: list[Step], other: list[Step]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a.observations, b.observations) and np.array_equal(a.lives, b.lives) for a, b in pairs)


@pytest.mark.parametrize("protocol", ["noop", "sticky"])
def test_kept_emulators_play_the_games_of_new_ones(protocol: str):
    fresh = {seed: played(list(env_groups(agent(), ENVS, protocol, seed))) for seed in (5, 9)}
    assert not same(fresh[5], fresh[9])
    emulators = Emulators()
    lent = []
    for seed, steps in ((5, 60), (9, 3), (9, 60), (5, 60)):
        with emulators.groups(agent(), ENVS, protocol, seed) as groups:
            lent.append(set(map(id, groups)))
            assert [envs.envs for envs in groups] == [2, 1]
            assert same(played(groups, steps), fresh[seed][: 2 * (steps + 1)])
            groups[0].send(np.ones(2, dtype=np.int64))  # what is in flight when they are given back is forgotten
    assert all(groups == lent[0] for groups in lent)


def test_only_who_needs_the_same_gets_them():
    emulators = Emulators()
    wanted = agent(), ENVS, "noop", 0
    with emulators.groups(*wanted) as meanwhile, emulators.groups(*wanted) as others:
        first = set(map(id, meanwhile + others))
        assert len(first) == 4
    unlike = [
        (agent(), 2 * ENVS, "noop", {}),
        (agent(), ENVS, "sticky", {}),
        (agent(), ENVS, "noop", {"max_frames": 400}),
        (agent("pong", 6), ENVS, "noop", {}),
    ]
    for player, envs, protocol, more in unlike:
        with emulators.groups(player, envs, protocol, 0, **more) as groups:
            assert not first & set(map(id, groups))
    with emulators.groups(*wanted) as again:
        assert set(map(id, again)) <= first


def test_fewer_than_before_are_none_made():
    emulators = Emulators()
    with emulators.groups(agent(), ENVS, "noop", 0, count=ENVS) as groups:
        before = set(map(id, groups))
    with emulators.groups(agent(), 2, "noop", 7, count=2) as groups:
        assert set(map(id, groups)) < before
        expected = played(list(env_groups(agent(), 2, "noop", 7, count=2)))
        assert same(played(groups), expected)


def test_after_an_error_they_are_made_anew():
    emulators = Emulators()
    with pytest.raises(RuntimeError, match="oh"), emulators.groups(agent(), ENVS, "noop", 0) as broken:
        raise RuntimeError("oh")
    with emulators.groups(agent(), ENVS, "noop", 0) as groups:
        assert groups is not broken
        assert len(played(groups, 1)) == 4
