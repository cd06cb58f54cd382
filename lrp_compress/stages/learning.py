"""From the teacher to its student: score, plan, prune, repair, distil, fine-tune.

Each stage is a file that is read if it is there and made if it is not.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor

from lrp_compress import __version__
from lrp_compress.agents.checkpoints import Agent, load_agent, save_agent
from lrp_compress.compression import distillation, finetuning
from lrp_compress.compression.budgets import choose_widths, measure_curves, with_widths
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.distillation import Beside
from lrp_compress.compression.finetuning import Update
from lrp_compress.compression.learner import Progress
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning
from lrp_compress.compression.repair import repair_from_play
from lrp_compress.compression.tuning import TUNED, score_by_play
from lrp_compress.config.schema import DistillConfig, PruneConfig, config_hash
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.pictures.figures import relevance_bars
from lrp_compress.stages.context import Run
from lrp_compress.support.errors import GivenUp
from lrp_compress.support.files import read_json, stored, write_json
from lrp_compress.support.progress import Pace


def ratios(run: Run, rollouts: Rollouts) -> PruneConfig:
    """Settle how much goes: with a budget each layer's ratio is chosen for it, else the settings hold."""
    prune, teacher = run.config.prune, run.teacher.network
    if prune.budget == "none":
        return prune
    scores = score(run, run.teacher, rollouts, 1)

    def make() -> dict[str, int]:
        curves = measure_curves(teacher, scores, rollouts, prune, run.seed("curves"))
        write_json(run.folder / "curves.json", curves)
        return choose_widths(teacher, curves, prune)

    def told(widths: dict[str, int]) -> str:
        return ", ".join(f"{name} {width}" for name, width in widths.items())

    widths = stored(run.folder / "widths.json", make, write_json, read_json, "widths", told)
    chosen = with_widths(prune, teacher.widths, widths)
    run.tracker.params({f"prune.layer_ratios.{name}": ratio for name, ratio in chosen.layer_ratios.items()})
    return chosen


def score(run: Run, agent: Agent, rollouts: Rollouts, step: int) -> ChannelScores:
    """Score the channels of the current network on the teacher's states."""
    config = run.config

    def make() -> ChannelScores:
        seed = run.seed("criterion", step)
        scores, tuned = score_by_play(agent.network, rollouts, config.criterion, config.prune, seed)
        if tuned:
            default, *_ = tuned.finals.values()
            run.tracker.metrics({"tune/kl": tuned.finals[tuned.composite], "tune/default_kl": default}, step)
        return scores

    path = run.step_file(step, "scores.json")
    scores = stored(path, make, _save_scores, _load_scores, f"score, step {step}", _scored_by)
    if scores.criterion == TUNED:
        run.tracker.tags({f"composite.step_{step}": scores.composite})
    return scores


def plan(run: Run, prune: PruneConfig, agent: Agent, scores: ChannelScores, step: int, ratio: float) -> PruningPlan:
    """Decide which channels stay after this step."""
    widths, kept = run.teacher.network.widths, agent.info.kept
    plan = stored(
        run.step_file(step, "plan.json"),
        lambda: plan_pruning(scores, agent.network, widths, kept, prune, ratio),
        lambda path, plan: write_json(path, dataclasses.asdict(plan)),
        lambda path: PruningPlan(**read_json(path)),
        f"plan, step {step}",
        lambda plan: f"{plan.ratio_reached:.1%} of the channels go",
    )
    run.tracker.metrics({"prune/ratio_asked": ratio, "prune/ratio_reached": plan.ratio_reached}, step)
    picture = run.folder.parent / "figures" / f"channels-step-{step}.png"
    run.tracker.image(relevance_bars(picture, scores, plan.keep), "relevance/channels", step)
    return plan


def prune(run: Run, agent: Agent, plan: PruningPlan, step: int) -> Agent:
    """Remove the channels that do not stay."""
    config = run.config
    lineage = {
        "teacher_sha256": run.teacher_digest,
        "criterion": config.criterion.name,
        "ratio": plan.ratio_reached,
        "step": step,
        "config_hash": config_hash(config),
        "lrp_compress": __version__,
    }

    def make() -> Agent:
        info = dataclasses.replace(agent.info, lineage=lineage, kept=plan.kept_original)
        return Agent(apply_pruning(agent.network, plan), info)

    return stored(run.step_file(step, "pruned.safetensors"), make, save_agent, load_agent, f"prune, step {step}", _size)


def repair(run: Run, agent: Agent, rollouts: Rollouts, step: int) -> Agent:
    """Solve the layers after the removed channels again, for what the teacher's layers say."""
    config = run.config
    if config.repair.kind == "none" or run.is_whole(agent):
        return agent

    def make() -> Agent:
        kept, seed = agent.info.kept, run.seed("repair", step)
        result = repair_from_play(agent.network, kept, run.teacher.network, rollouts, config.repair, seed)
        run.tracker.metrics({f"repair/{name}_strength": value for name, value in result.strengths.items()}, step)
        return Agent(result.network, agent.info)

    path = run.step_file(step, "repaired.safetensors")
    return stored(path, make, save_agent, load_agent, f"repair, step {step}", _size)


def distill(run: Run, agent: Agent, rollouts: Rollouts, step: int, last: bool) -> Agent:
    """Let the pruned network learn from the teacher; its progress is tracked as it comes."""
    config = run.config
    before = int(sum(config.distill.step_samples for _ in range(1, step)))
    samples = 0 if run.is_whole(agent) else config.distill.samples if last else config.distill.step_samples
    stage, pace, checkpoint = f"distill, step {step}", Pace(), run.step_file(step, "distillation.pt")

    def track(progress: Progress) -> None:
        values = {
            "distill/loss": progress.loss,
            "distill/held_out_loss": progress.held_out_loss,
            "distill/action_agreement": progress.agreement,
        }
        run.tracker.metrics(values, (before + progress.samples) // config.distill.batch_size)
        pace.say("%s: %s of %s samples, %s", stage, f"{progress.samples:,}", f"{samples:,}", agreeing(progress))
        if last:
            _check_hope(config.distill, progress)

    def make() -> Agent:
        student, teacher = run.to_learn(agent), run.to_learn(run.teacher)
        how, acting = dataclasses.replace(config.distill, samples=samples), run.acting(run.seed("distill", step))
        result = distillation.distill(student, teacher, rollouts, how, acting, Beside(track, checkpoint))
        record = {key: value for key, value in dataclasses.asdict(result).items() if key != "network"}
        write_json(run.step_file(step, "distillation.json"), record)
        values = {
            "distill/samples": result.samples,
            "distill/samples_per_s": result.samples_per_s,
            "distill/policy_temperature": result.policy_temperature,
        }
        run.tracker.metrics(values, step)
        run.tracker.flush()
        return Agent(result.network.cpu(), agent.info)

    def reached(student: Agent) -> str:
        curve = read_json(run.step_file(step, "distillation.json"))["curve"]
        if not curve:
            return "nothing to make up for"
        last = Progress(**curve[-1])
        return f"{agreeing(last)} after {last.samples:,} samples"

    student = stored(run.step_file(step, "student.safetensors"), make, save_agent, load_agent, stage, reached)
    checkpoint.unlink(missing_ok=True)
    return student


def finetune(run: Run, agent: Agent) -> Agent:
    """Let the student go on learning from the game's rewards, near its teacher, if that is wanted."""
    config = run.config
    if not config.finetune.steps or run.is_whole(agent):
        return agent
    checkpoint, stage, pace = run.folder / "finetuning.pt", "finetune", Pace()

    def track(updates: list[Update]) -> None:
        for update in updates:
            values = dataclasses.asdict(update)
            step = values.pop("steps")
            run.tracker.metrics({f"finetune/{k}": v for k, v in values.items() if math.isfinite(v)}, step)
        run.tracker.flush()
        for update in updates[-1:]:
            done = f"{update.steps:,} of {config.finetune.steps:,} steps"
            pace.say("%s: %s, return %.1f", stage, done, update.return_mean)

    def make() -> Agent:
        acting = run.acting(run.seed("finetune"))
        student, teacher = run.to_learn(agent).network, run.to_learn(run.teacher)
        network = finetuning.finetune(student, teacher, config.finetune, acting, checkpoint, track)
        return Agent(network.cpu(), agent.info)

    student = stored(run.folder / "finetuned.safetensors", make, save_agent, load_agent, stage, _size)
    checkpoint.unlink(missing_ok=True)
    return student


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
