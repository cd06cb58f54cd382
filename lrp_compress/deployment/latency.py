"""Latency: how long an agent takes from an observation to an action, and how much faster the student is.

The method. All networks are measured in one process, in rounds: in each round every network has one turn, in an order
drawn anew, so that a slow minute of the machine slows them all. A turn is a few untimed decisions, which bring the
network into the caches, and then the timed ones. A decision is what an embedded agent does sixty or fifteen times a
second: one uint8 observation (batch 1) goes in, the index of the largest output comes out, in eager PyTorch on the CPU
under inference mode. Each is timed by itself with the monotonic high-resolution clock. Nothing is allocated for the
input, Python's garbage collector is off, the number of threads is fixed, and a single thread is pinned to one core.
All three settings are put back afterwards.

What other programs on the machine add is not removed but shown: in the tail (p99, maximum), in the spread over the
rounds, and in the number of involuntary context switches. The speedup compares the teacher and the student round by
round; where it varies too much from round to round, all of it is measured again, and the steadiest measurement counts.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import random
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lrp_compress.agents.networks import STACK, PolicyNetwork
from lrp_compress.config import LatencyConfig

# Atari's 60 frames per second; with frame skip 4 a decision is due every 1/15 s.
DEADLINES_HZ = (60, 30, 15)


@dataclass(frozen=True)
class Latency:
    """How long one network's decisions took.

    Attributes
    ----------
    p50_ms, p90_ms, p99_ms, max_ms, mean_ms : float
        Quantiles (linear interpolation), maximum and mean over all timed decisions, in milliseconds.
    late : dict of str to float
        Share of the decisions that took longer than 1/60, 1/30 and 1/15 s, by ``"60hz"``, ``"30hz"`` and ``"15hz"``.
    decisions : int
        Number of timed decisions.
    round_p50_ms : list of float
        Median of each round, in milliseconds, in the order of the rounds.
    involuntary_switches : int
        How often the system took the processor from the process during this network's turns. Many of them for the
        number of decisions mean a busy machine, and a tail that is not the network's own.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    late: dict[str, float]
    decisions: int
    round_p50_ms: list[float]
    involuntary_switches: int


@dataclass(frozen=True)
class Speedup:
    """Teacher latency over student latency.

    Attributes
    ----------
    ratio : float
        Teacher's median over student's median, all decisions together.
    low, high : float
        2.5 % and 97.5 % quantile of the same ratio taken in each round by itself.
    """

    ratio: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Width of the interval over the rounds, as a share of the ratio."""
        return (self.high - self.low) / self.ratio


def measure_steadily(
    networks: Mapping[str, PolicyNetwork], observation: Tensor, config: LatencyConfig, seed: int
) -> dict[str, Latency]:
    """Measure the latency of the ``"teacher"`` and others, and again while a speedup varies too much over the rounds.

    Parameters
    ----------
    networks, observation, config, seed
        As in `measure_latency`; `config` also says which spread is too wide and how often to measure at most.

    Returns
    -------
    dict of str to Latency
        Of the measurement in which the widest spread was narrowest.
    """
    measurements: list[dict[str, Latency]] = []
    while len(measurements) < config.attempts:
        measurements.append(measure_latency(networks, observation, config, seed + len(measurements)))
        if _widest(measurements[-1]) <= config.max_spread:
            break
    return min(measurements, key=_widest)


def _widest(measured: Mapping[str, Latency]) -> float:
    return max(speedup(measured["teacher"], own).spread for own in measured.values())


def measure_latency(
    networks: Mapping[str, PolicyNetwork], observation: Tensor, config: LatencyConfig, seed: int
) -> dict[str, Latency]:
    """Measure the latency of several networks against each other; the method is described at the top of this module.

    Parameters
    ----------
    networks : mapping of str to PolicyNetwork
        By a name of choice, e.g. ``"teacher"`` and ``"student"``. They are copied to the CPU and left untouched.
    observation : Tensor of uint8, shape (1, 4, 84, 84)
        What every decision is made on.
    config : LatencyConfig
        Rounds; timed and untimed (`warmup`) decisions per turn; threads.
    seed : int
        Seed of the order of turns.

    Returns
    -------
    dict of str to Latency
        By the same names.

    Raises
    ------
    ValueError
        If the observation is of another shape or type.
    """
    if observation.shape != (1, STACK, 84, 84) or observation.dtype != torch.uint8:
        raise ValueError(f"one uint8 observation is needed, got {observation.dtype} {tuple(observation.shape)}")
    observation = observation.cpu().contiguous()
    copies = {name: copy.deepcopy(network).cpu().eval() for name, network in networks.items()}
    times: dict[str, list[list[int]]] = {name: [] for name in networks}
    switches = dict.fromkeys(networks, 0)
    with _steady_process(config.threads), torch.inference_mode():
        for order in turn_orders(list(networks), config.rounds, seed):
            for name in order:
                _time_decisions(copies[name], observation, config.warmup)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
                times[name].append(_time_decisions(copies[name], observation, config.decisions))
                switches[name] += resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
    return {name: summarise_times(times[name], switches[name]) for name in networks}


def turn_orders(names: Sequence[str], rounds: int, seed: int) -> list[list[str]]:
    """Draw the order of turns: in each round every name once."""
    rng = random.Random(seed)
    return [rng.sample(names, len(names)) for _ in range(rounds)]


def summarise_times(times_ns: Sequence[Sequence[int]], involuntary_switches: int) -> Latency:
    """Reduce one network's times to the figures that are reported.

    Parameters
    ----------
    times_ns : sequence of sequence of int
        Per round the time of each decision, in nanoseconds; as many in every round.
    involuntary_switches : int
        Context switches counted meanwhile.
    """
    milliseconds = np.asarray(times_ns, dtype=np.float64) / 1e6
    p50, p90, p99 = (float(quantile) for quantile in np.quantile(milliseconds, [0.5, 0.9, 0.99]))
    return Latency(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        max_ms=float(milliseconds.max()),
        mean_ms=float(milliseconds.mean()),
        late={f"{rate}hz": float((milliseconds > 1000 / rate).mean()) for rate in DEADLINES_HZ},
        decisions=milliseconds.size,
        round_p50_ms=np.median(milliseconds, axis=1).tolist(),
        involuntary_switches=involuntary_switches,
    )


def speedup(teacher: Latency, student: Latency) -> Speedup:
    """Compare two networks that were measured in the same call of `measure_latency`.

    Raises
    ------
    ValueError
        If they were not measured in the same number of rounds.
    """
    rounds = zip(teacher.round_p50_ms, student.round_p50_ms, strict=True)
    low, high = np.quantile([ours / theirs for ours, theirs in rounds], [0.025, 0.975])
    return Speedup(teacher.p50_ms / student.p50_ms, float(low), float(high))


def _time_decisions(network: PolicyNetwork, observation: Tensor, count: int) -> list[int]:
    clock = time.perf_counter_ns
    times = [0] * count
    for i in range(count):
        start = clock()
        int(network(observation).argmax())
        times[i] = clock() - start
    return times


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
            # by process id, so that runs side by side do not all wait for the same core
            os.sched_setaffinity(0, {sorted(cores)[os.getpid() % len(cores)]})
        yield
    finally:
        if pinned:
            os.sched_setaffinity(0, cores)
        torch.set_num_threads(previous_threads)
        if collecting:
            gc.enable()
