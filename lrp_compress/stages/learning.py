"""The stages of a run, each one a file that is read if it is there and made if it is not."""

from __future__ import annotations

import copy
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
from lrp_compress.agents.teachers import SCORE, SHIPPED
from lrp_compress.compression.budgets import choose_widths, measure_curves, with_widths
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.distillation import distill
from lrp_compress.compression.finetuning import Update, finetune
from lrp_compress.compression.learner import Progress
from lrp_compress.compression.losses import action_agreement, default_temperature, kl
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning
from lrp_compress.compression.repair import repair_from_play
from lrp_compress.compression.tuning import TUNED, score_by_play
from lrp_compress.config.schema import Config, DistillConfig, PruneConfig, RolloutsConfig, config_hash
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.environments.acting import Outputs, action_rule
from lrp_compress.environments.evaluation import Evaluation, evaluate, load_evaluation, save_evaluation
from lrp_compress.environments.groups import Emulators
from lrp_compress.environments.probing import Probe, probe
from lrp_compress.environments.rollouts import Rollouts, collect_rollouts, load_rollouts, save_rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.pictures.figures import relevance_bars
from lrp_compress.support.errors import GivenUp
from lrp_compress.support.files import is_whole, read_json, sign, stored, value_digest, write_json
from lrp_compress.support.progress import Pace
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

UNDISTILLED = ("pruned", "repaired")  # judged by fewer games
SHARED_FORMAT = 3  # of the files that runs share: where it is another, they are made anew
FAR_BELOW = 0.5  # of the way from random play to the return that an agent's file states
COMPARED = 4096  # held-out states at most that agents are compared on


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
        self.tracker = tracker
        self.prune_config = config.prune
        self.emulators = Emulators()
        self._digest = teacher_digest
        self.rule = action_rule(config.evaluate.action, teacher.network.head_kind, config.evaluate.epsilon)

    def probe(self) -> None:
        """Warn if a teacher that is not one of the shipped plays no better than random actions."""
        config = self.config
        if config.teacher.source == SHIPPED:
            return
        seed = stage_seed(config.seed, "probe")
        result = stored(
            self.folder / "probe.json",
            lambda: probe(self.teacher, self.rule, config.protocol, seed),
            lambda path, result: write_json(path, dataclasses.asdict(result)),
            lambda path: Probe(**read_json(path)),
            "probe of the teacher",
            lambda result: f"reward {result.reward:.1f}, of random actions {result.random:.1f}",
        )
        self.tracker.metrics({"teacher/probe_reward": result.reward, "teacher/probe_random_reward": result.random})
        if not result.better:
            logger.warning("%s", result)

    def rollouts(self) -> Rollouts:
        """Let the teacher play; shared by all runs with the same teacher, protocol, seed and size."""
        config = self.config
        seed = stage_seed(config.seed, "rollouts")
        return stored(
            self._shared("rollouts", dataclasses.asdict(config.rollouts), seed).with_suffix(".safetensors"),
            lambda: self.play(self.teacher, "teacher", config.rollouts, seed),
            save_rollouts,
            lambda path: load_rollouts(path, config.protocol, seed),
            "rollouts",
            lambda rollouts: f"{len(rollouts):,} states",
        )

    def play(self, agent: Agent, name: str, how: RolloutsConfig, seed: int) -> Rollouts:
        """Let an agent play, and keep states of it."""
        return collect_rollouts(
            agent, how, self.rule, self.config.protocol, seed, self.emulators, self.in_runtime(agent, name)
        )

    def ratios(self, rollouts: Rollouts) -> PruneConfig:
        """Settle how much goes: with a budget each layer's ratio is chosen for it, else the settings hold."""
        prune, teacher = self.config.prune, self.teacher.network
        if prune.budget == "none":
            return prune
        scores = self.score(self.teacher, rollouts, 1)

        def make() -> dict[str, int]:
            curves = measure_curves(teacher, scores, rollouts, prune, stage_seed(self.config.seed, "curves"))
            write_json(self.folder / "curves.json", curves)
            return choose_widths(teacher, curves, prune)

        def told(widths: dict[str, int]) -> str:
            return ", ".join(f"{name} {width}" for name, width in widths.items())

        widths = stored(self.folder / "widths.json", make, write_json, read_json, "widths", told)
        self.prune_config = with_widths(prune, teacher.widths, widths)
        self.tracker.params({f"prune.layer_ratios.{name}": r for name, r in self.prune_config.layer_ratios.items()})
        return self.prune_config

    def score(self, agent: Agent, rollouts: Rollouts, step: int) -> ChannelScores:
        """Score the channels of the current network on the teacher's states."""
        config = self.config

        def make() -> ChannelScores:
            seed = stage_seed(config.seed, "criterion", step)
            scores, tuned = score_by_play(agent.network, rollouts, config.criterion, config.prune, seed)
            if tuned:
                default, *_ = tuned.finals.values()
                self.tracker.metrics({"tune/kl": tuned.finals[tuned.composite], "tune/default_kl": default}, step)
            return scores

        path = self._step_file(step, "scores.json")
        scores = stored(path, make, _save_scores, _load_scores, f"score, step {step}", _scored_by)
        if scores.criterion == TUNED:
            self.tracker.tags({f"composite.step_{step}": scores.composite})
        return scores

    def plan(self, agent: Agent, scores: ChannelScores, step: int, ratio: float) -> PruningPlan:
        """Decide which channels stay after this step."""
        widths, kept = self.teacher.network.widths, agent.info.kept
        plan = stored(
            self._step_file(step, "plan.json"),
            lambda: plan_pruning(scores, agent.network, widths, kept, self.prune_config, ratio),
            lambda path, plan: write_json(path, dataclasses.asdict(plan)),
            lambda path: PruningPlan(**read_json(path)),
            f"plan, step {step}",
            lambda plan: f"{plan.ratio_reached:.1%} of the channels go",
        )
        self.tracker.metrics({"prune/ratio_asked": ratio, "prune/ratio_reached": plan.ratio_reached}, step)
        picture = self.folder.parent / "figures" / f"channels-step-{step}.png"
        self.tracker.image(relevance_bars(picture, scores, plan.keep), "relevance/channels", step)
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

        return stored(
            self._step_file(step, "pruned.safetensors"), make, save_agent, load_agent, f"prune, step {step}", _size
        )

    def repair(self, agent: Agent, rollouts: Rollouts, step: int) -> Agent:
        """Solve the layers after the removed channels again, for what the teacher's layers say."""
        config = self.config
        if config.repair.kind == "none" or self._is_whole(agent):
            return agent

        def make() -> Agent:
            kept, seed = agent.info.kept, stage_seed(config.seed, "repair", step)
            result = repair_from_play(agent.network, kept, self.teacher.network, rollouts, config.repair, seed)
            self.tracker.metrics({f"repair/{name}_strength": value for name, value in result.strengths.items()}, step)
            return Agent(result.network, agent.info)

        path = self._step_file(step, "repaired.safetensors")
        return stored(path, make, save_agent, load_agent, f"repair, step {step}", _size)

    def distill(self, agent: Agent, rollouts: Rollouts, step: int, last: bool) -> Agent:
        """Let the pruned network learn from the teacher; its progress is tracked as it comes."""
        config = self.config
        before = int(sum(config.distill.step_samples for _ in range(1, step)))
        samples = 0 if self._is_whole(agent) else config.distill.samples if last else config.distill.step_samples
        stage, pace, checkpoint = f"distill, step {step}", Pace(), self._step_file(step, "distillation.pt")

        def track(progress: Progress) -> None:
            values = {
                "distill/loss": progress.loss,
                "distill/held_out_loss": progress.held_out_loss,
                "distill/action_agreement": progress.agreement,
            }
            self.tracker.metrics(values, (before + progress.samples) // config.distill.batch_size)
            pace.say("%s: %s of %s samples, %s", stage, f"{progress.samples:,}", f"{samples:,}", agreeing(progress))
            if last:
                _check_hope(config.distill, progress)

        def make() -> Agent:
            seed = stage_seed(config.seed, "distill", step)
            result = distill(
                self._to_learn(agent).network,
                agent.info.kept,
                self._to_learn(self.teacher),
                rollouts,
                config.distill,
                samples,
                self.rule,
                config.protocol,
                seed,
                track,
                checkpoint,
                self.emulators,
            )
            record = {key: value for key, value in dataclasses.asdict(result).items() if key != "network"}
            write_json(self._step_file(step, "distillation.json"), record)
            values = {
                "distill/samples": result.samples,
                "distill/samples_per_s": result.samples_per_s,
                "distill/policy_temperature": result.policy_temperature,
            }
            self.tracker.metrics(values, step)
            self.tracker.flush()
            return Agent(result.network.cpu(), agent.info)

        def reached(student: Agent) -> str:
            curve = read_json(self._step_file(step, "distillation.json"))["curve"]
            if not curve:
                return "nothing to make up for"
            last = Progress(**curve[-1])
            return f"{agreeing(last)} after {last.samples:,} samples"

        student = stored(self._step_file(step, "student.safetensors"), make, save_agent, load_agent, stage, reached)
        checkpoint.unlink(missing_ok=True)
        return student

    def finetune(self, agent: Agent) -> Agent:
        """Let the student go on learning from the game's rewards, near its teacher, if that is wanted."""
        config = self.config
        if not config.finetune.steps or self._is_whole(agent):
            return agent
        checkpoint, stage, pace = self.folder / "finetuning.pt", "finetune", Pace()

        def track(updates: list[Update]) -> None:
            for update in updates:
                values = dataclasses.asdict(update)
                step = values.pop("steps")
                self.tracker.metrics({f"finetune/{k}": v for k, v in values.items() if math.isfinite(v)}, step)
            self.tracker.flush()
            for update in updates[-1:]:
                done = f"{update.steps:,} of {config.finetune.steps:,} steps"
                pace.say("%s: %s, return %.1f", stage, done, update.return_mean)

        def make() -> Agent:
            seed = stage_seed(config.seed, "finetune")
            student, teacher = self._to_learn(agent).network, self._to_learn(self.teacher)
            network = finetune(student, teacher, config.finetune, config.protocol, seed, checkpoint, track)
            return Agent(network.cpu(), agent.info)

        student = stored(self.folder / "finetuned.safetensors", make, save_agent, load_agent, stage, _size)
        checkpoint.unlink(missing_ok=True)
        return student

    def compare(self, agents: Mapping[str, Agent], rollouts: Rollouts, step: int) -> dict[str, float]:
        """Compare agents with the teacher after a step: divergence and action agreement on the held-out games."""
        held_out = rollouts.part(rollouts.held_out(), COMPARED)
        temperature = default_temperature(self.teacher.network.head_kind, held_out.outputs)
        values = {}
        for name, agent in agents.items():
            outputs = batched_outputs(agent.network, held_out.observations)
            values[f"{name}/kl"] = kl(outputs, held_out.outputs, temperature).item()
            values[f"{name}/action_agreement"] = action_agreement(outputs, held_out.outputs)
        self.tracker.metrics(values, step)
        return values

    def evaluate(self, agent: Agent, name: str, outputs: Outputs | None = None, games: str = "evaluate") -> Evaluation:
        """Play the evaluation episodes; the teacher's are shared by all runs that evaluate it the same way.

        Games of another name than the usual are as many, of other seeds.
        """
        config = self.config
        seed, how = stage_seed(config.seed, games), config.evaluate
        if name in UNDISTILLED:
            how = dataclasses.replace(how, episodes=min(how.episodes, how.pruned_episodes))
        path = self.folder / f"evaluation-{name}.json"
        shared = self._shared("evaluation", dataclasses.asdict(config.evaluate), seed).with_suffix(".json")

        def make() -> Evaluation:
            plays = outputs or self.in_runtime(agent, name)
            label = f"evaluate {name}"
            return evaluate(agent, how, config.game, self.rule, config.protocol, seed, label, plays, self.emulators)

        evaluation = stored(
            shared if name == "teacher" else path,
            make,
            save_evaluation,
            load_evaluation,
            f"evaluate {name}",
            str,
        )
        if not path.exists():
            save_evaluation(path, evaluation)
        self.tracker.artifact(path, "evaluation")
        if name == "teacher":
            self._compare_with_stated(evaluation)
        return evaluation

    def _compare_with_stated(self, evaluation: Evaluation) -> None:
        """Warn if the teacher's file says that it plays far better than it does here."""
        stated, random_score = self.teacher.info.lineage.get(SCORE), self.config.game.random_score or 0.0
        if isinstance(stated, float) and evaluation.mean < random_score + FAR_BELOW * (stated - random_score):
            logger.warning(
                "the teacher's mean return is %.1f, its file says %.1f; usual causes: another protocol or rule of "
                "acting, teacher.fire_on_life_loss, teacher.frame_skip, observations scaled in another way",
                evaluation.mean,
                stated,
            )

    def float_file(self, agent: Agent, name: str) -> Path:
        """Write an agent as a float32 ONNX file."""
        path = self.folder / "onnx" / f"{name}.onnx"
        if not is_whole(path):
            save_float(path, agent)
            sign(path)
        return path

    def in_runtime(self, agent: Agent, name: str) -> Outputs:
        """Let ONNX Runtime compute an agent's outputs: for few states it takes a quarter to two thirds of the time."""
        return OnnxPolicy(self.float_file(agent, name)).outputs

    def _to_learn(self, agent: Agent) -> Agent:
        """Copy an agent to where students learn."""
        return Agent(copy.deepcopy(agent.network).to(self.config.device), agent.info)

    def _is_whole(self, agent: Agent) -> bool:
        """Whether nothing was removed, so that there is nothing to make up for."""
        return agent.network.widths == self.teacher.network.widths

    def _step_file(self, step: int, name: str) -> Path:
        return self.folder / f"step-{step}" / name

    def _shared(self, kind: str, settings: Mapping[str, Any], seed: int) -> Path:
        """Path, without suffix, of a result that depends on the teacher's play alone."""
        info, game = self.teacher.info, dataclasses.asdict(self.config.game)
        how = [info.fire_on_life_loss, info.frame_skip, game, self.config.protocol, str(self.rule), seed]
        key = [__version__, SHARED_FORMAT, self._digest, *how]
        return Path(self.config.cache_dir) / f"{kind}-{info.game}-{value_digest([*key, settings])[:16]}"


def agreeing(progress: Progress) -> str:
    """Name a distillation's figure that matters."""
    return f"agreement {progress.agreement:.1%}"


def _size(agent: Agent) -> str:
    return f"{sum(parameter.numel() for parameter in agent.network.parameters()):,} parameters"


def _scored_by(scores: ChannelScores) -> str:
    rules = f" ({scores.composite})" if scores.composite else ""
    return f"criterion {scores.criterion}{rules}, {scores.states} states"


def _check_hope(config: DistillConfig, progress: Progress) -> None:
    """Give a student up that is far from its teacher after half its distillation."""
    if config.min_agreement is None or progress.samples < config.samples / 2:
        return
    if progress.agreement < config.min_agreement:
        raise GivenUp(
            f"given up after {progress.samples:,} of {config.samples:,} samples: student and teacher agree in "
            f"{progress.agreement:.1%} of the held-out states, less than distill.min_agreement={config.min_agreement}"
        )


def _save_scores(path: Path, scores: ChannelScores) -> None:
    values = {name: tensor.tolist() for name, tensor in scores.scores.items()}
    write_json(path, dataclasses.asdict(scores) | {"scores": values})


def _load_scores(path: Path) -> ChannelScores:
    fields = read_json(path)
    values: dict[str, Tensor] = {name: torch.tensor(values) for name, values in fields["scores"].items()}
    return ChannelScores(**fields | {"scores": values})
