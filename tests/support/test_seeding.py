"""Seeds of stages: fixed for ever, different for every stage, in ALE's range."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lrp_compress.support.seeding import stage_seed


def test_seeds_are_the_same_in_every_process():
    code = "from lrp_compress.support.seeding import stage_seed; print(stage_seed(3, 'evaluate', 'student', 1))"
    root = Path(__file__).parents[2]
    printed = {
        subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
        for _ in range(2)  # str.__hash__ would differ between the two
    }
    assert printed == {f"{stage_seed(3, 'evaluate', 'student', 1)}\n"}


def test_stages_and_runs_have_seeds_of_their_own():
    stages: list[tuple[str | int, ...]] = [
        ("rollouts",),
        ("evaluate", "teacher"),
        ("evaluate", "student"),
        ("student", "evaluate"),
        ("distill", 1),
        ("distill", 2),
        (),
    ]
    seeds = [stage_seed(run, *stage) for run in range(100) for stage in stages]
    assert len(set(seeds)) == len(seeds)
    # environment i is seeded with seed + i, so seeds that are neighbours would share games
    assert sum(abs(one - other) < 256 for one, other in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) < 3


def test_seeds_fit_the_emulator_with_room_for_the_environments():
    seeds = [stage_seed(run, "evaluate") for run in range(5000)]
    assert all(type(seed) is int for seed in seeds)  # ALE refuses numpy integers
    assert min(seeds) >= 0
    assert max(seeds) < 2**31 - 1024
    assert max(seeds) > 2**30 * 1.9
