"""Evaluation: unclipped episodic returns under a named protocol, with intervals a reviewer accepts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.inference import batched_outputs
from lrp_compress.atari.acting import ActionRule, Outputs, choose_actions, cores_shared_with_emulators
from lrp_compress.atari.envs import AtariEnvs, Step
from lrp_compress.atari.groups import Emulators, reset_groups
from lrp_compress.config import EvaluateConfig, GameConfig
from lrp_compress.files import read_json, write_json

BOOTSTRAP_SAMPLES = 10_000


@dataclass(frozen=True)
class Episode:
    """One evaluated episode.

    Attributes
    ----------
    env, index : int
        Which environment played it, and its place among that environment's episodes.
    score : float
        Episodic return: the sum of unclipped rewards.
    length : int
        Agent steps (4 emulator frames each).
    end : {"over", "capped", "stalled"}
        Game over, cut at the frame cap, or ended early because nothing had happened for the stall limit.
    """

    env: int
    index: int
    score: float
    length: int
    end: str


@dataclass(frozen=True)
class Evaluation:
    """Episodic returns and how they were obtained.

    Attributes
    ----------
    episodes : list of Episode
        In order of environment, then of play.
    protocol, action : str
        Name of the protocol, and how actions were chosen.
    seed : int
        Seed of the environments and of the action choice.
    mean, ci_low, ci_high : float
        Mean return and its percentile bootstrap interval.
    iqm : float
        Interquartile mean (Agarwal et al. 2021, section 4.3).
    human_normalised : float
        (mean - random) / (human - random); nan where no scores are published.
    """

    episodes: list[Episode]
    protocol: str
    action: str
    seed: int
    mean: float
    ci_low: float
    ci_high: float
    iqm: float
    human_normalised: float

    @property
    def returns(self) -> NDArray[np.float64]:
        """Episodic returns, shape (episodes,)."""
        return np.array([episode.score for episode in self.episodes])

    def __str__(self) -> str:
        ends = [f", {count} of them {end}" for end in ("stalled", "capped") if (count := self.ended(end))]
        interval = f"{self.mean:.1f} ({self.ci_low:.1f} to {self.ci_high:.1f})"
        return f"return {interval}, {len(self.episodes)} games{''.join(ends)}"

    def ended(self, end: str) -> int:
        """Count the episodes that ended in a given way."""
        return sum(episode.end == end for episode in self.episodes)


def interquartile_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the middle half along the last axis (a quarter of the values, rounded down, cut at each end)."""
    cut = values.shape[-1] // 4
    middle: NDArray[np.float64] = np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)
    return middle


def bootstrap_interval(values: NDArray[np.float64], confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron & Tibshirani 1993, section 13.3).

    Parameters
    ----------
    values : ndarray of float, shape (n,)
        Independent samples.
    confidence : float
        Coverage in (0, 1).
    seed : int
        Seed of the 10,000 resamples.
    """
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def evaluate(
    agent: Agent,
    config: EvaluateConfig,
    game: GameConfig,
    rule: ActionRule,
    protocol: str,
    seed: int,
    label: str,
    outputs: Outputs | None = None,
    emulators: Emulators | None = None,
) -> Evaluation:
    """Play episodes and report their returns.

    Every environment plays the same number of episodes: taking the first ones to finish, whoever plays them, would
    favour short games.

    Parameters
    ----------
    agent : Agent
        Whom to evaluate.
    config : EvaluateConfig
        Number of episodes and environments, stall limit, frame cap, confidence.
    game : GameConfig
        Random and human scores for the normalised score.
    rule : ActionRule
        How actions are chosen.
    protocol : str
        Name of the protocol.
    seed : int
        Seed of the environments and of the action choice.
    label : str
        What the progress bar says.
    outputs : callable, optional
        What computes the agent's outputs in its network's place, such as a file of it in another runtime.
    emulators : Emulators, optional
        Where the environments come from, if not made for this evaluation alone.

    Returns
    -------
    Evaluation
        ``ceil(episodes / envs) * envs`` episodes or, if there are fewer episodes than environments, one each.
    """
    count = min(config.envs, config.episodes)
    quota = math.ceil(config.episodes / count)
    lent = (emulators or Emulators()).groups(agent, count, protocol, seed, max_frames=config.max_frames)
    with cores_shared_with_emulators(), lent as groups:
        halves = [
            _Games(envs, step, quota, config.stall_limit, np.random.default_rng([seed, number]))
            for number, (envs, step) in enumerate(zip(groups, reset_groups(groups), strict=True))
        ]
        episodes = _play(outputs or _network_outputs(agent), halves, rule, label)
    returns = np.array([episode.score for episode in episodes])
    low, high = bootstrap_interval(returns, config.confidence, seed)
    return Evaluation(
        episodes,
        protocol,
        str(rule),
        seed,
        float(returns.mean()),
        low,
        high,
        float(interquartile_mean(returns)),
        human_normalised(float(returns.mean()), game),
    )


def falls_below(lower: Evaluation, upper: Evaluation, confidence: float, seed: int) -> bool:
    """Test whether an agent's mean return is below another's: a one-sided bootstrap interval of their difference.

    Parameters
    ----------
    lower, upper : Evaluation
        The agent that may be worse, and the other.
    confidence : float
        Coverage in (0, 1): agents that are alike are told apart in a share of ``1 - confidence`` of all cases.
    seed : int
        Seed of the 10,000 resamples (Efron & Tibshirani 1993, section 13.3).
    """
    rng = np.random.default_rng(seed)
    ours, theirs = (
        evaluation.returns[rng.integers(len(evaluation.episodes), size=(BOOTSTRAP_SAMPLES, len(evaluation.episodes)))]
        for evaluation in (lower, upper)
    )
    return bool(np.quantile(ours.mean(axis=1) - theirs.mean(axis=1), confidence) < 0)


@dataclass(frozen=True)
class ReturnKept:
    """Share of the teacher's return above random play that the student keeps, with its bootstrap interval."""

    value: float
    low: float
    high: float


def return_kept(
    student: Evaluation, teacher: Evaluation, random_score: float | None, confidence: float, seed: int
) -> ReturnKept:
    """Compare two agents: (student - random) / (teacher - random) of the mean returns.

    Parameters
    ----------
    student, teacher : Evaluation
        Under the same protocol.
    random_score : float or None
        Mean return of random play; without one everything is nan.
    confidence : float
        Coverage of the interval, from resampling the episodes of both agents.
    seed : int
        Seed of the resamples.

    Raises
    ------
    ValueError
        If the protocols differ.
    """
    if student.protocol != teacher.protocol:
        raise ValueError(f"protocols are never mixed: {student.protocol} and {teacher.protocol}")
    if random_score is None:
        return ReturnKept(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    means = []
    for returns in (student.returns, teacher.returns):
        resampled = returns[rng.integers(len(returns), size=(BOOTSTRAP_SAMPLES, len(returns)))]
        means.append(resampled.mean(axis=1) - random_score)
    low, high = np.quantile(means[0] / means[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return ReturnKept((student.mean - random_score) / (teacher.mean - random_score), float(low), float(high))


def save_evaluation(path: Path, evaluation: Evaluation) -> None:
    """Write an evaluation, its table of episodes included, as JSON."""
    write_json(path, dataclasses.asdict(evaluation))


def load_evaluation(path: Path) -> Evaluation:
    """Read an evaluation written by `save_evaluation`."""
    fields = read_json(path)
    return Evaluation(**{**fields, "episodes": [Episode(**episode) for episode in fields["episodes"]]})


def human_normalised(score: float, game: GameConfig) -> float:
    """Scale a return so that random play is 0 and the published human score 1; nan without published scores."""
    if game.random_score is None or game.human_score is None:
        return math.nan
    return (score - game.random_score) / (game.human_score - game.random_score)


def _network_outputs(agent: Agent) -> Outputs:
    return lambda observations: batched_outputs(agent.network, torch.from_numpy(observations))


def _play(outputs: Outputs, groups: Sequence[_Games], rule: ActionRule, label: str) -> list[Episode]:
    """Play all games; one group is emulated while the agent decides for the other."""

    def send(games: _Games) -> None:
        unfinished = games.unfinished
        known = outputs(games.step.observations[unfinished])
        decisive = known.new_zeros(len(unfinished), known.shape[1])
        decisive[torch.from_numpy(unfinished)] = known
        games.envs.send(choose_actions(decisive, rule, games.rng))

    for games in groups:
        send(games)
    count = sum(games.quota * games.envs.envs for games in groups)
    with tqdm(total=count, desc=label, unit="episode", leave=False, disable=None) as progress:
        while waiting := [games for games in groups if games.unfinished.any()]:
            for games in waiting:
                progress.update(games.receive())
                if games.unfinished.any():
                    send(games)
    played = [own for games in groups for own in games.played]
    return [
        Episode(env, index, score, length, end)
        for env, own in enumerate(played)
        for index, (score, length, end) in enumerate(own)
    ]


class _Games:
    """The games of a group of environments: those in progress, and the results of those that are over."""

    def __init__(self, envs: AtariEnvs, first: Step, quota: int, stall_limit: int, rng: np.random.Generator) -> None:
        self.envs = envs
        self.quota = quota
        self.rng = rng
        self.step = first
        self.played: list[list[tuple[float, int, str]]] = [[] for _ in range(envs.envs)]
        self._stall_limit = stall_limit
        self._score = np.zeros(envs.envs)
        self._length = np.zeros(envs.envs, dtype=np.int64)
        self._idle = np.zeros(envs.envs, dtype=np.int64)

    @property
    def unfinished(self) -> NDArray[np.bool_]:
        """Which environments have games to play, shape (envs,)."""
        return np.array([len(own) < self.quota for own in self.played])

    def receive(self) -> int:
        """Take the step in flight and note the games that it ended; their number is returned."""
        before, step = self.step, self.envs.receive()
        eventful = (step.rewards != 0) | (step.lives != before.lives) | step.first
        self._score = np.where(step.first, 0, self._score + step.rewards)
        self._length = np.where(step.first, 0, self._length + 1)
        self._idle = np.where(eventful, 0, self._idle + 1)
        self.step = step
        unfinished = self.unfinished
        stalled = (self._idle >= self._stall_limit) & unfinished
        noted = [int(row) for row in np.flatnonzero((step.ended | stalled) & unfinished)]
        for row in noted:
            end = "capped" if step.capped[row] else "over" if step.ended[row] else "stalled"
            self.played[row].append((float(self._score[row]), int(self._length[row]), end))
        if (restart := stalled & ~step.ended).any():
            self.step = self.envs.restart(restart)  # the other rows have not moved
            for total in (self._score, self._length, self._idle):
                total[restart] = 0
        return len(noted)
