"""Damaged agent files of every accepted format: an agent or one line, never a traceback, a long wait or much memory."""

from __future__ import annotations

import gzip
import io
import json
import resource
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, save_agent
from lrp_compress.agents.teachers import load_teacher
from lrp_compress.config.schema import GameConfig, TeacherConfig
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.agents.environments import PONG_ACTIONS, atari
from tests.agents.onnx_graphs import as_torch_writes

pytestmark = pytest.mark.slow

FILES = 140  # of each format
SLOWEST = 5.0  # seconds
PEAK = 300_000  # kB above the start
WIDTHS = {"conv1": 4, "conv2": 5, "conv3": 6, "fc1": 7}
CLEANRL = {"conv1": "network.0", "conv2": "network.2", "conv3": "network.4", "fc1": "network.7", "head": "network.9"}
SB3 = {"conv1": "cnn.0", "conv2": "cnn.2", "conv3": "cnn.4", "fc1": "linear.0"}
SPACES = atari(*PONG_ACTIONS)
PONG = GameConfig("pong", "Pong", -20.7, 14.6)


def network() -> Network:
    torch.manual_seed(0)
    return nature_cnn(WIDTHS, "q", 6)


def named(names: dict[str, str]) -> dict[str, torch.Tensor]:
    split = {key: key.split(".") for key in network().state_dict()}
    return {f"{names[name]}.{kind}": network().state_dict()[key] for key, (name, kind) in split.items()}


def own() -> bytes:
    info = AgentInfo("pong", "minimal", fire_on_life_loss=False, lineage={}, kept=all_channels(WIDTHS))
    with tempfile.TemporaryDirectory() as folder:
        save_agent(Path(folder, "own.safetensors"), Agent(network(), info))
        return Path(folder, "own.safetensors").read_bytes()


def first_format() -> bytes:
    """Write what the first format of this project was."""
    header = {"format": "lrp_compress/1", "widths": WIDTHS, "head": "q", "actions": 6, "game": "pong", "kept": {}}
    header |= {"action_set": "minimal", "fire_on_life_loss": False, "lineage": {}}
    return save(network().state_dict(), {"lrp_compress": json.dumps(header)})


def onnx_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return as_torch_writes(Path(folder, "agent.onnx"), network()).read_bytes()


def program() -> bytes:
    buffer = io.BytesIO()
    given = torch.zeros(2, 4, 84, 84, dtype=torch.uint8)
    torch.export.save(
        torch.export.export(network().eval(), (given,), dynamic_shapes=({0: torch.export.Dim("n")},)), buffer
    )
    return buffer.getvalue()


def torch_file(legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(named(CLEANRL), buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def sb3() -> bytes:
    state = named({name: f"q_net.features_extractor.{own}" for name, own in SB3.items()} | {"head": "q_net.q_net.0"})
    policy, buffer = io.BytesIO(), io.BytesIO()
    torch.save(state, policy)
    space = {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>", "n": "6"}
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps({"action_space": space, "policy_kwargs": {"normalize_images": False}}))
        archive.writestr("policy.pth", policy.getvalue())
    return buffer.getvalue()


def flax() -> bytes:
    def array(tensor: torch.Tensor) -> msgpack.ExtType:
        values = np.ascontiguousarray(tensor.numpy())
        return msgpack.ExtType(1, msgpack.packb((values.shape, values.dtype.name, values.tobytes())))

    params: dict[str, Any] = {}
    names = {"conv1": "Conv_0", "conv2": "Conv_1", "conv3": "Conv_2", "fc1": "Dense_0", "head": "Dense_1"}
    for key, tensor in network().state_dict().items():
        name, kind = key.split(".")
        kernel = tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor.T if tensor.dim() == 2 else tensor
        params.setdefault(names[name], {})["kernel" if kind == "weight" else kind] = array(kernel)
    packed: bytes = msgpack.packb({"params": params})
    return packed


FORMATS: dict[str, Callable[[], bytes]] = {
    "own.safetensors": own,
    "first.safetensors": first_format,
    "agent.onnx": onnx_file,
    "program.pt2": program,
    "foreign.safetensors": lambda: save(named(CLEANRL)),
    "state.pth": torch_file,
    "legacy.pth": lambda: torch_file(legacy=True),
    "state.gz": lambda: gzip.compress(torch_file(), mtime=0),
    "sb3.zip": sb3,
    "agent.cleanrl_model": flax,
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Change some bytes, mostly near the ends, where the structure is; cut; repeat or blank a part."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        length = int(rng.integers(1, 1 + min(64, len(data))))
        near = min(len(data), 2048)
        at = int(rng.choice([rng.integers(near), len(data) - 1 - rng.integers(near), rng.integers(len(data))]))
        match rng.integers(6):
            case 0:
                data[at] = int(rng.integers(256))
            case 1:
                data[at] ^= 1 << int(rng.integers(8))
            case 2:
                data[at : at + length] = bytes(length)
            case 3:
                data[at : at + length] = data[at : at + length] * 2
            case 4:
                data[at : at + length] = rng.bytes(length)
            case _:
                del data[at : at + length]
        if len(data) < 2:
            break
    return bytes(data[: int(rng.integers(len(data)))]) if rng.random() < 0.1 else bytes(data)


def load(path: Path) -> Agent:
    return load_teacher(path, TeacherConfig(str(path), None, None, "q", None), PONG, SPACES)


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_give_an_agent_or_one_line(tmp_path: Path, name: str):
    path, content, rng = tmp_path / name, FORMATS[name](), np.random.default_rng(len(name))
    path.write_bytes(content)
    assert load(path).network.widths == WIDTHS  # whole it is one
    start, refusals = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, list[str]()
    for _ in range(FILES):
        path.write_bytes(mutated(content, rng))
        begun = time.monotonic()
        try:
            load(path)
        except UserError as error:
            refusals.append(str(error))
        assert time.monotonic() - begun < SLOWEST
    assert len(refusals) > FILES / 4
    assert not [line for line in refusals if "\n" in line]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start < PEAK
