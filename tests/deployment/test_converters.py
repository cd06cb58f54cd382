"""Files of converters that start from PyTorch; each is tested where its extra is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.deployment.files.exports import EXPORTS, Deliverable, Int8Source, check_exports
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.deployment.int8_files import SMALL, observations

FORMATS = {"litert": "tflite", "executorch": "pte"}


def has(name: str) -> bool:
    return importlib.util.find_spec(EXPORTS[name].module) is not None


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_near_their_network(tmp_path: Path, name: str) -> None:
    if not has(name):
        pytest.skip(f"the extra [{name}] is not installed")
    torch.manual_seed(0)
    network = nature_cnn(SMALL, "policy", 6).eval()
    agent = Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(SMALL)))
    seen = observations("pong", 96)
    source = Int8Source(tmp_path / "unused.onnx", agent, seen[:64], True)
    deviations = EXPORTS[name].write(Deliverable(agent, tmp_path / "unused.onnx", seen[64:], source), tmp_path)
    assert deviations["float32"].max_difference < 1e-5
    outputs = network(torch.from_numpy(seen[64:])).detach()
    assert 0 < deviations["int8"].max_difference < 0.05 * float(outputs.max() - outputs.min())
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {f"student.{FORMATS[name]}", f"student-int8.{FORMATS[name]}"}
    assert sizes[f"student-int8.{FORMATS[name]}"] < sizes[f"student.{FORMATS[name]}"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_missing_library_is_told_with_the_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'lrp_compress\[{name}\]'"):
        check_exports([name], "none")
