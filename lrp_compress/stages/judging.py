"""How well agents play, how near they are to their teacher, and how fast their files decide."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from lrp_compress.agents.checkpoints import SCORE, Agent
from lrp_compress.compression.losses import action_agreement, default_temperature, kl
from lrp_compress.deployment.measuring.cold_start import ColdStart, cold_start
from lrp_compress.deployment.measuring.latency import Latency, measure_latency, onnx_decision, speedup, torch_decision
from lrp_compress.environments.acting import Outputs
from lrp_compress.environments.evaluation import evaluate as play_games
from lrp_compress.environments.returns import Evaluation, load_evaluation, save_evaluation
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.stages.context import Run
from lrp_compress.stages.metrics import TORCH
from lrp_compress.stages.playing import in_runtime
from lrp_compress.support.files import read_json, stored, write_json

logger = logging.getLogger(__name__)

UNDISTILLED = ("pruned", "repaired")  # judged by fewer games
FAR_BELOW = 0.5  # of the way from random play to the return that an agent's file states
COMPARED = 4096  # held-out states at most that agents are compared on


def compare(run: Run, agents: Mapping[str, Agent], rollouts: Rollouts, step: int) -> dict[str, float]:
    """Compare agents with the teacher after a step: divergence and action agreement on the held-out games."""
    held_out = rollouts.part(rollouts.held_out(), COMPARED)
    temperature = default_temperature(run.teacher.network.head_kind, held_out.outputs)
    values = {}
    for name, agent in agents.items():
        outputs = batched_outputs(agent.network, held_out.observations)
        values[f"{name}/kl"] = kl(outputs, held_out.outputs, temperature).item()
        values[f"{name}/action_agreement"] = action_agreement(outputs, held_out.outputs)
    run.tracker.metrics(values, step)
    return values


def evaluate(run: Run, agent: Agent, name: str, outputs: Outputs | None = None, games: str = "evaluate") -> Evaluation:
    """Play the evaluation episodes; the teacher's are shared by all runs that evaluate it the same way.

    Games of another name than the usual are as many, of other seeds.
    """
    config = run.config
    seed, how = run.seed(games), config.evaluate
    if name in UNDISTILLED:
        how = dataclasses.replace(how, episodes=min(how.episodes, how.pruned_episodes))
    path = run.folder / f"evaluation-{name}.json"
    shared = run.shared("evaluation", dataclasses.asdict(config.evaluate), seed).with_suffix(".json")

    def make() -> Evaluation:
        plays = outputs or in_runtime(run, agent, name)
        label = f"evaluate {name}"
        return play_games(agent, how, config.game, run.acting(seed), label, plays)

    played = stored(
        shared if name == "teacher" else path,
        make,
        save_evaluation,
        load_evaluation,
        f"evaluate {name}",
        str,
    )
    if not path.exists():
        save_evaluation(path, played)
    run.tracker.artifact(path, "evaluation")
    if name == "teacher":
        _compare_with_stated(run, played)
    return played


def _compare_with_stated(run: Run, evaluation: Evaluation) -> None:
    """Warn if the teacher's file says that it plays far better than it does here."""
    stated, random_score = run.teacher.info.lineage.get(SCORE), run.config.game.random_score or 0.0
    if isinstance(stated, float) and evaluation.mean < random_score + FAR_BELOW * (stated - random_score):
        logger.warning(
            "the teacher's mean return is %.1f, its file says %.1f; usual causes: another protocol or rule of "
            "acting, teacher.fire_on_life_loss, teacher.frame_skip, observations scaled in another way",
            evaluation.mean,
            stated,
        )


def measure(run: Run, agents: Mapping[str, Agent], files: Mapping[str, Path], rollouts: Rollouts) -> dict[str, Latency]:
    """Measure the latency of the files in ONNX Runtime, then of teacher and student in PyTorch."""
    observation = rollouts.observations(torch.tensor([len(rollouts) // 2]))
    pairs = [("teacher", name) for name in files if name != "teacher"]

    def make() -> dict[str, Latency]:
        how, seed = run.config.latency, run.seed("latency")
        loaded = {name: onnx_decision(path, observation) for name, path in files.items()}
        eager = {TORCH + name: torch_decision(agents[name].network, observation) for name in ("teacher", "student")}
        return measure_latency(loaded, pairs, how, seed) | measure_latency(eager, [], how, seed)

    return stored(
        run.folder / "latency.json",
        make,
        lambda path, measured: write_json(path, {name: dataclasses.asdict(m) for name, m in measured.items()}),
        lambda path: {name: Latency(**m) for name, m in read_json(path).items()},
        "latency",
        lambda measured: f"speedup {speedup(measured['teacher'], measured['student']).ratio:.2f}",
    )


def cold_starts(run: Run, files: Mapping[str, Path]) -> dict[str, ColdStart]:
    """Load each file in a process of its own."""
    return stored(
        run.folder / "cold-start.json",
        lambda: {name: cold_start(path) for name, path in files.items()},
        lambda path, measured: write_json(path, {name: dataclasses.asdict(m) for name, m in measured.items()}),
        lambda path: {name: ColdStart(**m) for name, m in read_json(path).items()},
        "cold starts",
    )
