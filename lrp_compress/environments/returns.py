"""Returns of episodes: their means with intervals, and what a student keeps of its teacher's."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_compress.config.schema import GameConfig
from lrp_compress.support.files import read_json, write_json

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
