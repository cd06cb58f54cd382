"""Agent files of other libraries, told apart by their content and never unpickled beyond plain tensors.

Nothing is unpacked before its size is known: a small file can declare gigabytes.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import pickle
import pickletools
import tarfile
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from lrp_compress.agents.architectures import State
from lrp_compress.agents.checkpoints import MOST_SCORE
from lrp_compress.agents.flax_files import is_flax, read_flax
from lrp_compress.agents.layouts import Layout, network_from_state
from lrp_compress.agents.onnx_files import is_onnx, read_onnx
from lrp_compress.agents.own_networks import program_network
from lrp_compress.networks.graph import Network
from lrp_compress.networks.programs import is_program
from lrp_compress.networks.spaces import Spaces
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import read_json

LARGEST = 2**26  # bytes of a file, packed or unpacked; a Nature CNN with its optimiser has 20 MB
LARGEST_GRAPH = 2**25  # of ONNX and torch.export, which hold no optimiser and take eight times as much while compared
MOST_TEXT = 2**22  # bytes of JSON, which takes twenty times as much when it is read
MOST_STEPS = 2**18  # of a pickle, each of which may make an object; an agent with its optimiser has thousands
OLD_PICKLES = 5  # in a file of before torch 1.6: magic number, version, system, the object, the keys of its tensors
MOST_ENTRIES = 2**12  # of an archive
AGENT_FILES = (".safetensors", ".zip", ".pth", ".pt", ".gz", ".cleanrl_model", ".onnx", ".pt2")
WRAPPERS = ("model_state_dict", "state_dict", "model_weights", "estimator_state", "agent", "model")
SCORES = ("mean_reward", "eval_mean_reward", "mean_return", "mean_score", "score")
# What other files begin with, what they are, and what helps.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with git lfs pull"),
    (b"<!doctype", "an HTML page; download the file itself, on a hub by the address with resolve in place of blob"),
    (b"<html", "an HTML page; download the file itself, on a hub by the address with resolve in place of blob"),
    (b"\x89hdf\r\n", "an HDF5 file; only agents of PyTorch and flax are read"),
    (b"\x93numpy", "a NumPy array; only whole agents are read"),
)


def read_foreign(path: Path, spaces: Spaces, head: str = "auto") -> tuple[Network, Layout, float | None]:
    """Read a network that another library saved.

    Parameters
    ----------
    path : Path
        A Stable-Baselines3 zip (of which only ``policy.pth`` and plain JSON are read), a ``state_dict`` saved by
        ``torch.save``, gzipped or not, or as safetensors, flax's msgpack, ONNX, or a program of `torch.export`.
    spaces : Spaces
        What the environment gives and takes; the action sets tell how many quantiles a QR-DQN has where its file does
        not.
    head : {"auto", "q", "policy"}
        What the outputs of an ONNX file or a program are; other files say so.

    Returns
    -------
    network : Network
        As from `network_from_state`.
    layout : Layout
        Which library's file it was.
    score : float or None
        The mean return that the file says the agent has, or the ``results.json`` beside it, as Stable-Baselines3's
        agents have on the hub.

    Raises
    ------
    UserError
        If the file is no such file, is cut off, holds pickled objects, or holds another architecture.
    """
    source = f"agent file {path}"
    content, settings = _read_content(path, source)
    score = None
    try:
        if is_onnx(content) or is_program(content):
            _check_size(len(content), source, LARGEST_GRAPH)
        if is_onnx(content):
            network, layout = read_onnx(content, head, spaces, source)
        elif is_program(content):
            network = program_network(content, head, spaces, source)
            layout = Layout("torch.export", network.head_kind, (), fires=False)
        else:
            state, score = _read_state(content, source)
            network, layout = network_from_state(state, spaces, settings, source)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:  # of odd tensors and JSON
        raise UserError(f"{source} cannot be read: {_line(error)}") from error
    return network, layout, score if score is not None else _score_beside(path)


def read_tensors(path: Path) -> State:
    """Read the tensors of a file of any kind that `read_foreign` takes, but ONNX and programs.

    Raises
    ------
    UserError
        As `read_foreign` does.
    """
    source = f"file {path}"
    content, _ = _read_content(path, source)
    if is_onnx(content) or is_program(content):
        raise UserError(f"{source} says itself what its network computes; leave teacher.network out")
    return _read_state(content, source)[0]


def _read_content(path: Path, source: str) -> tuple[bytes, Mapping[str, Any]]:
    """Read a file, unpacked, and what a Stable-Baselines3 zip says beside the tensors in plain JSON."""
    try:
        return _content(path, source)
    except UserError:
        raise
    except Exception as error:  # of damaged archives
        raise UserError(f"{source} cannot be read: damaged, or of no kind that is known ({_line(error)})") from error


def _read_state(content: bytes, source: str) -> tuple[State, float | None]:
    """Read the tensors and the score stated."""
    try:
        state = _parsed(content, source)
    except UserError:
        raise
    except (pickle.UnpicklingError, RecursionError) as error:
        raise UserError(
            f"{source} is no plain file of tensors: it is damaged or holds pickled objects, which are never "
            "loaded; save the state_dict alone"
        ) from error
    except Exception as error:  # a parser's, of damaged files: there is no end of their kinds
        raise UserError(f"{source} cannot be read: damaged, or of no kind that is known ({_line(error)})") from error
    score = None
    while isinstance(state, dict) and (name := next((n for n in WRAPPERS if isinstance(state.get(n), dict)), None)):
        score = _stated_score(state) if score is None else score
        state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{source} holds no state_dict; save network.state_dict() alone")
    tensors = {str(key): value for key, value in state.items()}
    size = 0
    for key, value in tensors.items():
        if value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized:
            size += value.numel() * value.element_size()  # a tensor may be larger than what is stored of it
            _check_size(size, f"{source}: with {key[:80]} it")
    return tensors, score


def _stated_score(values: Mapping[str, Any]) -> float | None:
    """Find a mean return among the values beside the weights."""
    numbers = [values.get(name) for name in SCORES]
    stated = (one for one in numbers if isinstance(one, int | float) and not isinstance(one, bool))
    return next((float(one) for one in stated if abs(one) < MOST_SCORE), None)


def _score_beside(path: Path) -> float | None:
    try:
        values = read_json(path.with_name("results.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return _stated_score(values) if isinstance(values, dict) else None


def _content(path: Path, source: str) -> tuple[bytes, Mapping[str, Any]]:
    """Read a file and unpack it, and name it if it is known to hold no tensors."""
    _check_size(path.stat().st_size, source)
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
            content = packed.read(LARGEST + 1)
        _check_size(len(content), source)
    if kind := _stranger(content):
        raise UserError(f"{source} is {kind}")
    return _unzipped(content, source) if content[:2] == b"PK" else (content, {})


def _parsed(content: bytes, source: str) -> Any:
    if content[8:9] == b"{":  # after the length of its header safetensors has JSON
        if int.from_bytes(content[:8], "little") > MOST_TEXT:
            raise UserError(f"{source}: its header has more than {MOST_TEXT >> 20} MiB")
        return load(content)
    if is_flax(content):
        return read_flax(content)
    if content[:2] != b"PK":
        _check_steps(content, source)
    with warnings.catch_warnings():  # of odd pickles; the error says it all
        warnings.simplefilter("ignore")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _unzipped(content: bytes, source: str) -> tuple[bytes, Mapping[str, Any]]:
    """Take the policy and the settings out of a Stable-Baselines3 zip; another zip is torch's own."""
    if content.count(b"PK\x01\x02") > MOST_ENTRIES:  # what an entry of its table begins with
        raise UserError(f"{source} is an archive of more than {MOST_ENTRIES:,} files, which no agent is")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        _check_size(sum(item.file_size for item in archive.infolist()), source)
        if "policy.pth" in names:
            if archive.getinfo("data").file_size > MOST_TEXT:
                raise UserError(f"{source}: its settings have more than {MOST_TEXT >> 20} MiB")
            settings = json.loads(archive.read("data"))
            policy = archive.read("policy.pth")
            if policy[:2] == b"PK":
                policy, _ = _unzipped(policy, source)
            return policy, settings if isinstance(settings, dict) else {}
        if "parameter_list" in names:
            raise UserError(f"{source} is of Stable-Baselines 2, which is not read; convert it to Stable-Baselines3")
        if names and all(name.endswith(".npy") for name in names):
            raise UserError(f"{source} holds NumPy arrays; only whole agents are read")
        if any("/code/" in name for name in names):
            raise UserError(f"{source} is a TorchScript program, which is never run; save the state_dict")
        for name in names:
            if name.lower().endswith(".pkl"):  # torch does not mind the case
                _check_steps(archive.read(name), source)
    return content, {}


def _stranger(content: bytes) -> str | None:
    """Name a file that is known, but no agent."""
    if not content:
        return "empty"
    start = content[:512].lstrip().lower()
    if named := next((kind for mark, kind in STRANGERS if start.startswith(mark)), None):
        return named
    if content[257:262] == b"ustar" and tarfile.is_tarfile(io.BytesIO(content)):
        return "a tar archive; unpack it and give the agent in it"
    return None


def _check_size(size: int, source: str, largest: int = LARGEST) -> None:
    if size > largest:
        raise UserError(
            f"{source} would take {size / 2**20:,.0f} MiB; agents of more than {largest >> 20} are not read"
        )


def _check_steps(content: bytes, source: str) -> None:
    """Refuse pickles of objects without end, some of which take seventy bytes of memory for one in the file."""
    file = io.BytesIO(content)
    steps = (step for _ in range(OLD_PICKLES) for step in pickletools.genops(file))
    counted = 0
    with contextlib.suppress(Exception):  # of damaged files; raised again, and worded, when they are read
        counted = sum(1 for _ in itertools.islice(steps, MOST_STEPS + 1))
    if counted > MOST_STEPS:
        raise UserError(f"{source} is a pickle of more than {MOST_STEPS:,} steps, which no agent is")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def agents_in(folder: Path) -> list[str]:
    """Name the files in a folder that may be agents."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in AGENT_FILES)
