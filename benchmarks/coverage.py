"""How often an interval of the return kept over a few seeds holds the mean of all seeds, where 95 % is said.

    python benchmarks/coverage.py

Seeds are drawn whose agents differ by some spread, and each one's games with the noise of games; both agents, teacher
and student, play as many games. Compared are resampling the games of every seed, resampling seeds and then games, and
the t interval of the seeds' values that reports show. Spread is in standard errors of one seed's return kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lrp_compress.reporting.records import seed_interval

Values = NDArray[np.float64]
TEACHER, NOISE = 1.0, 0.55  # of a game's return, as Breakout's: a teacher of 318 whose games vary by 175
RESAMPLES = 400


def draw(seeds: int, games: int, spread: float, rng: np.random.Generator) -> tuple[Values, Values]:
    """Draw the games of students and teachers, shape (seeds, games); the students' true mean is the teacher's."""
    error = NOISE * np.sqrt(2 / games)  # of one seed's return kept
    true = TEACHER + spread * error * rng.standard_normal((seeds, 1))
    return tuple(mean + NOISE * rng.standard_normal((seeds, games)) for mean in (true, TEACHER))  # type: ignore[return-value]


def by_games(student: Values, teacher: Values, rng: np.random.Generator) -> tuple[float, float]:
    """Resample the games of every seed."""
    return _percentiles(np.mean([_resampled(*pair, rng) for pair in zip(student, teacher, strict=True)], axis=0))


def by_seeds_and_games(student: Values, teacher: Values, rng: np.random.Generator) -> tuple[float, float]:
    """Resample seeds, then the games of each."""
    own = np.array([_resampled(*pair, rng) for pair in zip(student, teacher, strict=True)])
    chosen = rng.integers(len(own), size=own.shape)
    return _percentiles(np.take_along_axis(own, chosen, axis=0).mean(axis=0))


def by_t(student: Values, teacher: Values, rng: np.random.Generator) -> tuple[float, float]:
    """Take the seeds' values as the sample, as reports do."""
    return seed_interval((student.mean(axis=1) / teacher.mean(axis=1)).tolist())


def coverage(
    interval: Callable[[Values, Values, np.random.Generator], tuple[float, float]],
    seeds: int,
    games: int,
    spread: float,
    repeats: int,
) -> tuple[float, float]:
    """Count how often an interval holds the truth, and how wide it is in the median."""
    rng = np.random.default_rng(0)
    found = np.array([interval(*draw(seeds, games, spread, rng), rng) for _ in range(repeats)])
    held = (found[:, 0] <= 1) & (found[:, 1] >= 1)
    return float(held.mean()), float(np.median(found[:, 1] - found[:, 0]))


def _resampled(student: Values, teacher: Values, rng: np.random.Generator) -> Values:
    means = [own[rng.integers(len(own), size=(RESAMPLES, len(own)))].mean(axis=1) for own in (student, teacher)]
    ratio: Values = means[0] / means[1]
    return ratio


def _percentiles(samples: Values) -> tuple[float, float]:
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--games", type=int, default=60, help="of each seed and agent")
    options = parser.parse_args()
    methods = {"games": by_games, "seeds and games": by_seeds_and_games, "t": by_t}
    print("coverage (median width)")
    print(f"{'seeds':>5} {'spread':>6}", *(f"{name:>18}" for name in methods))
    for seeds in (2, 3, 5):
        for spread in (0.0, 0.5, 1.0, 2.0):
            cells = []
            for interval in methods.values():
                held, width = coverage(interval, seeds, options.games, spread, options.repeats)
                cells.append(f"{held:>10.1%} ({width:.2f})")
            print(f"{seeds:>5} {spread:>6.1f}", *(f"{cell:>18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
