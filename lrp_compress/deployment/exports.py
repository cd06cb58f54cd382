"""Export targets: the student in the formats that devices take, each read back and compared with the network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.agents.inference import batched_outputs
from lrp_compress.deployment.c_source import example_outputs, export_c
from lrp_compress.deployment.deviation import Deviation, deviation
from lrp_compress.deployment.onnx_models import save_int8
from lrp_compress.deployment.onnx_sessions import OnnxPolicy
from lrp_compress.errors import UserError
from lrp_compress.files import atomic_path
from lrp_compress.registry import Registry

# Of a float32 output, relative to the largest: another order of additions stays below.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Deliverable:
    """What an export is made of.

    Attributes
    ----------
    agent : Agent
        The student.
    float_file : Path
        Its float32 ONNX file.
    held_out : ndarray of uint8, shape (N, 4, 84, 84)
        States of its play, for the comparison.
    int8 : Int8Source or None
        What its int8 file was made of; none if there is none.
    """

    agent: Agent
    float_file: Path
    held_out: NDArray[np.uint8]
    int8: Int8Source | None


@dataclass(frozen=True)
class Int8Source:
    """An int8 file and what it was made of.

    Attributes
    ----------
    path : Path
        The ONNX file with integer operators.
    agent : Agent
        The float32 agent; distilled once more where that was needed.
    calibration : ndarray of uint8, shape (N, 4, 84, 84)
        States that set the ranges of its activations.
    per_channel : bool
        Whether each output channel has its own scale.
    """

    path: Path
    agent: Agent
    calibration: NDArray[np.uint8]
    per_channel: bool


@dataclass(frozen=True)
class ExportTarget:
    """A format.

    Attributes
    ----------
    write : callable
        Writes the files into a folder and compares them; returns a deviation by a name for each file compared.
    needs_int8 : bool
        Whether it can be made of an int8 file only.
    tools : tuple of str
        Programs that it needs.
    """

    write: Callable[[Deliverable, Path], dict[str, Deviation]]
    needs_int8: bool = False
    tools: tuple[str, ...] = ()


EXPORTS: Registry[ExportTarget] = Registry("export")


def check_exports(names: list[str], quantize: str) -> None:
    """Check that the wanted formats can be made.

    Raises
    ------
    UserError
        If a format is unknown, needs int8 without there being any, or what it needs is not installed.
    """
    for name in names:
        target = EXPORTS[name]
        if target.needs_int8 and quantize == "none":
            raise UserError(
                f"export={name} is made of the int8 file; choose quantize=int8 in place of quantize={quantize}"
            )
        if missing := [tool for tool in target.tools if shutil.which(tool) is None]:
            raise UserError(f"export={name} needs {' and '.join(missing)}, e.g. from: apt-get install gcc make")


def export_onnx(what: Deliverable, folder: Path) -> dict[str, Deviation]:
    """Write ONNX files: float32, int8 with integer operators, int8 between pairs of quantise and dequantise.

    Raises
    ------
    UserError
        If the float32 file differs from its network by more than rounding. How far the int8 files are from theirs is
        in the deviations, to be judged by the return that they keep.
    """
    deviations = {"float32": _compared(_copied(what.float_file, folder / "student.onnx"), what.agent, what.held_out)}
    largest = float(batched_outputs(what.agent.network, torch.from_numpy(what.held_out)).abs().max())
    if deviations["float32"].max_difference > TOLERANCE * max(largest, 1.0):
        raise UserError(
            f"export=onnx: an output of {folder / 'student.onnx'} differs from the network's by "
            f"{deviations['float32'].max_difference:g}, more than rounding does; try other versions of torch and onnx"
        )
    if (source := what.int8) is not None:
        operators = _copied(source.path, folder / "student-int8.onnx")
        pairs = folder / "student-int8-qdq.onnx"
        save_int8(pairs, source.agent, source.calibration, source.per_channel, operators=False)
        deviations["int8"] = _compared(operators, source.agent, what.held_out)
        deviations["int8_qdq"] = _compared(pairs, source.agent, what.held_out)
    return deviations


def export_c_code(what: Deliverable, folder: Path) -> dict[str, Deviation]:
    """Write the int8 file as C, and compare the example, built and run here, with ONNX Runtime.

    Raises
    ------
    UserError
        If there is no int8 file, it has other layers than a Nature CNN's, or an output bit differs.
    """
    if what.int8 is None:
        raise UserError("export=c is made of the int8 file; choose quantize=int8")
    computed = example_outputs(export_c(what.int8.path, folder), what.held_out)
    found = deviation(computed, OnnxPolicy(what.int8.path).outputs(what.held_out))
    if found.max_difference:
        raise UserError(
            f"export=c: an output of {folder} differs from {what.int8.path.name}'s by {found.max_difference:g}; on a "
            f"processor without VNNI instructions ONNX Runtime's int8 saturates, and no comparison is possible"
        )
    return {"int8": found}


EXPORTS.register("onnx")(ExportTarget(export_onnx))
EXPORTS.register("c")(ExportTarget(export_c_code, needs_int8=True, tools=("make", "cc")))


def _copied(source: Path, path: Path) -> Path:
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
    return path


def _compared(path: Path, agent: Agent, observations: NDArray[np.uint8]) -> Deviation:
    reference = batched_outputs(agent.network, torch.from_numpy(observations))
    return deviation(OnnxPolicy(path).outputs(observations), reference)
