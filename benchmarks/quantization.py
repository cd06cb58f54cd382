"""How far int8 is from float32: weights rounded to the nearest, or so that their errors make up for each other.

    python benchmarks/quantization.py

The shipped agents are pruned to half their channels and repaired. Each such student is quantised in the three ways of
a run, with ranges from 256 states of its own play, and compared with itself in float32 in 1,024 states of eight other
games. Prints a Markdown table of the KL divergence between the two, in nats, and of the states with the same best
action, the mean (lowest to highest) over the seeds. Minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

import lrp_compress as lc
from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.equalization import equalize
from lrp_compress.compression.losses import action_agreement, default_temperature, kl
from lrp_compress.compression.quantization import WAYS, prepared
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts
from lrp_compress.networks.fast import batched_outputs

GAMES = ("breakout", "freeway", "pong", "road_runner")
Figures = list[float]  # KL divergence and agreement


def half_of(game: str, seed: int) -> Agent:
    settings = lc.settings(game, f"seed={seed}", "rollouts.states=12288")
    teacher = lc.load_agent("auto", game)
    states = lc.rollouts(teacher, settings)
    pruned = lc.prune(teacher, lc.relevance(teacher, states, settings), 0.5, settings)
    return lc.repair(pruned, teacher, states, settings)


def play(agent: Agent, states: int, seed: int) -> Rollouts:
    rule = action_rule("auto", agent.network.head_kind, 0.001)
    how = RolloutsConfig(states, envs=8, block=1, every=32 * 256 // states)
    return collect_rollouts(agent, how, Acting(rule, "noop", seed))


def by_nearest(agent: Agent, way: str, calibration: NDArray[np.uint8]) -> Agent:
    return Agent(equalize(agent.network, torch.from_numpy(calibration)), agent.info) if way == "equalized" else agent


def measure(game: str, seed: int) -> dict[tuple[str, str], Figures]:
    student = half_of(game, seed)
    ranges, judged = play(student, 256, 2 * seed), play(student, 1024, 1000 + 2 * seed)
    calibration = ranges.observations(torch.arange(len(ranges))).numpy()
    observations = judged.observations(torch.arange(len(judged)))
    own = batched_outputs(student.network, observations)
    temperature = default_temperature(student.network.head_kind, own)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        for rounding, make in (("nearest", by_nearest), ("compensated", prepared)):
            for way in WAYS:
                save_int8(path, make(student, way, calibration), calibration, per_channel=way != "per_tensor")
                outputs = OnnxPolicy(path).outputs(observations.numpy())
                figures[rounding, way] = [kl(outputs, own, temperature).item(), action_agreement(outputs, own)]
    return figures


def spread(values: list[float], form: str) -> str:
    return f"{fmean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", default=GAMES)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print("| | weights | scale | KL, nats | same action |\n|---|---|---|---|---|")
    for game in options.games:
        seeds = [measure(game, seed) for seed in range(options.seeds)]
        for rounding, way in seeds[0]:
            divergences, agreements = zip(*(found[rounding, way] for found in seeds), strict=True)
            line = [game, rounding, way, spread(divergences, ".2g"), spread(agreements, ".3f")]
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
