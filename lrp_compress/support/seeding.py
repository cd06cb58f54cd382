"""Random streams that no two stages share."""

from __future__ import annotations

import zlib

import numpy as np


def stage_seed(seed: int, *stage: str | int) -> int:
    """Derive the seed of one stage from the run's seed.

    Stages get independent streams (``numpy.random.SeedSequence``), so evaluation never replays games that
    distillation or rollouts have used.

    Parameters
    ----------
    seed : int
        The run's seed.
    *stage : str or int
        What the seed is for, e.g. ``("evaluate", "student")``.

    Returns
    -------
    int
        A seed in [0, 2**31 - 1024), with room for one seed per environment above it.
    """
    words = [zlib.crc32(str(part).encode()) for part in stage]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1)[0] % (2**31 - 1024))
