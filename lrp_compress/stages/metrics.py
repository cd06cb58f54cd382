"""The names of a run's figures: the tracking contract."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.quantization import Quantization
from lrp_compress.config.schema import Config
from lrp_compress.deployment.measuring.cold_start import ColdStart
from lrp_compress.deployment.measuring.latency import Latency, speedup
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.environments.returns import Evaluation, return_kept
from lrp_compress.networks.graph import Network
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.views import VIEW

TORCH = "torch_"  # leads the latency of eager PyTorch; without it, it is ONNX Runtime's
# MLflow puts charts in sections by what stands before the slash, in the order of the alphabet; VIEW comes first.
MATTER_MOST = ("return_kept", "return_mean", "size_bytes", "speedup")


def agent_metrics(
    agents: Mapping[str, Agent],
    evaluations: Mapping[str, Evaluation],
    latencies: Mapping[str, Latency],
    starts: Mapping[str, ColdStart],
) -> dict[str, float]:
    """Name the figures of all agents.

    Parameters
    ----------
    agents : mapping of str to Agent
        Those with a network; ``int8`` has none.
    evaluations : mapping of str to Evaluation
        By the agents' names.
    latencies : mapping of str to Latency
        By the agents' names in ONNX Runtime, by ``torch_`` and their names in PyTorch.
    starts : mapping of str to ColdStart
        By the agents' names.

    Returns
    -------
    dict of str to float
        ``teacher/return_mean`` and so on: points, bytes, milliseconds, shares.
    """
    values: dict[str, float] = {}
    for name, agent in agents.items():
        values |= named(name, _profile(agent.network))
    for name, evaluation in evaluations.items():
        values |= named(name, _returns(evaluation))
    for name, latency in latencies.items():
        runtime = TORCH if name.startswith(TORCH) else ""
        values |= named(name.removeprefix(TORCH), {runtime + key: time for key, time in _times(latency).items()})
    for name, start in starts.items():
        values |= named(name, dataclasses.asdict(start))
    return values


def at_a_glance(metrics: Mapping[str, float]) -> dict[str, float]:
    """Repeat the figures that matter most under names that MLflow shows before all others.

    Parameters
    ----------
    metrics : mapping of str to float
        A run's final ones.

    Returns
    -------
    dict of str to float
        ``at_a_glance/return_kept`` and so on of the student, with ``_int8`` behind it of its int8 file.
    """
    agents = {"student": "", "int8": "_int8"}
    return {
        f"{VIEW}/{name}{ending}": metrics[f"{agent}/{name}"]
        for name in MATTER_MOST
        for agent, ending in agents.items()
        if f"{agent}/{name}" in metrics
    }


def _returns(evaluation: Evaluation) -> dict[str, float]:
    return {
        "return_mean": evaluation.mean,
        "return_ci_low": evaluation.ci_low,
        "return_ci_high": evaluation.ci_high,
        "return_iqm": evaluation.iqm,
        "return_human_normalised": evaluation.human_normalised,
        "episodes": len(evaluation.episodes),
        "episodes_stalled": evaluation.ended("stalled"),
        "episodes_capped": evaluation.ended("capped"),
    }


def _profile(network: Network) -> dict[str, float]:
    profile = profile_network(network)
    return {
        "params": profile.params,
        "macs": profile.macs,
        "size_bytes": profile.size_bytes,
        "activation_bytes": profile.activation_bytes,
    }


def _times(latency: Latency) -> dict[str, float]:
    return {
        "latency_min_ms": latency.min_ms,
        "latency_p50_ms": latency.p50_ms,
        "latency_p90_ms": latency.p90_ms,
        "latency_p99_ms": latency.p99_ms,
        "latency_p999_ms": latency.p999_ms,
        "latency_max_ms": latency.max_ms,
        "latency_cpu_p50_ms": latency.cpu_p50_ms,
        "latency_cpu_p99_ms": latency.cpu_p99_ms,
        "latency_involuntary_switches": latency.involuntary_switches,
        **{f"late_{rate}": share for rate, share in latency.late.items()},
    }


def int8_metrics(quantization: Quantization, size_bytes: int, aware: bool) -> dict[str, float]:
    """How near the int8 file is to the network it was made of, and its size.

    All is computed in exact integer arithmetic, as every processor with VNNI and every Arm does it;
    ``default_session_differs`` is the share of held-out states in which ONNX Runtime's default session, whose latency
    is measured, gives other outputs on this machine.
    """
    chosen = quantization.chosen
    return {
        "agreement": chosen.agreement,
        "error": chosen.error,
        "margin": chosen.margin,
        "margin_where_differing": chosen.margin_where_differing,
        "default_session_differs": quantization.default_session_differs,
        "size_bytes": size_bytes,
        "per_channel": quantization.per_channel,
        "equalized": quantization.way == "equalized",
        "distilled": aware,
    }


def named(agent: str, values: Mapping[str, float]) -> dict[str, float]:
    """Put an agent's name before its figures, those left out that are not numbers."""
    return {f"{agent}/{key}": float(value) for key, value in values.items() if not math.isnan(value)}


def ratio_metrics(
    config: Config,
    metrics: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    latencies: Mapping[str, Latency],
) -> dict[str, float]:
    """Compare the other agents with the teacher.

    Parameters
    ----------
    config : Config
        The run's.
    metrics : mapping of str to float
        The agents' own figures.
    evaluations : mapping of str to Evaluation
        Of the teacher and others.
    latencies : mapping of str to Latency
        By the agents' names in ONNX Runtime, by ``torch_`` and their names in PyTorch.
    """
    values: dict[str, float] = {}
    seed = stage_seed(config.seed, "bootstrap")
    for name in evaluations.keys() - {"teacher"}:
        kept = return_kept(
            evaluations[name], evaluations["teacher"], config.game.random_score, config.evaluate.confidence, seed
        )
        shares = {"return_kept": kept.value, "return_kept_ci_low": kept.low, "return_kept_ci_high": kept.high}
        if f"{name}/params" in metrics:
            shares["params_kept"] = metrics[f"{name}/params"] / metrics["teacher/params"]
        values |= named(name, shares)
    for name in ("student", "int8"):
        for runtime in ("", TORCH):
            if runtime + name in latencies:
                faster = speedup(latencies[f"{runtime}teacher"], latencies[runtime + name])
                ratios = {"": faster.ratio, "_low": faster.low, "_high": faster.high, "_spread": faster.spread}
                values |= {f"{name}/{runtime}speedup{end}": value for end, value in ratios.items()}
    for name in ("student", "int8"):
        if f"{name}/size_bytes" in metrics:
            values[f"{name}/compression"] = metrics["teacher/size_bytes"] / metrics[f"{name}/size_bytes"]
    return values
