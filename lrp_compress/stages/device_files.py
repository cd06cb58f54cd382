"""The student as files for a device: ONNX in float32 and int8, and the formats that are exported."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, all_channels, load_agent, save_agent
from lrp_compress.compression.distillation import Beside, distill
from lrp_compress.compression.learner import Progress
from lrp_compress.compression.quantization import (
    Quantization,
    full_precision,
    prepared,
    quantization_aware,
    quantize_static,
)
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.exports import EXPORTS, Deliverable, Int8Source
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import Deviation
from lrp_compress.environments.returns import Evaluation, falls_below
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.stages.context import Run
from lrp_compress.stages.judging import evaluate
from lrp_compress.stages.learning import agreeing
from lrp_compress.stages.playing import float_file, play
from lrp_compress.stages.resume import FAILED
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import SUMS, check_folder_signed, check_signed, read_json, sign, stored, write_json
from lrp_compress.support.progress import Pace, announced

logger = logging.getLogger(__name__)

DISTILLED = "int8-distilled"  # folder of the student that was distilled once more
ENVS = 8  # games at once in the student's play
MOST_EVERY = 32  # agent steps from one of its states to the next


class OwnPlay:
    """States of the student's play, as far apart as whole games ask for.

    They are played when they are first asked for, and anew when a run goes on, since that is quick and they are large.

    Parameters
    ----------
    run : Run
    student : Agent
        The player.
    evaluation : Evaluation
        Its own, which says how long its games are.
    """

    def __init__(self, run: Run, student: Agent, evaluation: Evaluation) -> None:
        self._run, self._student = run, student
        self._half = run.config.quantize.states
        self._length = float(np.mean([episode.length for episode in evaluation.episodes]))

    @property
    def calibration(self) -> NDArray[np.uint8]:
        """For the ranges of int8 activations, shape (N, 4, 84, 84)."""
        return self._observations[: self._half]

    @property
    def held_out(self) -> NDArray[np.uint8]:
        """Of other games, for comparing files with networks, shape (N, 4, 84, 84)."""
        return self._observations[self._half :]

    @cached_property
    def _observations(self) -> NDArray[np.uint8]:
        states = 2 * self._half
        envs = min(ENVS, max(2, states // 8))
        every = min(MOST_EVERY, max(1, round(self._length * envs / states)))
        how = RolloutsConfig(states=states, envs=envs, block=1, every=every)
        seed = self._run.seed("quantize", "play")
        played = announced(
            "play of the student",
            lambda: play(self._run, self._student, "student", how, seed),
            lambda rollouts: f"{len(rollouts):,} states",
        )
        observations: NDArray[np.uint8] = played.observations(torch.arange(states)).numpy()  # env by env
        return observations


@dataclass(frozen=True)
class Int8:
    """An agent in int8 and what is known of it.

    Attributes
    ----------
    source : Int8Source
        The file and what it was made of.
    quantization : Quantization
        How near it is to its float32 agent.
    evaluation : Evaluation
        Of the file itself, played in ONNX Runtime.
    distilled : bool
        Whether the agent was distilled for it.
    """

    source: Int8Source
    quantization: Quantization
    evaluation: Evaluation
    distilled: bool


def quantize(run: Run, student: Agent, seen: OwnPlay, rollouts: Rollouts, evaluation: Evaluation) -> Int8 | None:
    """Make the student's int8 file; where its return falls below the student's, distil once more for it.

    Of two files that one stays which scores more in games of other seeds: the games that are reported choose none.

    Parameters
    ----------
    run : Run
    student : Agent
        The distilled student.
    seen : OwnPlay
        Its play.
    rollouts : Rollouts
        States of the teacher's play.
    evaluation : Evaluation
        The student's own.

    Returns
    -------
    Int8 or None
        None if none is wanted.

    Raises
    ------
    UserError
        If int8 and float32 disagree more often than the configuration allows.
    """
    wanted = run.config.quantize
    if wanted.kind == "none":
        return None
    static = _int8(run, student, seen, "int8")
    seed = run.seed("quantize", "compare")
    if wanted.distill == "never" or (
        wanted.distill == "auto"
        and not falls_below(static.evaluation, evaluation, run.config.evaluate.confidence, seed)
    ):
        return static
    distilled = _int8(run, _distill_for_int8(run, student, rollouts), seen, DISTILLED)
    return max(static, distilled, key=lambda int8: _choosing_return(run, int8))


def _choosing_return(run: Run, int8: Int8) -> float:
    path = int8.source.path
    name = f"{path.parent.name}-choosing"
    return evaluate(run, int8.source.agent, name, OnnxPolicy(path).outputs, games="choose int8").mean


def _int8(run: Run, agent: Agent, seen: OwnPlay, name: str) -> Int8:
    path = run.folder / name / "student-int8.onnx"

    def write(record: Path, made: Quantization) -> None:
        sign(path)
        write_json(record, dataclasses.asdict(made))

    def read(record: Path) -> Quantization:
        check_signed(path)
        OnnxPolicy(path)  # its digest may be lost
        return _load_quantization(record)

    quantization = stored(
        run.folder / name / "quantization.json",
        lambda: quantize_static(path, agent, seen.calibration, seen.held_out),
        write,
        read,
        f"quantize {name}",
        lambda made: f"agreement with float32 {made.chosen.agreement:.1%}, {path.stat().st_size:,} bytes",
    )
    agreement, least = quantization.chosen.agreement, run.config.quantize.min_agreement
    if agreement < least:
        raise UserError(
            f"int8 and float32 student agree in {agreement:.1%} of the held-out states, less than "
            f"quantize.min_agreement={least}; lower it, or choose quantize=none"
        )
    calibration = seen.calibration
    source = Int8Source(path, prepared(agent, quantization.way, calibration), calibration, quantization.per_channel)
    evaluation = evaluate(run, agent, name, OnnxPolicy(path).outputs)
    return Int8(source, quantization, evaluation, distilled=name == DISTILLED)


def _distill_for_int8(run: Run, own: Agent, rollouts: Rollouts) -> Agent:
    wanted = run.config.quantize
    if run.config.finetune.steps:  # the original has not learned what the student has since
        teacher, kept = own, all_channels(own.network.widths)
    else:
        teacher, kept = run.teacher, own.info.kept
    how = dataclasses.replace(
        run.config.distill,
        samples=wanted.samples,
        learning_rate=wanted.learning_rate,
        match_likelihood=False,
        precision="float32",
    )
    stage, pace, checkpoint = "distill for int8", Pace(), run.folder / DISTILLED / "distillation.pt"

    def track(progress: Progress) -> None:
        values = {"int8/distill_loss": progress.loss, "int8/distill_action_agreement": progress.agreement}
        run.tracker.metrics(values, progress.samples // how.batch_size)
        pace.say("%s: %s of %s samples, %s", stage, f"{progress.samples:,}", f"{wanted.samples:,}", agreeing(progress))

    def make() -> Agent:
        student = Agent(quantization_aware(own.network), dataclasses.replace(own.info, kept=kept))
        acting = run.acting(run.seed("quantize", "distill"))
        result = distill(student, teacher, rollouts, how, acting, Beside(track, checkpoint))
        return Agent(full_precision(result.network), own.info)

    path = run.folder / DISTILLED / "student.safetensors"
    student = stored(path, make, save_agent, load_agent, stage)
    checkpoint.unlink(missing_ok=True)
    return student


def float_files(run: Run, agents: Mapping[str, Agent]) -> dict[str, Path]:
    """Write the agents as float32 ONNX files."""
    return {name: float_file(run, agent, name) for name, agent in agents.items()}


def export(run: Run, student: Agent, seen: OwnPlay, file: Path, int8: Int8 | None) -> dict[str, float]:
    """Write the student in all wanted formats, each compared with its network.

    A format that cannot be written, or is not what it should be, is told in one line and keeps no other from being
    written: by now the run has its result.

    Returns
    -------
    dict of str to float
        ``export/FORMAT/failed``, 0 or 1, and ``export/FORMAT/FILE/agreement`` and the other deviations.
    """
    if not run.config.export:
        return {}
    what = Deliverable(student, file, seen.held_out, int8.source if int8 else None)
    folder = run.folder.parent / "export"
    values: dict[str, float] = {}
    for name in run.config.export:
        deviations = _exported(run, name, what, folder / name)
        values[f"export/{name}{FAILED}"] = float(deviations is None)
        for compared, deviation in (deviations or {}).items():
            fields = dataclasses.asdict(deviation)
            values |= {f"export/{name}/{compared}/{field}": value for field, value in fields.items()}
    return values


def _exported(run: Run, name: str, what: Deliverable, folder: Path) -> dict[str, Deviation] | None:
    """Write a format and give its deviations; None if that has failed."""

    def write(record: Path, made: dict[str, Deviation]) -> None:
        for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS):
            sign(file)
        write_json(record, {file: dataclasses.asdict(deviation) for file, deviation in made.items()})

    def read(record: Path) -> dict[str, Deviation]:
        for one in {file.parent for file in folder.rglob("*") if file.is_file()} or {folder}:
            check_folder_signed(one)
        return _load_deviations(record)

    try:
        deviations = stored(
            run.folder / f"export-{name}.json",
            lambda: EXPORTS[name].write(what, folder),
            write,
            read,
            f"export {name}",
        )
    except Exception as error:  # converters raise what they like, and the result must not be lost with the export
        foreseen = isinstance(error, UserError | OSError)
        logger.error("export=%s failed: %s", name, " ".join(str(error).split()), exc_info=not foreseen)
        return None
    run.tracker.artifact(folder, "export")
    return deviations


def _load_quantization(path: Path) -> Quantization:
    fields = read_json(path)
    deviations = {name: Deviation(**d) for name, d in fields["deviations"].items()}
    return Quantization(fields["way"], deviations, fields["default_session_differs"])


def _load_deviations(path: Path) -> dict[str, Deviation]:
    return {file: Deviation(**fields) for file, fields in read_json(path).items()}
