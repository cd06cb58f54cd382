"""Networks of a user's own: as a module, as a program of `torch.export`, as ONNX and as a file of this project."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lrp_compress.agents.checkpoints import Agent, save_agent
from lrp_compress.agents.teachers import load_teacher
from lrp_compress.config.schema import GameConfig, TeacherConfig
from lrp_compress.environments.atari import game_spaces
from lrp_compress.networks.graph import Network
from lrp_compress.support.errors import UserError

PONG = GameConfig("pong", "Pong", -20.7, 14.6)
PIXELS = torch.randint(0, 256, (3, 4, 84, 84), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
PIXELS //= torch.tensor([1, 2, 8], dtype=torch.uint8).view(3, 1, 1, 1)  # pictures that differ in their means too
MODULE = '''
import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """CleanRL's, but that the first activation changes its input, and with it what is added, in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv0, self.conv1 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x):
        inner = self.conv1(F.relu(self.conv0(F.relu(x, inplace=True)), inplace=True))
        return inner + x


class Sequence(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(Residual(width), Residual(width))

    def forward(self, x):
        return self.blocks(F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1))


class Impala(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(Sequence(4, 3), Sequence(3, 4), Sequence(4, 5), nn.Flatten(), nn.ReLU(),
                                     nn.Linear(5 * 121, 16), nn.ReLU())
        self.actor = nn.Linear(16, 6)

    def forward(self, observations):
        return self.actor(self.network(observations / 255.0))


class Normal(nn.Module):
    """Batch normalisation, other activations and poolings, a sum of three, pixels times 1/255."""

    def __init__(self):
        super().__init__()
        self.conv0 = nn.Conv2d(4, 6, 5, 3, bias=False)
        self.conv1 = nn.Conv2d(6, 6, 3, padding="same")
        self.conv2 = nn.Conv2d(6, 6, (1, 3), padding=(0, 1))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(2))
        self.shift = nn.Parameter(torch.linspace(0, 1, 6).view(6, 1, 1))
        self.dense, self.norm, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 6)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations):
        first = F.leaky_relu(self.norms[0](self.conv0(observations.float() * (1 / 255))), 0.2)
        other = F.elu(self.norms[1](self.conv1(first) + self.shift), 0.7)
        summed = F.avg_pool2d(torch.tanh(self.conv2(other)) + first + other, 2)
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(summed.clamp(min=0), (3, 2)), 2).sigmoid().mean((2, 3))
        return self.out(self.norm(self.dense(self.dropout(pooled))).tanh())


class Mine(nn.Module):
    def __init__(self, activation=nn.ReLU, last=nn.Identity, side=9, **options):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 8, 8, 4), activation(), nn.Conv2d(8, 4, 4, 2, **options), nn.Flatten())
        self.dense, self.out, self.last = nn.Linear(4 * side * side, 16), nn.Linear(16, 6), last()

    def forward(self, observations):
        return self.last(self.out(self.dense(self.body(observations / 255.0)).relu()))


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.lstm, self.out = Mine().body, nn.LSTM(4 * 81, 8), nn.Linear(8, 6)

    def forward(self, observations):
        return self.out(self.lstm(self.body(observations / 255.0))[0])


class Attention(Lstm):
    def forward(self, observations):
        tokens = self.body[:3](observations / 255.0).flatten(2).permute(0, 2, 1)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).sum(1)


class Aliased(Mine):
    """Changes a value through another view of it."""

    def forward(self, observations):
        hidden = self.body[:3](observations / 255.0)
        hidden.flatten(1).relu_()
        return self.out(self.dense(hidden.flatten(1)))


class Last(Mine):
    def forward(self, observations):
        return super().forward(observations.permute(0, 3, 1, 2))


class Sub(Mine):
    def forward(self, observations):
        return super().forward(observations - 128.0)


class Dict(Mine):
    def forward(self, observations):
        return super().forward(observations["image"])


class Critic(Mine):
    def forward(self, observations):
        hidden = self.dense(self.body(observations / 255.0)).relu()
        return hidden.sum(1), self.out(hidden)


def grouped(): return Mine(groups=2)
def unfit(): return Mine(side=5)
def dilated(): return Mine(dilation=2, side=7)
def gelu(): return Mine(nn.GELU)
def softmax(): return Mine(last=lambda: nn.Softmax(-1))
def softmax_inside(): return Mine(lambda: nn.Softmax(-1))
def number(): return 3
'''


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


def load(function: str, head: str = "policy") -> Agent:
    path = Path("weights.safetensors")
    config = TeacherConfig(str(path), None, None, head, f"my_network:{function}")
    return load_teacher(path, config, PONG, game_spaces("pong"))


def load_file(path: Path, head: str = "policy") -> Agent:
    return load_teacher(path, TeacherConfig(str(path), None, None, head, None), PONG, game_spaces("pong"))


def exported(module: nn.Module, path: Path, shape: tuple[int, ...] = (4, 84, 84)) -> Path:
    given = torch.zeros((2, *shape), dtype=torch.uint8)
    torch.export.save(torch.export.export(module, (given,), dynamic_shapes=({0: torch.export.Dim.AUTO},)), path)
    return path


def as_onnx(module: nn.Module, path: Path) -> Path:
    given, names = torch.zeros((2, 4, 84, 84), dtype=torch.uint8), {"dynamic_axes": {"obs": {0: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (given,), path, dynamo=False, input_names=["obs"], **names)  # type: ignore[arg-type]
    return path


def as_own(module: nn.Module, path: Path) -> Path:
    save_agent(path, load(type(module).__name__))
    return path


DOORS: dict[str, Callable[[nn.Module, Path], Path]] = {"a.pt2": exported, "a.onnx": as_onnx, "a.safetensors": as_own}


def same(one: Network, other: Network) -> None:
    assert one.layers == other.layers
    assert (one.observations, one.decision) == (other.observations, other.decision)
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Impala", "Normal"])
def test_every_door_gives_the_same_network(folder: Path, name: str):
    module = weights(folder, name)
    network = load(name).network
    with torch.inference_mode():
        torch.testing.assert_close(network(PIXELS), module(PIXELS), rtol=1e-5, atol=1e-6)
        assert network(PIXELS).std(0).max() > 1e-5
    for file, write in DOORS.items():
        same(load_file(write(module, folder / file)).network, network)


def test_layers_are_called_by_what_they_compute(folder: Path):
    weights(folder, "Impala")
    network = load("Impala").network
    assert list(network.widths) == [
        "conv1",
        "conv2",
        "conv4",
        "conv6",
        "conv7",
        "conv9",
        "conv11",
        "conv12",
        "conv14",
        "fc1",
    ]
    assert [layer.name for layer in network.layers][:9] == [
        *("conv1", "max_pool1", "max_pool1_relu", "conv2", "conv2_relu", "conv3", "add1", "add1_relu", "conv4"),
    ]
    assert network.layer("add1").inputs == ("max_pool1_relu", "conv3")  # changed in place before it was added
    assert [layer.name for layer in network.layers][-5:] == ["flatten", "flatten_relu", "fc1", "fc1_relu", "head"]
    weights(folder, "Normal")
    network = load("Normal").network
    assert network.layer("conv1_leaky_relu").options == {"slope": 0.2}
    assert network.layer("conv2").options["padding"] == (1, 1)
    assert network.layer("mean_pool3").options == {"kernel": (2, 2), "stride": (2, 2)}
    assert network.layer("fc1").inputs == ("flatten",)


@pytest.mark.parametrize(
    ("function", "head"), [("softmax", "policy"), ("Critic", "q"), ("Mine", "q"), ("grouped", "q")]
)
def test_other_outputs(folder: Path, function: str, head: str):
    module = weights(folder, function)
    agent = load(function, head)
    assert (agent.network.head_kind, agent.info.action_set) == (head, "minimal")
    with torch.inference_mode():
        ours, theirs = agent.network(PIXELS), module(PIXELS)
    theirs = theirs[1] if isinstance(theirs, tuple) else theirs
    torch.testing.assert_close(ours.softmax(1) if function == "softmax" else ours, theirs, rtol=1e-4, atol=1e-5)
    same(load_file(exported(module, folder / "a.pt2"), head).network, agent.network)


def test_pictures_with_their_channels_last(folder: Path):
    weights(folder, "Mine")
    network = load("Mine").network
    module = weights(folder, "Last")
    same(load("Last").network, network)
    same(load_file(exported(module, folder / "a.pt2", (84, 84, 4))).network, network)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("dilated", r"a convolution with dilation=\(2, 2\)"),
        ("gelu", "gelu"),
        ("softmax_inside", "softmax"),
        ("Lstm", "it computes an LSTM, which is no layer here"),
        ("Attention", "it computes attention, which is no layer here"),
        ("Aliased", "a value that is changed in place under another name"),
        ("Sub", "sub.Tensor"),
        ("Dict", r"cannot be exported by PyTorch: .*it must take observations, uint8 of shape \(N, 4, 84, 84\)"),
    ],
)
def test_what_is_no_layer_is_named(folder: Path, function: str, line: str):
    module = weights(folder, function)
    with pytest.raises(UserError, match=line) as raised:
        load(function)
    assert "\n" not in str(raised.value)
    if function != "Dict":
        with pytest.raises(UserError, match=line):
            load_file(exported(module, folder / "a.pt2"))


@pytest.mark.parametrize(
    ("function", "head", "line"),
    [
        ("Mine", "auto", "add teacher.head=q or teacher.head=policy"),
        ("softmax", "q", "softmax, which Q-values have not"),
        ("number", "q", "gives int, which is no torch.nn.Module"),
        ("nothing", "q", "fails with AttributeError"),
        ("", "q", "write package.module:function"),
    ],
)
def test_mistakes(folder: Path, function: str, head: str, line: str):
    weights(folder, "softmax" if function == "softmax" else "Mine")
    with pytest.raises(UserError, match=line):
        load(function, head)


class Plain(nn.Module):
    """Calls what changes its observations, its maps and its outputs, nothing here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(4, 8, 8, 4), nn.Linear(8 * 400, 6)
        self.scale = nn.Buffer(torch.full((1,), 2.0))

    def observed(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def valued(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mapped(torch.relu(self.conv(self.observed(x / 255))))
        return self.valued(self.out(torch.relu(x).flatten(1)) * self.scale)


class Cropped(Plain):
    def observed(self, x: torch.Tensor) -> torch.Tensor:
        x[:, :, :10] = 0
        return x


class Dropped(Plain):
    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 2] = 0
        return x


class Grown(Plain):
    def mapped(self, x: torch.Tensor) -> torch.Tensor:
        x.unsqueeze(0).mul_(2.0)
        return x


class Forbidden(Plain):
    def valued(self, x: torch.Tensor) -> torch.Tensor:
        x[:, 4:] = -5.0
        return x


class Turned(Plain):
    def valued(self, x: torch.Tensor) -> torch.Tensor:
        x.t().mul_(2.0)
        return x


class Together(Plain):
    def valued(self, x: torch.Tensor) -> torch.Tensor:
        torch._foreach_mul_([x * 1, x], 3.0)
        return x


class Rescaled(Plain):
    def valued(self, x: torch.Tensor) -> torch.Tensor:
        self.scale.mul_(1.5)
        return x


@pytest.mark.parametrize("module", [Cropped, Dropped, Grown, Forbidden, Turned, Together, Rescaled])
def test_what_is_changed_in_place_under_another_name_is_refused(folder: Path, module: type[nn.Module]):
    with pytest.raises(UserError, match="a value that is changed in place under another name"):
        load_file(exported(module().eval(), folder / "a.pt2"))


class Masked(nn.Module):
    """Computes in bytes, which wrap around, and never takes two of its actions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(4, 16, 8, 4), nn.Linear(16 * 400, 6)
        self.mask = nn.Buffer(torch.tensor([0, 0, 0, -1e9, -1e9, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.conv((x * 2) / 510)).flatten(1)) + self.mask  # type: ignore[no-any-return]


def test_a_mask_hides_no_difference(folder: Path):
    torch.manual_seed(0)
    with pytest.raises(UserError, match="computes something else than the layers"):
        load_file(exported(Masked().eval(), folder / "a.pt2"))


def test_what_torch_says_of_a_mistake_is_said_once(folder: Path, capfd: pytest.CaptureFixture[str]):
    weights(folder, "unfit")
    with pytest.raises(UserError, match="cannot be exported by PyTorch"):
        load("unfit")
    assert "Traceback" not in capfd.readouterr().err


def test_weights_of_another_network(folder: Path):
    weights(folder, "Mine")
    save_file({"other.weight": torch.zeros(2)}, folder / "weights.safetensors")
    with pytest.raises(UserError, match="and the weights do not fit"):
        load("Mine")


@pytest.mark.parametrize("write", [exported, as_onnx])
def test_files_that_say_what_they_compute_take_no_module(folder: Path, write: Callable[[nn.Module, Path], Path]):
    write(weights(folder, "Mine"), Path("weights.safetensors"))
    with pytest.raises(UserError, match=r"says itself what its network computes; leave teacher\.network out"):
        load("Mine")


def test_weights_that_are_not_finite(folder: Path):
    module = weights(folder, "Mine")
    module.out.bias.data[0] = torch.nan  # type: ignore[union-attr,operator,index]
    with pytest.raises(UserError, match=r"head\.bias holds numbers that are not finite"):
        load_file(exported(module, folder / "a.pt2"))


class Bomb:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("crater",)


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            if (changed := change(name, content)) is not None:
                archive.writestr(name, changed)
    return path


@pytest.mark.slow
def test_programs_are_never_unpickled(folder: Path):
    path = exported(weights(folder, "Mine"), folder / "a.pt2")
    bomb = pickle.dumps(Bomb())
    with zipfile.ZipFile(path) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("weights_config.json"))
        config = json.loads(archive.read(name))
    bias = config["config"]["out.bias"]
    bias["use_pickle"] = True

    def pickled(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return json.dumps(config).encode()
        return bomb if name.endswith(bias["path_name"]) else content

    with pytest.raises(UserError, match=r"out\.bias in it is pickled, which is never loaded"):
        load_file(rewritten(path, pickled))
    exported(weights(folder, "Mine"), path)
    assert load_file(rewritten(path, lambda name, content: bomb if "sample_inputs" in name else content)).network
    assert not (folder / "crater").exists()
    pickle.loads(bomb)
    assert (folder / "crater").exists()  # it does work


def test_programs_of_other_versions(folder: Path):
    path = exported(weights(folder, "Mine"), folder / "a.pt2")
    with pytest.raises(UserError, match=r"save it again with PyTorch 2\.9 or later"):
        load_file(rewritten(path, lambda name, content: None if name.endswith("weights_config.json") else content))


def test_the_documentations_network_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    blocks = re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", page, re.DOTALL)
    for name, block in blocks:
        Path(name).write_text(block)
    assert [name for name, _ in blocks] == ["my_network.py", "save.py"]
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_network", raising=False)
    exec(compile(blocks[1][1], "save.py", "exec"), {})
    module = importlib.import_module("my_network").Mine().eval()
    module.load_state_dict(torch.load("weights.pt", weights_only=True))
    config = TeacherConfig("weights.pt", None, None, "policy", "my_network:Mine")
    network = load_teacher(Path("weights.pt"), config, PONG, game_spaces("pong")).network
    with torch.inference_mode():
        torch.testing.assert_close(network(PIXELS), module(PIXELS), rtol=1e-4, atol=1e-5)
    same(load_file(Path("policy.pt2")).network, network)
