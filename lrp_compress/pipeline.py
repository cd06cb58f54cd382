"""The whole path of one run, from a trained agent to a small one with its evidence.

Read `compress` from top to bottom: each line is a stage, and each stage's result a typed value and a file. A file that
is there is read instead of made again, so the same command goes on where an earlier one was cut off.
"""

from __future__ import annotations

import functools
from pathlib import Path

from rich.console import Console

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.teachers import load_teacher, teacher_path
from lrp_compress.compression.budgets import check_budget
from lrp_compress.compression.composites import find_composite
from lrp_compress.compression.criteria import CRITERIA
from lrp_compress.compression.losses import LOSSES
from lrp_compress.compression.pruning import prunable_layers
from lrp_compress.compression.schedules import SCHEDULES, cumulative_ratios
from lrp_compress.config.schema import Config
from lrp_compress.deployment.files.exports import check_exports
from lrp_compress.environments.atari import game_spaces
from lrp_compress.networks.fast import check_device
from lrp_compress.stages import device_files, judging, learning, playing
from lrp_compress.stages.context import Run
from lrp_compress.stages.metrics import agent_metrics, at_a_glance, int8_metrics, named, ratio_metrics
from lrp_compress.stages.publishing import MAPS, SMALL_MAPS, STUDENT, publish
from lrp_compress.stages.resume import RESULT, STAGES, failures, run_once
from lrp_compress.stages.summary import file_table, result_page, result_table
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import check_writable, file_digest, value_digest, write_text
from lrp_compress.support.plugins import load_plugins, plugin_digests
from lrp_compress.support.processes import give_back_memory
from lrp_compress.support.progress import announced
from lrp_compress.tracking.runs import check_store, training_view
from lrp_compress.tracking.tracker import DESCRIPTION, Tracker

PAGE = "result.md"


def compress(config: Config, teacher: Agent, digest: str, run_dir: Path, tracker: Tracker) -> dict[str, float]:
    """Take the teacher of the configuration to its student and all that is to be known about it.

    Parameters
    ----------
    config : Config
        The checked configuration.
    teacher : Agent
        The agent to compress.
    digest : str
        Digest of its file.
    run_dir : Path
        The run's folder.
    tracker : Tracker
        Where metrics and artifacts go as they come.

    Returns
    -------
    dict of str to float
        The final metrics, by the names of the tracking contract (``teacher/return_mean`` and so on).
    """
    run = Run(config, teacher, digest, run_dir / STAGES, tracker)
    playing.probe_teacher(run)
    rollouts = playing.rollouts(run)

    student = teacher
    prune = learning.ratios(run, rollouts)
    ratios = cumulative_ratios(prune.schedule, prune.ratio, prune.steps)
    for step, ratio in enumerate(ratios, start=1):
        scores = learning.score(run, student, rollouts, step)
        plan = learning.plan(run, prune, student, scores, step, ratio)
        pruned = learning.prune(run, student, plan, step)
        repaired = learning.repair(run, pruned, rollouts, step)
        student = learning.distill(run, repaired, rollouts, step, last=step == len(ratios))
        if step == len(ratios):
            student = learning.finetune(run, student)
        steps = {"pruned": pruned} | ({"repaired": repaired} if config.repair.kind != "none" else {})
        metrics = judging.compare(run, steps | {"student": student}, rollouts, step)

    agents = {"teacher": teacher} | (steps if config.prune.evaluate else {}) | {"student": student}
    evaluations = {name: judging.evaluate(run, agent, name) for name, agent in agents.items()}
    files = device_files.float_files(run, agents)
    seen = device_files.OwnPlay(run, student, evaluations["student"])
    if int8 := device_files.quantize(run, student, seen, rollouts, evaluations["student"]):
        evaluations["int8"], files["int8"] = int8.evaluation, int8.source.path
        metrics |= named("int8", int8_metrics(int8.quantization, files["int8"].stat().st_size, int8.distilled))
    latencies = judging.measure(run, agents, files, rollouts)
    metrics |= agent_metrics(agents, evaluations, latencies, judging.cold_starts(run, files))
    metrics |= ratio_metrics(config, metrics, evaluations, latencies)
    if not (run_dir / RESULT).exists():  # else only an export is left to do
        announced("publish", lambda: publish(run, agents, files["student"], rollouts, evaluations))
    return metrics | device_files.export(run, student, seen, files["student"], int8)


def preflight(config: Config) -> None:
    """Check what a run needs from outside, before anything is written.

    Raises
    ------
    UserError
        If a plugin cannot be imported, a name is in no registry, there is no GPU to learn on, the teacher cannot be
        loaded or does not fit the game, the layers to prune are not the teacher's, a budget cannot be met, it has no
        policy to fine-tune, a folder cannot be written to, or the tracking store does not answer.
    """
    load_plugins(config.plugins)
    for registry, name in (
        (CRITERIA, config.criterion.name),
        (SCHEDULES, config.prune.schedule),
        (LOSSES, config.distill.loss),
    ):
        registry[name]
    find_composite(config.criterion.composite)
    check_device(config.device)
    check_exports(config.export, config.quantize.kind)
    teacher, _ = find_teacher(config)
    prunable_layers(config.prune, teacher.network.widths)
    check_budget(teacher.network, config.prune)
    if config.finetune.steps and teacher.network.head_kind != "policy":
        raise UserError("finetune=ppd learns a policy, and the teacher has Q-values; choose finetune=none")
    check_writable(Path(config.cache_dir), "cache_dir")
    check_store(config.tracking)


def carry_out(config: Config, run_dir: Path, sweep: str | None, console: Console) -> dict[str, float]:
    """Do one run, or go on with it, or find that it is done.

    Parameters
    ----------
    config : Config
        The checked configuration.
    run_dir : Path
        The run's folder; the files of its stages are kept in it.
    sweep : str or None
        Name of the sweep the run belongs to.
    console : Console
        Where it is said that it was done before.

    Returns
    -------
    dict of str to float
        The final metrics.
    """

    def work(tracker: Tracker) -> dict[str, float]:
        metrics = compress(config, teacher, digest, run_dir, tracker)
        page = functools.partial(result_page, metrics, config.run_name, config.evaluate.confidence)
        write_text(run_dir / PAGE, page(maps=MAPS))
        tracker.artifact(run_dir / PAGE)
        tracker.tags({DESCRIPTION: page(maps=tracker.address_of(SMALL_MAPS))})
        tracker.metrics(at_a_glance(metrics))
        return metrics

    teacher, digest = find_teacher(config)
    tags = {"criterion": config.criterion.name} | ({"sweep": sweep} if sweep else {})
    identity = {"teacher": digest, **plugin_digests(config.plugins)}
    try:
        return run_once(config, run_dir, identity, tags, work, console)
    finally:
        give_back_memory()


def run(config: Config, run_dir: Path, sweep: str | None) -> dict[str, float]:
    """Carry a run out, then show its result.

    Parameters and result are those of `carry_out`.

    Raises
    ------
    UserError
        If an export has failed; the result is complete and shown all the same.
    """
    console = Console(markup=False)
    metrics = carry_out(config, run_dir, sweep, console)
    console.print(result_table(metrics, config.run_name, config.evaluate.confidence))
    console.print()
    console.print(file_table(metrics, config.evaluate.confidence))
    console.print(f"\nstudent   {run_dir / STUDENT}", soft_wrap=True)
    if config.export:
        console.print(f"files     {run_dir / 'export'}", soft_wrap=True)
    console.print(f"pictures  {run_dir / 'figures'}", soft_wrap=True)
    watch = f"lrp-compress play game={config.game.name} agent='{run_dir / STUDENT}'"
    console.print(f"watch it  {watch}", soft_wrap=True)
    if view := training_view(config.tracking):
        console.print(f"runs      {view}", soft_wrap=True)
    if failed := failures(metrics):
        raise UserError(f"{' and '.join(failed)} failed, all else is done; the same command repeats that alone")
    return metrics


def find_teacher(config: Config) -> tuple[Agent, str]:
    """Load the teacher of a configuration, and compute a digest of what it is made of."""
    path = teacher_path(config.teacher, config.game, Path(config.cache_dir), config.tracking)
    teacher = load_teacher(path, config.teacher, config.game, game_spaces(config.game.name))
    digest = file_digest(path)
    if config.teacher.network is not None:
        digest = value_digest([digest, plugin_digests([config.teacher.network.partition(":")[0]])])
    return teacher, digest
