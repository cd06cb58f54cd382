"""Latency: how long an agent takes from an observation to an action, and how much faster the student is.

The method. All networks, in each runtime, are measured in one process, in rounds: in each round every one has one
turn, in an order drawn anew, so that a slow minute of the machine slows them all. A turn is a few untimed decisions,
which bring the network into the caches, and then the timed ones. A decision is what an embedded agent does sixty or
fifteen times a second: one observation (batch 1) goes in, the index of the largest output comes out. Each is
timed by itself, with the monotonic high-resolution clock and with the thread's own CPU time. Nothing is allocated for
the input, Python's garbage collector is off, the number of threads is fixed, and a single thread is pinned to one core.
All three settings are put back afterwards.

What other programs on the machine add is not removed from the latencies but shown: in the tail (p99, p99.9, maximum),
beside the CPU time, and in the number of involuntary context switches. It does not slow all networks alike: one whose
weights do not fit into the core's own cache waits for memory that others use, also on a core of its own, so that a
ratio of medians says more about the neighbours than about the networks. The speedup therefore compares the fastest
decision of each, the one that was disturbed least (Chen and Revels 2016, "Robust benchmarking in noisy environments").
Rounds are added until it no longer depends on which of them are looked at.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import re
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrp_compress.config.schema import LatencyConfig
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.networks.graph import Network

# Makes one decision on an observation that is in place: the index of the largest output.
Decision = Callable[[], int]

# Atari's 60 frames per second; with frame skip 4 a decision is due every 1/15 s.
DEADLINES_HZ = (60, 30, 15)
RESAMPLES = 1000  # of the rounds
CORE_TIMES = Path("/proc/stat")
LOOKED_FOR = 0.2  # seconds


@dataclass(frozen=True)
class Latency:
    """How long one network's decisions took.

    Attributes
    ----------
    min_ms, p50_ms, p90_ms, p99_ms, p999_ms, max_ms, mean_ms : float
        Fastest, quantiles (linear interpolation), slowest and mean of all timed decisions, in milliseconds.
    cpu_p50_ms, cpu_p99_ms : float
        Quantiles of the thread's CPU time, in milliseconds.
    late : dict of str to float
        Share of the decisions that took longer than 1/60, 1/30 and 1/15 s, by ``"60hz"``, ``"30hz"`` and ``"15hz"``.
    decisions : int
        Number of timed decisions.
    round_min_ms : list of float
        Fastest decision of each round, in milliseconds, in the order of the rounds.
    involuntary_switches : int
        How often the system took the processor from the process during this network's turns. Many of them for the
        number of decisions mean a busy machine, and a tail that is not the network's own.
    """

    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    mean_ms: float
    cpu_p50_ms: float
    cpu_p99_ms: float
    late: dict[str, float]
    decisions: int
    round_min_ms: list[float]
    involuntary_switches: int


@dataclass(frozen=True)
class Speedup:
    """Teacher latency over student latency.

    Attributes
    ----------
    ratio : float
        Teacher's fastest decision over student's fastest.
    low, high : float
        Range over the rounds: 2.5 % and 97.5 % quantile of the same ratio when they are drawn with replacement. Wide
        where the fastest decisions come from few rounds, as on a machine that hardly rests. No confidence interval, for
        a minimum is what the bootstrap fails on (Efron and Tibshirani 1993, section 7.4), and it knows nothing of
        another day.
    """

    ratio: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Width of the range, as a share of the ratio."""
        return (self.high - self.low) / self.ratio


def torch_decision(network: Network, observation: Tensor) -> Decision:
    """Let a copy of a network decide in eager PyTorch on the CPU.

    Parameters
    ----------
    network : Network
        Left untouched.
    observation : Tensor
        One, of the shape and the numbers that the network takes, with a batch of 1 in front.

    Raises
    ------
    ValueError
        If the observation is of another shape or type.
    """
    ready = _checked(observation, network.observations.shape, network.observations.dtype)
    copied = copy.deepcopy(network).cpu().eval()
    return lambda: int(copied(ready).argmax())


def onnx_decision(path: Path, observation: Tensor) -> Decision:
    """Let a file decide in ONNX Runtime's default session, as a device runs it: fast before exact.

    Parameters
    ----------
    path : Path
        A file that `OnnxPolicy` takes.
    observation : Tensor
        One, of the shape and the numbers that the file takes, with a batch of 1 in front.

    Raises
    ------
    UserError
        If the file is missing, corrupt, or of another kind.
    ValueError
        If the observation is of another shape or type.
    """
    policy = OnnxPolicy(path, exact=False)
    ready = _checked(observation, policy.shape, policy.dtype).numpy()
    return lambda: int(policy.run(ready).argmax())


def _checked(observation: Tensor, shape: tuple[int, ...], dtype: str) -> Tensor:
    if observation.shape != (1, *shape) or observation.dtype != getattr(torch, dtype):
        given = f"{observation.dtype} {tuple(observation.shape)}"
        raise ValueError(f"one {dtype} observation of the shape {shape} is needed, got {given}")
    return observation.cpu().contiguous()


def measure_latency(
    decisions: Mapping[str, Decision], pairs: Sequence[tuple[str, str]], config: LatencyConfig, seed: int
) -> dict[str, Latency]:
    """Measure several latencies against each other; the method is described at the top of this module.

    Parameters
    ----------
    decisions : mapping of str to callable
        By a name of choice; see `torch_decision` and `onnx_decision`.
    pairs : sequence of (str, str)
        Names of teachers and students; rounds are added while the range of one's speedup is too wide.
    config : LatencyConfig
        Rounds at least and at most; the widest range; timed and untimed (`warmup`) decisions per turn; threads of
        PyTorch.
    seed : int
        Seed of the order of turns.

    Returns
    -------
    dict of str to Latency
        By the same names, over all rounds.
    """
    times: dict[str, list[_Turn]] = {name: [] for name in decisions}
    switches = dict.fromkeys(decisions, 0)
    measured: dict[str, Latency] = {}
    with _steady_process(config.threads), torch.inference_mode():
        for block in range(0, max(config.max_rounds, config.rounds), config.rounds):
            for order in turn_orders(list(decisions), config.rounds, seed + block):
                for name in order:
                    _time_decisions(decisions[name], config.warmup)
                    before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
                    times[name].append(_time_decisions(decisions[name], config.decisions))
                    switches[name] += resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
            measured = {
                name: summarise_times([turn.wall for turn in turns], [turn.cpu for turn in turns], switches[name])
                for name, turns in times.items()
            }
            if all(speedup(measured[one], measured[other]).spread <= config.max_spread for one, other in pairs):
                break
    return measured


def turn_orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Draw the order of turns: in each round every name once."""
    rng = random.Random(seed)
    return [rng.sample(names, len(names)) for _ in range(rounds)]


def summarise_times(
    wall_ns: Sequence[Sequence[int]], cpu_ns: Sequence[Sequence[int]], involuntary_switches: int
) -> Latency:
    """Reduce one network's times to the figures that are reported.

    Parameters
    ----------
    wall_ns, cpu_ns : sequence of sequence of int
        Per round the time of each decision, in nanoseconds; as many in every round.
    involuntary_switches : int
        Context switches counted meanwhile.
    """
    wall, cpu = (np.asarray(times, dtype=np.float64) / 1e6 for times in (wall_ns, cpu_ns))
    p50, p90, p99, p999 = (float(quantile) for quantile in np.quantile(wall, [0.5, 0.9, 0.99, 0.999]))
    cpu_p50, cpu_p99 = (float(quantile) for quantile in np.quantile(cpu, [0.5, 0.99]))
    return Latency(
        min_ms=float(wall.min()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        p999_ms=p999,
        max_ms=float(wall.max()),
        mean_ms=float(wall.mean()),
        cpu_p50_ms=cpu_p50,
        cpu_p99_ms=cpu_p99,
        late={f"{rate}hz": float((wall > 1000 / rate).mean()) for rate in DEADLINES_HZ},
        decisions=wall.size,
        round_min_ms=wall.min(axis=1).tolist(),
        involuntary_switches=involuntary_switches,
    )


def speedup(teacher: Latency, student: Latency) -> Speedup:
    """Compare two networks that were measured in the same call of `measure_latency`.

    Raises
    ------
    ValueError
        If they were not measured in the same number of rounds.
    """
    ours, theirs = np.asarray(teacher.round_min_ms), np.asarray(student.round_min_ms)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds cannot be compared")
    drawn = np.random.default_rng(0).integers(len(ours), size=(RESAMPLES, len(ours)))
    low, high = np.quantile(ours[drawn].min(axis=1) / theirs[drawn].min(axis=1), [0.025, 0.975])
    return Speedup(teacher.min_ms / student.min_ms, float(low), float(high))


class _Turn(NamedTuple):
    """Times of the decisions of one turn, in nanoseconds."""

    wall: list[int]
    cpu: list[int]


def _time_decisions(decide: Decision, count: int) -> _Turn:
    clock, cpu_clock = time.perf_counter_ns, time.thread_time_ns
    turn = _Turn([0] * count, [0] * count)
    for i in range(count):
        cpu_start = cpu_clock()
        start = clock()
        decide()
        turn.wall[i] = clock() - start  # the CPU clock is a system call, so it is read outside
        turn.cpu[i] = cpu_clock() - cpu_start
    return turn


def _idlest(cores: set[int]) -> int:
    """Choose the core that is least busy now, so that runs side by side do not all wait for the same one.

    Process ids cannot tell: in containers they are all 1.
    """
    if len(cores) == 1 or not CORE_TIMES.exists():
        return random.choice(sorted(cores))
    before = _busy()
    time.sleep(LOOKED_FOR)
    after = _busy()
    return min(cores, key=lambda core: (after.get(core, 0) - before.get(core, 0), random.random()))


def _busy() -> dict[int, int]:
    """By core the time, in ticks of the system, in which it was not idle."""
    rows = [line.split() for line in CORE_TIMES.read_text().splitlines() if re.match(r"cpu\d", line)]
    return {int(name[3:]): sum(map(int, times[:3] + times[5:8])) for name, *times in rows}


@contextlib.contextmanager
def _steady_process(threads: int) -> Iterator[None]:
    """Fix the number of threads, pin a single one to a core, stop garbage collection; put all of it back."""
    previous_threads, collecting = torch.get_num_threads(), gc.isenabled()
    pinned = threads == 1 and hasattr(os, "sched_setaffinity")  # macOS has no affinity
    cores = os.sched_getaffinity(0) if pinned else set()
    gc.collect()
    try:
        gc.disable()
        torch.set_num_threads(threads)
        if pinned:
            os.sched_setaffinity(0, {_idlest(cores)})
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(previous_threads)
        if collecting:
            gc.enable()
