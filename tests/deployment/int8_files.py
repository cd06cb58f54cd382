"""Small int8 ONNX files as a student is exported to, made from real play."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.networks.graph import Network

SMALL = {"conv1": 8, "conv2": 16, "conv3": 16, "fc1": 64}


@functools.cache
def observations(game: str, count: int) -> NDArray[np.uint8]:
    """Play at random, shape (count, 4, 84, 84)."""
    rng = np.random.default_rng(0)
    with AtariEnvs(game, 1, "noop", seed=0, threads=1) as envs:
        seen = [envs.reset().observations]
        while len(seen) < count:
            seen.append(envs.step(rng.integers(envs.actions, size=1)).observations)
    return np.concatenate(seen)


def write_int8(path: Path, network: Network, game: str, per_channel: bool = True) -> Path:
    """Quantise a network on random play."""
    info = AgentInfo(game, "minimal", False, {}, all_channels(network.widths))
    save_int8(path, Agent(network, info), observations(game, 64), per_channel)
    return path
