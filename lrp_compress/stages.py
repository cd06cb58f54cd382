"""The stages of a run, each one a file that is read if it is there and made if it is not."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrp_compress import __version__
from lrp_compress.agents.checkpoints import Agent, load_agent, save_agent
from lrp_compress.agents.teachers import SHIPPED
from lrp_compress.atari.acting import action_rule
from lrp_compress.atari.evaluation import Evaluation, evaluate, load_evaluation, return_kept, save_evaluation
from lrp_compress.atari.probing import Probe, probe
from lrp_compress.atari.rollouts import Rollouts, collect_rollouts, load_rollouts, save_rollouts
from lrp_compress.compression.criteria import ChannelScores, score_channels
from lrp_compress.compression.distillation import Progress, action_agreement, distill
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning
from lrp_compress.config import Config, DistillConfig, config_hash
from lrp_compress.deployment.latency import Latency, measure_steadily, speedup
from lrp_compress.deployment.profiling import profile_network
from lrp_compress.errors import GivenUp
from lrp_compress.figures import relevance_bars
from lrp_compress.files import read_json, stored, value_digest, write_json
from lrp_compress.seeding import stage_seed
from lrp_compress.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


class Stages:
    """What every stage of a run needs to know, and a method per stage.

    Parameters
    ----------
    config : Config
        The checked configuration.
    teacher : Agent
        The agent to compress.
    teacher_digest : str
        Digest of its file, which the shared results are cached under.
    folder : Path
        Where the results of this run's stages are kept.
    tracker : Tracker
        Where metrics and artifacts go.
    """

    def __init__(self, config: Config, teacher: Agent, teacher_digest: str, folder: Path, tracker: Tracker) -> None:
        self.config = config
        self.teacher = teacher
        self.folder = folder
        self._tracker = tracker
        self._digest = teacher_digest
        self._rule = action_rule(config.evaluate.action, teacher.network.head_kind, config.evaluate.epsilon)

    def probe(self) -> None:
        """Warn if a teacher that is not one of the shipped plays no better than random actions."""
        config = self.config
        if config.teacher.source == SHIPPED:
            return
        seed = stage_seed(config.seed, "probe")
        result = stored(
            self.folder / "probe.json",
            lambda: probe(self.teacher, self._rule, config.protocol, seed),
            lambda path, result: write_json(path, dataclasses.asdict(result)),
            lambda path: Probe(**read_json(path)),
        )
        self._tracker.metrics({"teacher/probe_reward": result.reward, "teacher/probe_random_reward": result.random})
        if not result.better:
            logger.warning("%s", result)

    def rollouts(self) -> Rollouts:
        """Let the teacher play; shared by all runs with the same teacher, protocol, seed and size."""
        config = self.config
        seed = stage_seed(config.seed, "rollouts")
        return stored(
            self._shared("rollouts", dataclasses.asdict(config.rollouts), seed).with_suffix(".safetensors"),
            lambda: collect_rollouts(self.teacher, config.rollouts, self._rule, config.protocol, seed),
            save_rollouts,
            lambda path: load_rollouts(path, config.protocol, seed),
        )

    def score(self, agent: Agent, rollouts: Rollouts, step: int) -> ChannelScores:
        """Score the channels of the current network on the teacher's states."""
        config = self.config

        def make() -> ChannelScores:
            states = torch.arange(len(rollouts))
            seed = stage_seed(config.seed, "criterion", step)
            return score_channels(
                agent.network, rollouts.observations(states), rollouts.outputs, config.criterion, seed
            )

        return stored(self._step_file(step, "scores.json"), make, _save_scores, _load_scores)

    def plan(self, agent: Agent, scores: ChannelScores, step: int, ratio: float) -> PruningPlan:
        """Decide which channels stay after this step."""
        widths, kept = self.teacher.network.widths, agent.info.kept
        plan = stored(
            self._step_file(step, "plan.json"),
            lambda: plan_pruning(scores, agent.network, widths, kept, self.config.prune, ratio),
            lambda path, plan: write_json(path, dataclasses.asdict(plan)),
            lambda path: PruningPlan(**read_json(path)),
        )
        self._tracker.metrics({"prune/ratio_asked": ratio, "prune/ratio_reached": plan.ratio_reached}, step)
        picture = self.folder.parent / "figures" / f"channels-step-{step}.png"
        self._tracker.image(relevance_bars(picture, scores, plan.keep), "relevance/channels", step)
        return plan

    def prune(self, agent: Agent, plan: PruningPlan, step: int) -> Agent:
        """Remove the channels that do not stay."""
        config = self.config
        lineage = {
            "teacher_sha256": self._digest,
            "criterion": config.criterion.name,
            "ratio": plan.ratio_reached,
            "step": step,
            "config_hash": config_hash(config),
            "lrp_compress": __version__,
        }

        def make() -> Agent:
            info = dataclasses.replace(agent.info, lineage=lineage, kept=plan.kept_original)
            return Agent(apply_pruning(agent.network, plan), info)

        return stored(self._step_file(step, "pruned.safetensors"), make, save_agent, load_agent)

    def distill(self, agent: Agent, rollouts: Rollouts, step: int, last: bool) -> Agent:
        """Let the pruned network learn from the teacher; its progress is tracked as it comes."""
        config = self.config
        before = int(sum(config.distill.step_samples for _ in range(1, step)))

        def track(progress: Progress) -> None:
            values = {
                "distill/loss": progress.loss,
                "distill/held_out_loss": progress.held_out_loss,
                "distill/action_agreement": progress.agreement,
            }
            self._tracker.metrics(values, (before + progress.samples) // config.distill.batch_size)
            if last:
                _check_hope(config.distill, progress)

        def make() -> Agent:
            samples = config.distill.samples if last else config.distill.step_samples
            seed = stage_seed(config.seed, "distill", step)
            result = distill(
                agent.network,
                agent.info.kept,
                self.teacher,
                rollouts.outputs,
                config.distill,
                samples,
                self._rule,
                config.protocol,
                seed,
                track,
            )
            record = {key: value for key, value in dataclasses.asdict(result).items() if key != "network"}
            write_json(self._step_file(step, "distillation.json"), record)
            values = {
                "distill/samples_per_s": result.samples_per_s,
                "distill/entropy_temperature": result.entropy_temperature,
            }
            self._tracker.metrics(values, step)
            self._tracker.flush()
            return Agent(result.network, agent.info)

        return stored(self._step_file(step, "student.safetensors"), make, save_agent, load_agent)

    def compare(self, agents: Mapping[str, Agent], rollouts: Rollouts, step: int) -> dict[str, float]:
        """Compare agents with the teacher after a step: their action agreement on the teacher's states."""
        observations = rollouts.observations(torch.arange(len(rollouts)))
        values = {}
        for name, agent in agents.items():
            values[f"{name}/action_agreement"] = action_agreement(agent.network, observations, rollouts.outputs)
        self._tracker.metrics(values, step)
        return values

    def evaluate(self, agent: Agent, name: str) -> Evaluation:
        """Play the evaluation episodes; the teacher's are shared by all runs that evaluate it the same way."""
        config = self.config
        seed = stage_seed(config.seed, "evaluate")
        path = self.folder / f"evaluation-{name}.json"
        shared = self._shared("evaluation", dataclasses.asdict(config.evaluate), seed).with_suffix(".json")
        evaluation = stored(
            shared if name == "teacher" else path,
            lambda: evaluate(
                agent, config.evaluate, config.game, self._rule, config.protocol, seed, f"evaluate {name}"
            ),
            save_evaluation,
            load_evaluation,
        )
        if not path.exists():
            save_evaluation(path, evaluation)
        self._tracker.artifact(path, "evaluation")
        return evaluation

    def measure(self, agents: Mapping[str, Agent], rollouts: Rollouts) -> dict[str, Latency]:
        """Measure the agents' latency, interleaved."""
        observation = rollouts.observations(torch.tensor([len(rollouts) // 2]))
        networks = {name: agent.network for name, agent in agents.items()}
        seed = stage_seed(self.config.seed, "latency")
        return stored(
            self.folder / "latency.json",
            lambda: measure_steadily(networks, observation, self.config.latency, seed),
            lambda path, measured: write_json(path, {name: dataclasses.asdict(m) for name, m in measured.items()}),
            lambda path: {name: Latency(**m) for name, m in read_json(path).items()},
        )

    def _step_file(self, step: int, name: str) -> Path:
        return self.folder / f"step-{step}" / name

    def _shared(self, kind: str, settings: Mapping[str, Any], seed: int) -> Path:
        """Path, without suffix, of a result that depends on the teacher's play alone."""
        info, game = self.teacher.info, dataclasses.asdict(self.config.game)
        key = [__version__, self._digest, info.fire_on_life_loss, game, self.config.protocol, str(self._rule), seed]
        return Path(self.config.cache_dir) / f"{kind}-{info.game}-{value_digest([*key, settings])[:16]}"


def _check_hope(config: DistillConfig, progress: Progress) -> None:
    """Give a student up that is far from its teacher after half its distillation."""
    if config.min_agreement is None or progress.samples < config.samples / 2:
        return
    if progress.agreement < config.min_agreement:
        raise GivenUp(
            f"given up after {progress.samples:,} of {config.samples:,} samples: student and teacher agree in "
            f"{progress.agreement:.1%} of the held-out states, less than distill.min_agreement={config.min_agreement}"
        )


def agent_metrics(name: str, agent: Agent, evaluation: Evaluation, latency: Latency) -> dict[str, float]:
    """Name one agent's figures by the tracking contract."""
    profile = profile_network(agent.network)
    values = {
        "return_mean": evaluation.mean,
        "return_ci_low": evaluation.ci_low,
        "return_ci_high": evaluation.ci_high,
        "return_iqm": evaluation.iqm,
        "return_human_normalised": evaluation.human_normalised,
        "episodes": len(evaluation.episodes),
        "episodes_stalled": evaluation.ended("stalled"),
        "episodes_capped": evaluation.ended("capped"),
        "params": profile.params,
        "macs": profile.macs,
        "size_bytes": profile.size_bytes,
        "activation_bytes": profile.activation_bytes,
        "latency_p50_ms": latency.p50_ms,
        "latency_p90_ms": latency.p90_ms,
        "latency_p99_ms": latency.p99_ms,
        "latency_max_ms": latency.max_ms,
        **{f"late_{rate}": share for rate, share in latency.late.items()},
    }
    return {f"{name}/{key}": float(value) for key, value in values.items() if not math.isnan(value)}


def ratio_metrics(
    config: Config,
    metrics: Mapping[str, float],
    evaluations: Mapping[str, Evaluation],
    latencies: Mapping[str, Latency],
) -> dict[str, float]:
    """Compare the other agents with the teacher."""
    values: dict[str, float] = {}
    seed = stage_seed(config.seed, "bootstrap")
    for name in evaluations.keys() - {"teacher"}:
        kept = return_kept(
            evaluations[name], evaluations["teacher"], config.game.random_score, config.evaluate.confidence, seed
        )
        values |= {
            f"{name}/return_kept": kept.value,
            f"{name}/return_kept_ci_low": kept.low,
            f"{name}/return_kept_ci_high": kept.high,
            f"{name}/params_kept": metrics[f"{name}/params"] / metrics["teacher/params"],
        }
    faster = speedup(latencies["teacher"], latencies["student"])
    values |= {
        "student/speedup": faster.ratio,
        "student/speedup_low": faster.low,
        "student/speedup_high": faster.high,
        "student/speedup_spread": faster.spread,
    }
    return {key: value for key, value in values.items() if not math.isnan(value)}


def _save_scores(path: Path, scores: ChannelScores) -> None:
    values = {name: tensor.tolist() for name, tensor in scores.scores.items()}
    write_json(path, {"scores": values, "criterion": scores.criterion, "states": scores.states})


def _load_scores(path: Path) -> ChannelScores:
    fields = read_json(path)
    values: dict[str, Tensor] = {name: torch.tensor(values) for name, values in fields["scores"].items()}
    return ChannelScores(values, fields["criterion"], fields["states"])
