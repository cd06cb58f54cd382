"""Export targets: the student in the formats that devices take, each read back and compared with the network."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.deployment.c.source import example_outputs, export_c
from lrp_compress.deployment.files.converters import executorch_outputs, litert_outputs, save_executorch, save_litert
from lrp_compress.deployment.files.onnx_models import has_operators, save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import Deviation, deviation
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import atomic_path
from lrp_compress.support.registry import Registry

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
    held_out : ndarray, shape (N, *observations.shape)
        States of its play, for the comparison.
    int8 : Int8Source or None
        What its int8 file was made of; none if there is none.
    """

    agent: Agent
    float_file: Path
    held_out: NDArray[Any]
    int8: Int8Source | None


@dataclass(frozen=True)
class Int8Source:
    """An int8 file and what it was made of.

    Attributes
    ----------
    path : Path
        The ONNX file.
    agent : Agent
        The float32 agent; distilled once more where that was needed.
    calibration : ndarray, shape (N, *observations.shape)
        States that set the ranges of its activations.
    per_channel : bool
        Whether each output channel has its own scale.
    """

    path: Path
    agent: Agent
    calibration: NDArray[Any]
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
    module : str
        Python module that it needs, installed by the extra of the format's name; empty if none.
    """

    write: Callable[[Deliverable, Path], dict[str, Deviation]]
    needs_int8: bool = False
    tools: tuple[str, ...] = ()
    module: str = ""


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
        if target.module and importlib.util.find_spec(target.module) is None:
            raise UserError(f"export={name} needs {target.module}: pip install 'lrp_compress[{name}]'")


def export_onnx(what: Deliverable, folder: Path) -> dict[str, Deviation]:
    """Write ONNX files: float32, int8, and where that has integer operators, int8 between quantise and dequantise too.

    Raises
    ------
    UserError
        If the float32 file differs from its network by more than rounding. How far the int8 files are from theirs is
        in the deviations, to be judged by the return that they keep.
    """
    path = _copied(what.float_file, folder / "student.onnx")
    deviations = {"float32": _equal("onnx", path, OnnxPolicy(path).outputs(what.held_out), what)}
    if (source := what.int8) is not None:
        files = {"int8": _copied(source.path, folder / "student-int8.onnx")}
        if has_operators(source.agent.network):
            files["int8_qdq"] = folder / "student-int8-qdq.onnx"
            save_int8(files["int8_qdq"], source.agent, source.calibration, source.per_channel, operators=False)
        for name, file in files.items():
            deviations[name] = _compared(OnnxPolicy(file).outputs(what.held_out), source.agent, what)
    return deviations


def export_c_code(what: Deliverable, folder: Path) -> dict[str, Deviation]:
    """Write the int8 file as C, and compare the example, built and run here, with ONNX Runtime.

    Raises
    ------
    UserError
        If there is no int8 file, it cannot be turned into C, or an output bit differs.
    """
    if what.int8 is None:
        raise UserError("export=c is made of the int8 file; choose quantize=int8")
    computed = example_outputs(export_c(what.int8.path, folder), what.held_out)
    found = deviation(computed, OnnxPolicy(what.int8.path).outputs(what.held_out))
    if found.max_difference:
        raise UserError(
            f"export=c: an output of {folder} differs from {what.int8.path.name}'s by {found.max_difference:g}; try "
            f"another compiler, by CC=NAME"
        )
    return {"int8": found}


def converter(
    name: str,
    suffix: str,
    save: Callable[[Path, Network, NDArray[Any] | None], None],
    outputs: Callable[[Path, NDArray[Any]], Tensor],
) -> Callable[[Deliverable, Path], dict[str, Deviation]]:
    """Make the function that writes a format by its own converter, in float32 and, where int8 is wanted, in int8.

    Parameters
    ----------
    name, suffix : str
        Of the format and its files.
    save : callable
        Writes a network; in int8 where it is given calibration states.
    outputs : callable
        Runs a file on observations.

    Returns
    -------
    callable
        Raises UserError if the float32 file differs from its network by more than rounding.
    """

    def write(what: Deliverable, folder: Path) -> dict[str, Deviation]:
        path = folder / f"student.{suffix}"
        save(path, what.agent.network, None)
        deviations = {"float32": _equal(name, path, outputs(path, what.held_out), what)}
        if (source := what.int8) is not None:
            path = folder / f"student-int8.{suffix}"
            save(path, source.agent.network, source.calibration)
            deviations["int8"] = _compared(outputs(path, what.held_out), source.agent, what)
        return deviations

    return write


EXPORTS.register("onnx")(ExportTarget(export_onnx))
EXPORTS.register("c")(ExportTarget(export_c_code, needs_int8=True, tools=("make", "cc")))
EXPORTS.register("litert")(
    ExportTarget(converter("litert", "tflite", save_litert, litert_outputs), module="litert_torch")
)
EXPORTS.register("executorch")(
    ExportTarget(converter("executorch", "pte", save_executorch, executorch_outputs), module="executorch")
)


def _copied(source: Path, path: Path) -> Path:
    with atomic_path(path) as temporary:
        shutil.copyfile(source, temporary)
    return path


def _compared(outputs: Tensor, agent: Agent, what: Deliverable) -> Deviation:
    return deviation(outputs, _reference(agent, what))


def _equal(name: str, path: Path, outputs: Tensor, what: Deliverable) -> Deviation:
    reference = _reference(what.agent, what)
    found = deviation(outputs, reference)
    if found.max_difference > TOLERANCE * max(float(reference.abs().max()), 1.0):
        raise UserError(
            f"export={name}: an output of {path} differs from the network's by {found.max_difference:g}, more than "
            f"rounding does; try other versions of torch and of the converter"
        )
    return found


def _reference(agent: Agent, what: Deliverable) -> Tensor:
    return batched_outputs(agent.network, torch.from_numpy(what.held_out))
