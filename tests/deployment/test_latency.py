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
from lrp_compress.agents.networks import PolicyNetwork
from lrp_compress.config import LatencyConfig
from lrp_compress.deployment import latency as module
from lrp_compress.deployment.latency import (
    Decision,
    Latency,
    measure_latency,
    measure_steadily,
    onnx_decision,
    speedup,
    summarise_times,
    torch_decision,
    turn_orders,
)
from lrp_compress.deployment.onnx_models import save_float
from lrp_compress.deployment.onnx_sessions import OnnxPolicy

CONFIG = LatencyConfig(rounds=3, decisions=4, warmup=2, threads=1, max_spread=0.2, attempts=3)
OBSERVATION = torch.zeros(1, 4, 84, 84, dtype=torch.uint8)
MS = 1_000_000  # nanoseconds
CORES = os.sched_getaffinity(0)


def small_network() -> PolicyNetwork:
    return PolicyNetwork({"conv1": 2, "conv2": 2, "conv3": 2, "fc1": 2}, "q", 3)


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


def watched(name: str, log: list[tuple[str, bool, bool, Settings]]) -> PolicyNetwork:
    """Build a network that writes down each decision: name, training mode, inference mode, settings."""

    def write(module: nn.Module, inputs: object, output: object) -> None:
        log.append((name, module.training, torch.is_inference_mode_enabled(), settings()))

    network = small_network()
    network.register_forward_hook(write)
    return network


def deciding(network: PolicyNetwork) -> Decision:
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
    measure_latency({name: deciding(watched(name, log)) for name in ("teacher", "student")}, CONFIG, seed=5)
    turns = [name for order in turn_orders(["teacher", "student"], CONFIG.rounds, seed=5) for name in order]
    assert [name for name, *_ in log] == [name for name in turns for _ in range(CONFIG.warmup + CONFIG.decisions)]
    assert not any(training for _, training, _, _ in log)
    assert all(inference for _, _, inference, _ in log)
    (seen,) = {current for *_, current in log}  # the same from the first decision to the last
    assert (seen.threads, seen.collecting, len(seen.cores)) == (1, False, 1)
    assert seen.cores <= CORES


def test_several_threads_are_not_pinned(two_threads: None) -> None:
    log: list[tuple[str, bool, bool, Settings]] = []
    measure_latency({"a": deciding(watched("a", log))}, dataclasses.replace(CONFIG, threads=2), seed=0)
    assert {current for *_, current in log} == {Settings(2, False, frozenset(CORES))}


@pytest.mark.parametrize("collecting", [False, True])
def test_settings_are_put_back(two_threads: None, collecting: bool) -> None:
    (gc.enable if collecting else gc.disable)()
    try:
        before = Settings(2, collecting, frozenset(CORES))
        measure_latency({"a": deciding(small_network())}, CONFIG, seed=0)
        assert settings() == before
        with pytest.raises(RuntimeError, match="the network fails"):
            measure_latency({"a": fail}, CONFIG, seed=0)
        assert settings() == before
    finally:
        gc.enable()


def test_networks_and_files_are_measured_and_left_as_they_were(tmp_path: Path) -> None:
    network = small_network()
    info = AgentInfo("pong", "minimal", False, {}, all_channels(network.widths))
    save_float(tmp_path / "a.onnx", Agent(network, info))
    by_file = onnx_decision(OnnxPolicy(tmp_path / "a.onnx"), OBSERVATION)
    assert by_file() == deciding(network)()
    result = measure_latency({"a": deciding(network), "b": by_file}, CONFIG, seed=0)
    assert list(result) == ["a", "b"]
    for latency in result.values():
        assert latency.decisions == CONFIG.rounds * CONFIG.decisions
        assert len(latency.round_p50_ms) == CONFIG.rounds
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms <= latency.p999_ms <= latency.max_ms
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
    assert latency.round_p50_ms == pytest.approx([25.5, 75.5])
    assert (latency.decisions, latency.involuntary_switches) == (100, 7)


def test_speedup_is_paired_by_round() -> None:
    teacher = summarised([[4 * MS] * 3, [40 * MS] * 3, [4 * MS] * 3])
    student = summarised([[2 * MS] * 3, [20 * MS] * 3, [1 * MS] * 3])
    result = speedup(teacher, student)
    assert result.ratio == pytest.approx(4 / 2)
    # the slow second round slows both, so its ratio is 2 as in the first; the third round's is 4
    assert result.low == pytest.approx(2)
    assert 2 < result.high <= 4


def test_speedup_of_unequal_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        speedup(summarised([[MS], [MS]]), summarised([[MS]]))


@pytest.mark.parametrize(
    ("spreads", "chosen", "measured"), [([0.1], 0, 1), ([0.5, 0.15], 1, 2), ([0.5, 0.3, 0.4, 0.0], 1, 3)]
)
def test_an_unsteady_speedup_is_measured_again(
    monkeypatch: pytest.MonkeyPatch, spreads: list[float], chosen: int, measured: int
) -> None:
    def times(spread: float) -> dict[str, Latency]:
        teacher = [[int((1 + i * spread) * 100 * MS)] for i in (0, 0, 1)]  # slower in the last round
        return {"teacher": summarised(teacher), "student": summarised([[100 * MS]] * 3)}

    made = [times(spread) for spread in spreads]
    rounds = iter(made)
    monkeypatch.setattr(module, "measure_latency", lambda *arguments: next(rounds))
    assert measure_steadily({}, [("teacher", "student")], CONFIG, seed=0) is made[chosen]
    assert len(list(rounds)) == len(spreads) - measured
