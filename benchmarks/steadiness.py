"""How far repeated measurements of one speedup differ, on a machine at rest and beside busy neighbours.

    python benchmarks/steadiness.py --repeats 2

Prints the speedups of a few students as they are reported (the fastest decisions) and as the ratio of the medians of
the same decisions. Neighbours are processes that convolve on two threads without end.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.config.schema import LatencyConfig
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.measuring.latency import Decision, measure_latency, onnx_decision, speedup
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn

CONFIG = LatencyConfig(rounds=20, decisions=100, warmup=10, threads=1, max_spread=0.03, max_rounds=80)
KEPT = (0.7, 0.5, 0.3)  # of the channels of every layer
NEIGHBOUR = """
import torch
torch.set_num_threads(2)
images, filters = torch.randn(256, 64, 42, 42), torch.randn(64, 64, 3, 3)
while True:
    torch.nn.functional.conv2d(images, filters)
"""


def decision(kept: float, folder: Path) -> Decision:
    widths = {name: round(kept * width) for name, width in NATURE_WIDTHS.items()}
    path = folder / f"{kept}.onnx"
    info = AgentInfo("pong", "minimal", False, {}, all_channels(widths))
    save_float(path, Agent(nature_cnn(widths, "policy", 6), info))
    return onnx_decision(path, torch.randint(0, 256, (1, 4, 84, 84), dtype=torch.uint8))


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", NEIGHBOUR]) for _ in range(count)]
    time.sleep(5 if busy else 0)
    try:
        yield
    finally:
        for one in busy:
            one.kill()
            one.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="measurements beside each number of neighbours")
    repeats = parser.parse_args().repeats
    print(f"{'neighbours':>10}{'kept':>6}{'rounds':>8}{'speedup':>9}{'range':>16}{'ratio of medians':>18}")
    with tempfile.TemporaryDirectory() as folder:
        teacher = decision(1.0, Path(folder))
        students = {kept: decision(kept, Path(folder)) for kept in KEPT}
        for seed in range(repeats):
            for count in (0, 1, 2):
                with neighbours(count):
                    for kept, student in students.items():
                        both = {"teacher": teacher, "student": student}
                        measured = measure_latency(both, [("teacher", "student")], CONFIG, seed)
                        ours, theirs = measured["teacher"], measured["student"]
                        found, rounds = speedup(ours, theirs), len(ours.round_min_ms)
                        spread = f"{found.low:.2f} to {found.high:.2f}"
                        print(
                            f"{count:10}{kept:6}{rounds:8}{found.ratio:9.2f}{spread:>16}"
                            f"{ours.p50_ms / theirs.p50_ms:18.2f}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
