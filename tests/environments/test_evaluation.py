"""Returns are counted honestly, whatever way a game ends, and the statistics agree with SciPy's."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.config.schema import EvaluateConfig, GameConfig
from lrp_compress.environments.acting import ActionRule, act
from lrp_compress.environments.atari import envs_for
from lrp_compress.environments.evaluation import evaluate
from lrp_compress.environments.groups import Acting, Emulators
from lrp_compress.environments.returns import (
    Episode,
    Evaluation,
    bootstrap_interval,
    falls_below,
    human_normalised,
    interquartile_mean,
    load_evaluation,
    return_kept,
    save_evaluation,
)
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.nature import nature_cnn

pytestmark = pytest.mark.slow

GAME = GameConfig("breakout", "Breakout", 1.7, 30.5)
CONFIG = EvaluateConfig(
    episodes=4,
    pruned_episodes=2,
    envs=2,
    action="auto",
    epsilon=0.0,
    stall_limit=3000,
    max_frames=108_000,
    confidence=0.95,
)
EMULATORS = Emulators()  # kept, which nobody can tell (tests/atari/test_groups.py)
SAMPLE, GREEDY = ActionRule("sample", 0.0), ActionRule("greedy", 0.0)


def agent(fire: bool = True) -> Agent:
    torch.manual_seed(0)
    network = nature_cnn({"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}, "policy", 4).eval()
    return Agent(network, AgentInfo("breakout", "minimal", fire, {}, {}))


def idler(fire: bool) -> Agent:
    """Prefer NOOP whatever is on the screen."""
    made = agent(fire)
    with torch.no_grad():
        made.network.head.weight.zero_()
        made.network.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    return made


def evaluated(
    player: Agent, rule: ActionRule = SAMPLE, protocol: str = "noop", seed: int = 7, **changes: int
) -> Evaluation:
    config = dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]
    return evaluate(player, config, GAME, Acting(rule, protocol, seed, EMULATORS), "test")


def made(returns: list[float], protocol: str = "noop") -> Evaluation:
    """Evaluate nothing: only the returns and their mean are true."""
    episodes = [Episode(i, 0, score, 10, "over") for i, score in enumerate(returns)]
    return Evaluation(episodes, protocol, "sample", 0, float(np.mean(returns)), 0.0, 0.0, 0.0, 0.0)


def played_by_hand(env: int, steps: int, protocol: str, seed: int) -> tuple[list[float], list[int]]:
    """Record a long play of one of two environments, then cut it into episodes: returns and lengths."""
    player, rng = agent(), np.random.default_rng([seed, env])
    rewards, ended = [], []
    with envs_for(player, 1, protocol, seed + env) as games:
        step = games.reset()
        for _ in range(steps):
            actions, _ = act(player.network, step.observations, SAMPLE, rng)
            step = games.step(actions)
            rewards.append(step.rewards[0])
            ended.append(step.ended[0])
    returns, lengths, begin = [], [], 0
    for end in np.flatnonzero(ended):
        returns.append(float(sum(rewards[begin : end + 1])))
        lengths.append(int(end + 1 - begin))
        begin = end + 2  # one more step only returns the first observation of the next episode
    return returns, lengths


@pytest.mark.parametrize("protocol", ["noop", "sticky"])
def test_returns_are_sums_of_rewards(protocol: str):
    evaluation = evaluated(agent(), protocol=protocol)
    returns, lengths = zip(*(played_by_hand(env, 700, protocol, seed=7) for env in range(2)), strict=True)
    assert min(map(len, returns)) >= 2
    assert evaluation.returns.tolist() == [score for own in returns for score in own[:2]]
    assert [episode.length for episode in evaluation.episodes] == [length for own in lengths for length in own[:2]]
    assert evaluation.returns.max() > 0
    assert evaluation.ended("over") == 4
    assert (evaluation.protocol, evaluation.action, evaluation.seed) == (protocol, "sample", 7)


@pytest.mark.parametrize(("episodes", "envs", "played"), [(3, 2, [2, 2]), (5, 4, [2, 2, 2, 2]), (2, 8, [1, 1])])
def test_every_environment_plays_the_same_number_of_games(episodes: int, envs: int, played: list[int]):
    evaluation = evaluated(agent(), episodes=episodes, envs=envs)
    places = [(episode.env, episode.index) for episode in evaluation.episodes]
    assert places == [(env, index) for env, count in enumerate(played) for index in range(count)]
    lengths = {episode.length for episode in evaluation.episodes}
    assert len(lengths) > 1  # games do differ in length, so that first come, first served would have been a choice


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluated(agent())


def test_the_summary_is_of_the_returns(evaluation: Evaluation):
    returns = evaluation.returns
    assert evaluation.mean == returns.mean()
    assert (evaluation.ci_low, evaluation.ci_high) == bootstrap_interval(returns, 0.95, 7)
    assert evaluation.ci_low < evaluation.mean < evaluation.ci_high
    assert evaluation.iqm == interquartile_mean(returns)
    assert evaluation.human_normalised == pytest.approx((returns.mean() - 1.7) / 28.8)


def test_the_seed_decides(evaluation: Evaluation):
    assert evaluated(agent()) == evaluation
    assert evaluated(agent(), seed=8).episodes != evaluation.episodes


def test_kept_emulators_change_nothing(evaluation: Evaluation):
    emulators = Emulators()
    for seed, other in ((8, False), (7, True)):
        again = evaluate(agent(), CONFIG, GAME, Acting(SAMPLE, "noop", seed, emulators), "test")
        assert (again == evaluation) == other


def test_only_unfinished_games_are_decided_for(evaluation: Evaluation):
    player, decided = agent(), 0

    def outputs(observations: NDArray[np.uint8]) -> torch.Tensor:
        nonlocal decided
        decided += len(observations)
        return batched_outputs(player.network, torch.from_numpy(observations))

    assert evaluate(player, CONFIG, GAME, Acting(SAMPLE, "noop", 7), "test", outputs) == evaluation
    games = len(evaluation.episodes)
    # in an environment's second game one decision more, which is ignored: the step that begins it
    assert decided == sum(episode.length for episode in evaluation.episodes) + games - CONFIG.envs


def test_a_frozen_game_is_ended_and_counted():
    evaluation = evaluated(idler(fire=False), GREEDY, stall_limit=25)
    assert evaluation.ended("stalled") == len(evaluation.episodes) == 4
    assert evaluation.ended("over") == evaluation.ended("capped") == 0
    assert {(episode.length, episode.score) for episode in evaluation.episodes} == {(25, 0.0)}


def test_a_lost_life_is_no_stall():
    """Five lives of some 20 steps each: the game as a whole is longer than the limit."""
    evaluation = evaluated(idler(fire=True), GREEDY, stall_limit=60)
    assert evaluation.ended("over") == 4
    assert min(episode.length for episode in evaluation.episodes) > 60


def test_stalled_games_do_not_disturb_the_others():
    """The ball is seldom served: some games freeze while others go on."""
    rule = ActionRule("greedy", 0.06)
    evaluation = evaluated(idler(fire=False), rule, episodes=8, stall_limit=100, seed=1)
    assert evaluation.ended("stalled") >= 2
    assert evaluation.ended("over") >= 1
    assert [episode.env for episode in evaluation.episodes] == [0] * 4 + [1] * 4
    for episode in evaluation.episodes:
        assert episode.length >= 100
        assert 0 <= episode.score < 20
    assert (
        max(e.length for e in evaluation.episodes if e.end == "stalled") > 100
    )  # the limit counts from the last event


def test_the_frame_cap_cuts_games_which_are_counted():
    evaluation = evaluated(agent(), max_frames=80)
    assert evaluation.ended("capped") == 4
    assert {episode.length for episode in evaluation.episodes} == {20}


def test_interquartile_mean_is_scipys_trimmed_mean():
    rng = np.random.default_rng(0)
    for count in (2, 3, 4, 7, 8, 60, 101):
        values = rng.exponential(size=count)
        assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
    rows = rng.normal(size=(5, 13))
    assert interquartile_mean(rows) == pytest.approx(stats.trim_mean(rows, 0.25, axis=1))
    assert interquartile_mean(np.array([0.0, 1, 2, 1000])) == 1.5


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_is_scipys(confidence: float):
    values = np.random.default_rng(0).exponential(100, size=40)
    low, high = bootstrap_interval(values, confidence, 1)
    peer = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(peer.low, abs=0.03 * (high - low))
    assert high == pytest.approx(peer.high, abs=0.03 * (high - low))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        low, high = bootstrap_interval(rng.normal(5, 2, size=30), 0.8, seed)
        covered += low <= 5 <= high
    assert 70 <= covered <= 88  # 80 expected, standard deviation 4; percentile intervals are a little narrow


def test_the_interval_of_equal_returns_is_a_point():
    assert bootstrap_interval(np.full(10, 3.0), 0.95, 0) == (3.0, 3.0)


def test_human_normalised_score():
    assert human_normalised(1.7, GAME) == 0
    assert human_normalised(30.5, GAME) == pytest.approx(1)
    assert human_normalised(59.3, GAME) == pytest.approx(2)
    for game in (dataclasses.replace(GAME, random_score=None), dataclasses.replace(GAME, human_score=None)):
        assert math.isnan(human_normalised(30.0, game))


def test_agents_that_are_alike_seldom_fall_below_each_other():
    rng = np.random.default_rng(0)
    alike = [falls_below(*(made(list(rng.normal(100, 30, 60))) for _ in range(2)), 0.95, trial) for trial in range(200)]
    assert 0.01 < np.mean(alike) < 0.1  # one in twenty
    worse = [
        falls_below(made(list(rng.normal(75, 30, 60))), made(list(rng.normal(100, 30, 60))), 0.95, trial)
        for trial in range(50)
    ]
    assert np.mean(worse) > 0.95
    better = [
        falls_below(made(list(rng.normal(125, 30, 60))), made(list(rng.normal(100, 30, 60))), 0.95, trial)
        for trial in range(50)
    ]
    assert not any(better)


def test_return_kept():
    teacher, student = made([90.0, 110, 100, 120, 80]), made([50.0, 60, 40, 55, 45])
    kept = return_kept(student, teacher, 10.0, 0.95, 0)
    assert kept.value == pytest.approx(40 / 90)
    assert kept.low < kept.value < kept.high
    # to first order the relative variances of the two means add
    spread = (
        40 / 90 * math.hypot(np.std([50, 60, 40, 55, 45]) / 40, np.std([90, 110, 100, 120, 80]) / 90) / math.sqrt(5)
    )
    assert (kept.high - kept.low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    narrower = return_kept(student, teacher, 10.0, 0.5, 0)
    assert kept.low < narrower.low < narrower.high < kept.high


def test_return_kept_of_fixed_returns():
    kept = return_kept(made([30.0, 30]), made([50.0, 50]), 10.0, 0.95, 0)
    assert (kept.value, kept.low, kept.high) == (0.5, 0.5, 0.5)
    assert return_kept(made([5.0, 5]), made([50.0, 50]), 10.0, 0.95, 0).value == pytest.approx(-0.125)


def test_return_kept_needs_a_random_score_and_one_protocol():
    kept = return_kept(made([30.0, 31]), made([50.0, 51]), None, 0.95, 0)
    assert all(math.isnan(value) for value in dataclasses.astuple(kept))
    with pytest.raises(ValueError, match="protocols are never mixed: noop and sticky"):
        return_kept(made([30.0]), made([50.0], "sticky"), 10.0, 0.95, 0)


def test_save_and_load(tmp_path: Path, evaluation: Evaluation):
    save_evaluation(tmp_path / "new" / "evaluation.json", evaluation)
    assert load_evaluation(tmp_path / "new" / "evaluation.json") == evaluation
