"""How latency is measured; no test here depends on how fast the machine is."""

from __future__ import annotations

import dataclasses
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.config.schema import LatencyConfig
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.measuring import latency as module
from lrp_compress.deployment.measuring.latency import (
    Decision,
    Latency,
    measure_latency,
    onnx_decision,
    speedup,
    summarise_times,
    torch_decision,
    turn_orders,
)
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn

CONFIG = LatencyConfig(rounds=3, decisions=4, warmup=2, threads=1, max_spread=0.2, max_rounds=9)
OBSERVATION = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
MS = 1_000_000  # nanoseconds
CORES = os.sched_getaffinity(0)


def small_network() -> Network:
    return nature_cnn({"conv1": 2, "conv2": 2, "conv3": 2, "fc1": 2}, "q", 3)


@pytest.fixture
def two_threads() -> Iterator[None]:
    previous = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(previous)


@dataclass(frozen=True)
class Settings:
    threads: int
    collecting: bool
    cores: frozenset[int]


def settings() -> Settings:
    return Settings(torch.get_num_threads(), gc.isenabled(), frozenset(os.sched_getaffinity(0)))


def watched(name: str, log: list[tuple[str, bool, bool, Settings]]) -> Network:
    """Build a network that writes down each decision: name, training mode, inference mode, settings."""

    def write(module: nn.Module, inputs: object, output: object) -> None:
        log.append((name, module.training, torch.is_inference_mode_enabled(), settings()))

    network = small_network()
    network.register_forward_hook(write)
    return network


def deciding(network: Network) -> Decision:
    return torch_decision(network, OBSERVATION)


def fail() -> int:
    raise RuntimeError("the network fails")


def test_every_network_takes_a_turn_in_every_round() -> None:
    orders = turn_orders(["a", "b", "c"], 20, seed=0)
    assert len(orders) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders == turn_orders(["a", "b", "c"], 20, seed=0)
    assert orders != turn_orders(["a", "b", "c"], 20, seed=1)


def test_decisions_are_interleaved_under_the_promised_settings(two_threads: None) -> None:
    log: list[tuple[str, bool, bool, Settings]] = []
    measure_latency({name: deciding(watched(name, log)) for name in ("teacher", "student")}, [], CONFIG, seed=5)
    turns = [name for order in turn_orders(["teacher", "student"], CONFIG.rounds, seed=5) for name in order]
    assert [name for name, *_ in log] == [name for name in turns for _ in range(CONFIG.warmup + CONFIG.decisions)]
    assert not any(training for _, training, _, _ in log)
    assert all(inference for _, _, inference, _ in log)
    (seen,) = {current for *_, current in log}  # the same from the first decision to the last
    assert (seen.threads, seen.collecting, len(seen.cores)) == (1, False, 1)
    assert seen.cores <= CORES


def test_several_threads_are_not_pinned(two_threads: None) -> None:
    log: list[tuple[str, bool, bool, Settings]] = []
    measure_latency({"a": deciding(watched("a", log))}, [], dataclasses.replace(CONFIG, threads=2), seed=0)
    assert {current for *_, current in log} == {Settings(2, False, frozenset(CORES))}


@pytest.mark.parametrize("collecting", [False, True])
def test_settings_are_put_back(two_threads: None, collecting: bool) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        before = Settings(2, collecting, frozenset(CORES))
        measure_latency({"a": deciding(small_network())}, [], CONFIG, seed=0)
        assert settings() == before
        with pytest.raises(RuntimeError, match="the network fails"):
            measure_latency({"a": fail}, [], CONFIG, seed=0)
        assert settings() == before
    finally:
        gc.enable()


def test_networks_and_files_are_measured_and_left_as_they_were(tmp_path: Path) -> None:
    network = small_network()
    info = AgentInfo("pong", "minimal", False, {}, all_channels(network.widths))
    save_float(tmp_path / "a.onnx", Agent(network, info))
    by_file = onnx_decision(tmp_path / "a.onnx", OBSERVATION)
    assert by_file() == deciding(network)()
    result = measure_latency({"a": deciding(network), "b": by_file}, [], CONFIG, seed=0)
    assert list(result) == ["a", "b"]
    for latency in result.values():
        assert latency.decisions == CONFIG.rounds * CONFIG.decisions
        assert len(latency.round_min_ms) == CONFIG.rounds
        assert (
            0
            < latency.min_ms
            <= latency.p50_ms
            <= latency.p90_ms
            <= latency.p99_ms
            <= latency.p999_ms
            <= latency.max_ms
        )
        assert 0 < latency.cpu_p50_ms <= latency.cpu_p99_ms
        assert latency.involuntary_switches >= 0
    assert network.training


@pytest.mark.parametrize(
    "observation", [torch.zeros(1, 4, 84, 84), torch.zeros(2, 4, 84, 84, dtype=torch.uint8)], ids=["float", "two"]
)
def test_another_observation_is_refused(observation: Tensor) -> None:
    with pytest.raises(ValueError, match="one uint8 observation"):
        torch_decision(small_network(), observation)


def summarised(wall_ns: list[list[int]]) -> Latency:
    return summarise_times(wall_ns, wall_ns, 0)


def test_figures_of_known_times() -> None:
    times = [[i * MS for i in range(1, 51)], [i * MS for i in range(51, 101)]]  # 1 to 100 ms
    latency = summarise_times(times, [[MS] * 50, [2 * MS] * 50], involuntary_switches=7)
    assert latency.p50_ms == pytest.approx(50.5)
    assert latency.p90_ms == pytest.approx(90.1)
    assert latency.p99_ms == pytest.approx(99.01)
    assert latency.p999_ms == pytest.approx(99.901)
    assert latency.max_ms == 100
    assert (latency.cpu_p50_ms, latency.cpu_p99_ms) == (1.5, 2)
    assert latency.mean_ms == pytest.approx(50.5)
    assert latency.late == pytest.approx({"60hz": 0.84, "30hz": 0.67, "15hz": 0.34})
    assert (latency.min_ms, latency.round_min_ms) == (1, [1, 51])
    assert (latency.decisions, latency.involuntary_switches) == (100, 7)


def test_speedup_is_that_of_the_fastest_decisions() -> None:
    teacher = summarised([[4 * MS, 9 * MS], [40 * MS, 40 * MS], [4 * MS, 5 * MS], [4 * MS, 7 * MS]])
    student = summarised([[3 * MS, 3 * MS], [20 * MS, 2 * MS], [2 * MS, 2 * MS], [2 * MS, 8 * MS]])
    result = speedup(teacher, student)
    assert result.ratio == 4 / 2
    assert (result.low, result.high) == (2, 2)  # met in three rounds each; slow rounds say nothing
    assert result.spread == 0


def test_the_range_shows_a_fastest_decision_met_once() -> None:
    lucky = summarised([[4 * MS], [6 * MS], [6 * MS], [6 * MS]])
    student = summarised([[2 * MS]] * 4)
    result = speedup(lucky, student)
    assert (result.ratio, result.low, result.high) == (2, 2, 3)
    assert result.spread == 0.5


def test_speedup_of_unequal_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1 rounds"):
        speedup(summarised([[MS], [MS]]), summarised([[MS]]))


@pytest.mark.parametrize(("slow", "blocks"), [(0, 1), (2, 2), (100, 3)])
def test_rounds_are_added_until_the_speedup_is_steady(monkeypatch: pytest.MonkeyPatch, slow: int, blocks: int) -> None:
    """The student is fast in one round, then slow in some, then fast: 3 rounds at least, 9 at most."""
    turns = {"teacher": 0, "student": 0}

    def decisions(decide: Decision, count: int) -> module._Turn:
        if count == CONFIG.warmup:
            return module._Turn([], [])
        name = ("teacher", "student")[decide()]
        turns[name] += 1
        wall = 2 * MS if name == "student" and 1 < turns[name] <= 1 + slow else MS
        return module._Turn([wall] * count, [wall] * count)

    monkeypatch.setattr(module, "_time_decisions", decisions)
    named = {"teacher": lambda: 0, "student": lambda: 1}
    measured = measure_latency(named, [("teacher", "student")], CONFIG, seed=0)
    assert turns == {"teacher": 3 * blocks, "student": 3 * blocks}
    assert {len(latency.round_min_ms) for latency in measured.values()} == {3 * blocks}
    unpaired = measure_latency(named, [], CONFIG, seed=0)
    assert {len(latency.round_min_ms) for latency in unpaired.values()} == {3}
