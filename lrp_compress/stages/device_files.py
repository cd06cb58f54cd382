"""The last stages of a run: the student as files for a device, and what it costs there."""

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
from lrp_compress.compression.distillation import distill
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
from lrp_compress.deployment.measuring.cold_start import ColdStart, cold_start
from lrp_compress.deployment.measuring.deviation import Deviation
from lrp_compress.deployment.measuring.latency import (
    Latency,
    measure_latency,
    onnx_decision,
    speedup,
    torch_decision,
)
from lrp_compress.environments.evaluation import Evaluation, falls_below
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.stages.learning import Stages, agreeing
from lrp_compress.stages.metrics import TORCH
from lrp_compress.stages.resume import FAILED
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import SUMS, check_folder_signed, check_signed, read_json, sign, stored, write_json
from lrp_compress.support.progress import Pace, announced
from lrp_compress.support.seeding import stage_seed

logger = logging.getLogger(__name__)

ENVS, EVERY = 24, 24  # games at once in the student's play; agent steps from one of its states to the next


@dataclass(frozen=True)
class OwnPlay:
    """States of the student's play, far enough apart to be of whole games.

    Attributes
    ----------
    calibration, held_out : ndarray of uint8, shape (N, 4, 84, 84)
        Of different games: for the ranges of int8 activations, and for comparing files with networks.
    """

    calibration: NDArray[np.uint8]
    held_out: NDArray[np.uint8]


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


class Delivery:
    """A method per stage.

    Parameters
    ----------
    stage : Stages
        The run's other stages.
    student : Agent
        The distilled student.
    """

    def __init__(self, stage: Stages, student: Agent) -> None:
        self._stage = stage
        self._student = student
        self._config = stage.config
        self._folder = stage.folder

    @cached_property
    def seen(self) -> OwnPlay:
        """States of the student's play; played anew when a run goes on, since that is quick and they are large."""
        states = 2 * self._config.quantize.states
        how = RolloutsConfig(states=states, envs=min(ENVS, states), block=1, every=EVERY)
        seed = stage_seed(self._config.seed, "quantize", "play")
        stage = self._stage
        played = announced(
            "play of the student",
            lambda: stage.play(self._student, "student", how, seed),
            lambda rollouts: f"{len(rollouts):,} states",
        )
        observations = played.observations(torch.arange(states)).numpy()  # environment by environment
        return OwnPlay(observations[: states // 2], observations[states // 2 :])

    def quantize(self, rollouts: Rollouts, evaluation: Evaluation) -> Int8 | None:
        """Make the student's int8 file; where its return falls below the student's, distil once more for it.

        Of two files that one stays which scores more in games of other seeds: the games that are reported choose none.

        Parameters
        ----------
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
        wanted = self._config.quantize
        if wanted.kind == "none":
            return None
        static = self._int8(self._student, "int8", distilled=False)
        seed = stage_seed(self._config.seed, "quantize", "compare")
        if wanted.distill == "never" or (
            wanted.distill == "auto"
            and not falls_below(static.evaluation, evaluation, self._config.evaluate.confidence, seed)
        ):
            return static
        distilled = self._int8(self._distill_for_int8(rollouts), "int8-distilled", distilled=True)
        return max(static, distilled, key=self._choosing_return)

    def _choosing_return(self, int8: Int8) -> float:
        path = int8.source.path
        name = f"{path.parent.name}-choosing"
        return self._stage.evaluate(int8.source.agent, name, OnnxPolicy(path).outputs, games="choose int8").mean

    def _int8(self, agent: Agent, name: str, distilled: bool) -> Int8:
        path = self._folder / name / "student-int8.onnx"

        def write(record: Path, made: Quantization) -> None:
            sign(path)
            write_json(record, dataclasses.asdict(made))

        def read(record: Path) -> Quantization:
            check_signed(path)
            return _load_quantization(record)

        quantization = stored(
            self._folder / name / "quantization.json",
            lambda: quantize_static(path, agent, self.seen.calibration, self.seen.held_out),
            write,
            read,
            f"quantize {name}",
            lambda made: f"agreement with float32 {made.chosen.agreement:.1%}, {path.stat().st_size:,} bytes",
        )
        agreement, least = quantization.chosen.agreement, self._config.quantize.min_agreement
        if agreement < least:
            raise UserError(
                f"int8 and float32 student agree in {agreement:.1%} of the held-out states, less than "
                f"quantize.min_agreement={least}; lower it, or choose quantize=none"
            )
        calibration = self.seen.calibration
        source = Int8Source(path, prepared(agent, quantization.way, calibration), calibration, quantization.per_channel)
        evaluation = self._stage.evaluate(agent, name, OnnxPolicy(path).outputs)
        return Int8(source, quantization, evaluation, distilled)

    def _distill_for_int8(self, rollouts: Rollouts) -> Agent:
        wanted, own = self._config.quantize, self._student
        if self._config.finetune.steps:  # the original has not learned what the student has since
            teacher, kept = own, all_channels(own.network.widths)
        else:
            teacher, kept = self._stage.teacher, own.info.kept
        how = dataclasses.replace(
            self._config.distill, learning_rate=wanted.learning_rate, match_likelihood=False, precision="float32"
        )
        stage, pace, checkpoint = "distill for int8", Pace(), self._folder / "int8-distilled" / "distillation.pt"

        def track(progress: Progress) -> None:
            values = {"int8/distill_loss": progress.loss, "int8/distill_action_agreement": progress.agreement}
            self._stage.tracker.metrics(values, progress.samples // how.batch_size)
            pace.say(
                "%s: %s of %s samples, %s", stage, f"{progress.samples:,}", f"{wanted.samples:,}", agreeing(progress)
            )

        def make() -> Agent:
            result = distill(
                quantization_aware(own.network),
                {} if own.network.head_kind == "dueling" else kept,
                teacher,
                rollouts,
                how,
                wanted.samples,
                self._stage.rule,
                self._config.protocol,
                stage_seed(self._config.seed, "quantize", "distill"),
                track,
                checkpoint,
                self._stage.emulators,
            )
            return Agent(full_precision(result.network), own.info)

        path = self._folder / "int8-distilled" / "student.safetensors"
        student = stored(path, make, save_agent, load_agent, stage)
        checkpoint.unlink(missing_ok=True)
        return student

    def float_files(self, agents: Mapping[str, Agent]) -> dict[str, Path]:
        """Write the agents as float32 ONNX files."""
        return {name: self._stage.float_file(agent, name) for name, agent in agents.items()}

    def measure(self, agents: Mapping[str, Agent], files: Mapping[str, Path], rollouts: Rollouts) -> dict[str, Latency]:
        """Measure the latency of the files in ONNX Runtime, then of teacher and student in PyTorch."""
        observation = rollouts.observations(torch.tensor([len(rollouts) // 2]))
        pairs = [("teacher", name) for name in files if name != "teacher"]

        def make() -> dict[str, Latency]:
            how, seed = self._config.latency, stage_seed(self._config.seed, "latency")
            loaded = {name: onnx_decision(path, observation) for name, path in files.items()}
            eager = {TORCH + name: torch_decision(agents[name].network, observation) for name in ("teacher", "student")}
            return measure_latency(loaded, pairs, how, seed) | measure_latency(eager, [], how, seed)

        return stored(
            self._folder / "latency.json",
            make,
            lambda path, measured: write_json(path, {name: dataclasses.asdict(m) for name, m in measured.items()}),
            lambda path: {name: Latency(**m) for name, m in read_json(path).items()},
            "latency",
            lambda measured: f"speedup {speedup(measured['teacher'], measured['student']).ratio:.2f}",
        )

    def cold_starts(self, files: Mapping[str, Path]) -> dict[str, ColdStart]:
        """Load each file in a process of its own."""
        return stored(
            self._folder / "cold-start.json",
            lambda: {name: cold_start(path) for name, path in files.items()},
            lambda path, measured: write_json(path, {name: dataclasses.asdict(m) for name, m in measured.items()}),
            lambda path: {name: ColdStart(**m) for name, m in read_json(path).items()},
            "cold starts",
        )

    def export(self, files: Mapping[str, Path], int8: Int8 | None) -> dict[str, float]:
        """Write the student in all wanted formats, each compared with its network.

        A format that cannot be written, or is not what it should be, is told in one line and keeps no other from being
        written: by now the run has its result.

        Returns
        -------
        dict of str to float
            ``export/FORMAT/failed``, 0 or 1, and ``export/FORMAT/FILE/agreement`` and the other deviations.
        """
        if not self._config.export:
            return {}
        what = Deliverable(self._student, files["student"], self.seen.held_out, int8.source if int8 else None)
        folder = self._folder.parent / "export"
        values: dict[str, float] = {}
        for name in self._config.export:
            deviations = self._exported(name, what, folder / name)
            values[f"export/{name}{FAILED}"] = float(deviations is None)
            for file, deviation in (deviations or {}).items():
                fields = dataclasses.asdict(deviation)
                values |= {f"export/{name}/{file}/{field}": value for field, value in fields.items()}
        return values

    def _exported(self, name: str, what: Deliverable, folder: Path) -> dict[str, Deviation] | None:
        """Write a format and give its deviations; None if that has failed."""

        def write(record: Path, made: dict[str, Deviation]) -> None:
            for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != SUMS):
                sign(file)
            write_json(record, {file: dataclasses.asdict(deviation) for file, deviation in made.items()})

        def read(record: Path) -> dict[str, Deviation]:
            for sums in folder.rglob(SUMS):
                check_folder_signed(sums.parent)
            return _load_deviations(record)

        try:
            deviations = stored(
                self._folder / f"export-{name}.json",
                lambda: EXPORTS[name].write(what, folder),
                write,
                read,
                f"export {name}",
            )
        except Exception as error:  # converters raise what they like, and the result must not be lost with the export
            foreseen = isinstance(error, UserError | OSError)
            logger.error("export=%s failed: %s", name, " ".join(str(error).split()), exc_info=not foreseen)
            return None
        self._stage.tracker.artifact(folder, "export")
        return deviations


def _load_quantization(path: Path) -> Quantization:
    fields = read_json(path)
    deviations = {name: Deviation(**d) for name, d in fields["deviations"].items()}
    return Quantization(fields["way"], deviations, fields["default_session_differs"])


def _load_deviations(path: Path) -> dict[str, Deviation]:
    return {file: Deviation(**fields) for file, fields in read_json(path).items()}
