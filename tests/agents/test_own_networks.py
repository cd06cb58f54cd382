"""Networks of a user's own, given as a function."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lrp_compress.agents.teachers import load_teacher
from lrp_compress.config.schema import GameConfig, TeacherConfig
from lrp_compress.environments.atari import minimal_actions
from lrp_compress.support.errors import UserError

PONG = GameConfig("pong", "Pong", -20.7, 14.6)
PIXELS = torch.randint(0, 256, (3, 4, 84, 84), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
MODULE = """
from torch import nn


class Mine(nn.Module):
    def __init__(self, activation=nn.ReLU, norm=True, padding=0):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 8, 8, 4), activation(), nn.Conv2d(8, 6, 4, 2, padding=padding, bias=not norm),
            nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(inplace=True), nn.Conv2d(6, 6, 3), nn.ReLU(),
            nn.Dropout(0.5), nn.Flatten())
        self.dense = nn.Linear(6 * (7 if not padding else 8) ** 2, 16)
        self.out = nn.Linear(16, 6)

    def forward(self, observations):
        return self.out(self.dense(self.body(observations.float() / 255.0)).relu())


def plain(): return Mine()
def tanh(): return Mine(nn.Tanh)
def padded(): return Mine(padding=1)
def number(): return 3
def other():
    return nn.Sequential(Scaled(), nn.Conv2d(4, 8, 6, 5), nn.ReLU(), nn.Conv2d(8, 12, 5, 3), nn.ReLU(), nn.Flatten(),
                         nn.Linear(12 * 16, 16), nn.ReLU(), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 6))
class Scaled(nn.Module):
    def forward(self, observations): return observations / 255
class Residual(Mine):
    def forward(self, observations):
        hidden = self.dense(self.body(observations.float() / 255.0)).relu()
        return self.out(hidden + hidden.relu())
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    return tmp_path


def weights(folder: Path, function: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = getattr(importlib.import_module("my_network"), function)()
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    save_file(module.state_dict(), folder / "weights.safetensors")
    return module.eval()


def load(function: str, head: str = "q"):  # type: ignore[no-untyped-def]
    path = Path("weights.safetensors")
    config = TeacherConfig(str(path), None, None, head, f"my_network:{function}")
    return load_teacher(path, config, PONG, minimal_actions("pong"))


def test_a_module_of_ones_own_is_read(folder: Path):
    module = weights(folder, "plain")
    agent = load("plain")
    assert agent.network.widths == {"conv1": 8, "conv2": 6, "conv3": 6, "fc1": 16}
    assert (agent.network.head_kind, agent.info.action_set) == ("q", "minimal")
    with torch.inference_mode():
        torch.testing.assert_close(agent.network(PIXELS), module(PIXELS), rtol=1e-4, atol=1e-5)


def test_other_convolutions_are_read(folder: Path):
    module = weights(folder, "other")
    network = load("other").network
    assert network.convolutions == {"conv1": (6, 5), "conv2": (5, 3)}
    with torch.inference_mode():
        torch.testing.assert_close(network(PIXELS), module(PIXELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("tanh", "computes aten.tanh.default, which is no layer that is read"),
        ("padded", r"conv2 has the padding \[1, 1\]"),
        ("Residual", "is no chain of layers: aten.add.Tensor|computes aten.add.Tensor"),
    ],
)
def test_what_is_no_chain_of_known_layers_is_named(folder: Path, function: str, line: str):
    weights(folder, function)
    with pytest.raises(UserError, match=line):
        load(function)


@pytest.mark.parametrize(
    ("function", "head", "line"),
    [
        ("plain", "auto", "add teacher.head=q or teacher.head=policy"),
        ("number", "q", "gives int, which is no torch.nn.Module"),
        ("nothing", "q", "fails with AttributeError"),
        ("", "q", "write package.module:function"),
    ],
)
def test_mistakes(folder: Path, function: str, head: str, line: str):
    weights(folder, "plain")
    with pytest.raises(UserError, match=line):
        load(function, head)


def test_weights_of_another_network(folder: Path):
    weights(folder, "plain")
    save_file({"other.weight": torch.zeros(2)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match="and the weights do not fit"):
        load("plain")


def test_the_documentations_module_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Mine" in block)
    Path("documented.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("documented").Mine().eval()
    torch.save(module.state_dict(), "weights.pt")
    config = TeacherConfig("weights.pt", None, None, "policy", "documented:Mine")
    agent = load_teacher(Path("weights.pt"), config, PONG, minimal_actions("pong"))
    with torch.inference_mode():
        torch.testing.assert_close(agent.network(PIXELS), module(PIXELS), rtol=1e-4, atol=1e-5)
