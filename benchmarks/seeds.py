"""Table of finished runs, seeds side by side: what the README quotes.

    python -m lrp_compress -m game=breakout criterion=lrp,weight_l1,random seed=0,1,2
    python benchmarks/seeds.py multirun/breakout-criterion=lrp,weight_l1,random-seed=0,1,2

Prints Markdown: per criterion and ratio the teacher's and the student's mean return and the return kept, each with its
95 % bootstrap interval per seed, and the mean of the return kept over the seeds with an interval that resamples the
episodes of every seed.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from lrp_compress.atari.evaluation import BOOTSTRAP_SAMPLES, load_evaluation
from lrp_compress.files import read_json


def interval(metrics: dict[str, float], key: str, digits: int) -> str:
    value, low, high = (metrics[f"{key}{end}"] for end in ("", "_ci_low", "_ci_high"))
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def kept_samples(run: Path, random_score: float) -> tuple[float, np.ndarray]:
    """Return kept of a run, and its bootstrap samples."""
    rng = np.random.default_rng(0)
    means = []
    for name in ("student", "teacher"):
        returns = load_evaluation(run / "stages" / f"evaluation-{name}.json").returns
        resampled = returns[rng.integers(len(returns), size=(BOOTSTRAP_SAMPLES, len(returns)))].mean(axis=1)
        means.append((returns.mean() - random_score, resampled - random_score))
    (student, student_samples), (teacher, teacher_samples) = means
    return student / teacher, student_samples / teacher_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="run folders, or sweep folders with runs in them")
    options = parser.parse_args()
    groups = defaultdict(list)
    for folder in options.folders:
        for result in sorted([*folder.glob("result.json"), *folder.glob("*/result.json")]):
            config = OmegaConf.load(result.parent / ".hydra" / "config.yaml")
            groups[config.criterion.name, config.prune.ratio].append((config.seed, result.parent, config))
    print("| criterion | ratio | seed | teacher | pruned | student | return kept |")
    print("|---|---|---|---|---|---|---|")
    for (criterion, ratio), runs in sorted(groups.items()):
        values, samples = [], []
        for seed, run, config in sorted(runs, key=lambda entry: entry[0]):
            metrics = read_json(run / "result.json")
            cells = [interval_of_mean(metrics, name) for name in ("teacher", "pruned", "student")]
            cells.append(interval(metrics, "student/return_kept", 2))
            print(f"| {criterion} | {ratio} | {seed} | {' | '.join(cells)} |")
            value, drawn = kept_samples(run, config.game.random_score)
            values.append(value)
            samples.append(drawn)
        low, high = np.quantile(np.mean(samples, axis=0), [0.025, 0.975])
        print(f"| **{criterion}** | {ratio} | all | | | | **{np.mean(values):.2f}** ({low:.2f} to {high:.2f}) |")


def interval_of_mean(metrics: dict[str, float], agent: str) -> str:
    low, high = metrics[f"{agent}/return_ci_low"], metrics[f"{agent}/return_ci_high"]
    return f"{metrics[f'{agent}/return_mean']:.1f} ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    main()
