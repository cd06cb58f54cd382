"""What rounding a student's widths buys: latency in ONNX Runtime, all widths in turns in one process.

    python benchmarks/rounding.py

Around a student of half the teacher's widths, conv1, conv2 and the dense layer take neighbouring widths, one at a time;
then a student at ratio 0.6 as it comes out of `prune.round_to=none` is set against the same under `desktop`. Prints the
median over all decisions in microseconds, and each pair's ratio with its interval over the rounds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.compression.pruning import ROUNDING
from lrp_compress.config.schema import LatencyConfig
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.measuring.latency import Decision, measure_latency, onnx_decision, speedup
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn

CONFIG = LatencyConfig(rounds=40, decisions=100, warmup=10, threads=1, max_spread=1.0, max_rounds=40)
HALF = {name: width // 2 for name, width in NATURE_WIDTHS.items()}
NEIGHBOURS = {"conv1": (6, 8, 12, 15, 16, 17, 20, 24), "conv2": (28, 29, 31, 32, 33, 36), "fc1": (240, 255, 256, 257)}
RATIOS = (0.45, 0.6, 0.7, 0.85)


def decision(widths: dict[str, int], folder: Path) -> Decision:
    network = nature_cnn(widths, "policy", 6)
    path = folder / f"{'-'.join(map(str, widths.values()))}.onnx"
    save_float(path, Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(widths))))
    return onnx_decision(path, torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8))


def rounded(widths: dict[str, int], profile: str) -> dict[str, int]:
    multiples = ROUNDING[profile]
    steps = {name: multiples.get(name, multiples[""]) for name in widths}
    return {name: -(-width // steps[name]) * steps[name] for name, width in widths.items()}


def main() -> None:
    variants = {f"{name} {width}": HALF | {name: width} for name, widths in NEIGHBOURS.items() for width in widths}
    pruned = {ratio: {name: round(width * (1 - ratio)) for name, width in NATURE_WIDTHS.items()} for ratio in RATIOS}
    variants |= {
        f"ratio {ratio} {profile}": rounded(widths, profile)
        for ratio, widths in pruned.items()
        for profile in ("none", "desktop")
    }
    with tempfile.TemporaryDirectory() as folder:
        decisions = {name: decision(widths, Path(folder)) for name, widths in variants.items()}
        measured = measure_latency(decisions, [], CONFIG, seed=0)
    for name, latency in measured.items():
        print(f"{name:22}{'-'.join(map(str, variants[name].values())):>16}{1e3 * latency.p50_ms:8.1f} us")
    for ratio in RATIOS:
        gain = speedup(measured[f"ratio {ratio} none"], measured[f"ratio {ratio} desktop"])
        print(f"ratio {ratio}: rounding makes it {gain.ratio:.2f} ({gain.low:.2f} to {gain.high:.2f}) times as fast")


if __name__ == "__main__":
    main()
