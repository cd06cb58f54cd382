"""Agent files: what goes in comes out, and a bad file is one clear line."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, load_agent, save_agent
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import built

WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}


def agent(head: str = "q") -> Agent:
    torch.manual_seed(0)
    lineage = {"teacher": "ab" * 32, "ratio": 0.5, "steps": [1, 2], "note": "ä"}
    kept = {**all_channels(WIDTHS), "conv1": [0, 3, 5, 9]}
    return Agent(nature_cnn(WIDTHS, head, 6), AgentInfo("pong", "full", True, lineage, kept))


@pytest.mark.parametrize("head", ["q", "policy"])
def test_round_trip(tmp_path: Path, head: str):
    path = tmp_path / "new" / "agent.safetensors"
    saved = agent(head)
    save_agent(path, saved)
    loaded = load_agent(path)
    assert loaded.info == saved.info
    network = loaded.network
    assert (network.layers, network.head_kind, network.actions) == (saved.network.layers, head, 6)
    assert not network.training
    for name, tensor in saved.network.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_a_depthwise_convolution_of_which_one_channel_is_left_stays_one(tmp_path: Path):
    pruned = built("depthwise").resized({"conv1": 1, "conv3": 1, "fc1": 2})
    save_agent(tmp_path / "agent.safetensors", Agent(pruned, dataclasses.replace(agent().info, kept={})))
    network = load_agent(tmp_path / "agent.safetensors").network
    assert network.layers == pruned.layers
    assert network.widths == {"conv1": 1, "conv3": 1, "fc1": 2}


def test_half_precision_halves_the_file(tmp_path: Path):
    saved = agent()
    save_agent(tmp_path / "single.safetensors", saved)
    save_agent(tmp_path / "half.safetensors", saved, torch.float16)
    weights = sum(parameter.numel() for parameter in saved.network.parameters())
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("single", "half")]
    assert sizes[0] - sizes[1] == pytest.approx(2 * weights, abs=200)
    loaded = load_agent(tmp_path / "half.safetensors").network
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
    for name, tensor in saved.network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


def test_a_loaded_agent_can_learn(tmp_path: Path):
    save_agent(tmp_path / "agent.safetensors", agent())
    network = load_agent(str(tmp_path / "agent.safetensors")).network
    network(torch.rand(2, 4, 84, 84)).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 0.1 * parameter.grad
    again = load_agent(tmp_path / "agent.safetensors").network
    assert not torch.equal(again.head.bias, network.head.bias)  # the file is not written through


def test_loading_leaves_the_file_alone(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    save_agent(path, agent())
    content = path.read_bytes()
    load_agent(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_action_set():
    with pytest.raises(ValueError, match="action_set 'reduced' is not one of minimal, full"):
        AgentInfo("pong", "reduced", False, {}, {})


@pytest.mark.parametrize(
    "odd",
    [
        {"game": "\x1b[2Jpong"},
        {"game": "*/ int main() {} /*"},
        {"game": "a" * 300},
        {"kept": {"conv1": [0.5]}},
        {"kept": {"conv1": None}},
        {"fire_on_life_loss": "no"},
        {"lineage": []},
        {"frame_skip": 0},
        {"frame_skip": True},
        {"frame_skip": 10**9},
    ],
)
def test_metadata_of_another_kind_are_refused(odd: dict[str, Any]):
    plain = {"game": "pong", "action_set": "full", "fire_on_life_loss": False, "lineage": {}, "kept": {"conv1": [0]}}
    AgentInfo(**plain)
    with pytest.raises((ValueError, TypeError)):
        AgentInfo(**plain | odd)


def test_all_channels():
    assert all_channels({"conv1": 3, "fc1": 2}) == {"conv1": [0, 1, 2], "fc1": [0, 1]}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    save_agent(path, agent())
    content = path.read_bytes()
    broken = dataclasses.replace(agent().info, lineage={"not": {"json"}})
    with pytest.raises(TypeError):
        save_agent(path, Agent(agent().network, broken))
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.folder,)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_agent(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_file_and_folder(tmp_path: Path):
    refused(tmp_path / "none.safetensors", "does not exist")
    refused(tmp_path, "does not exist")


def test_empty_file(tmp_path: Path):
    (tmp_path / "agent.safetensors").touch()
    refused(tmp_path / "agent.safetensors", "empty")


@pytest.mark.parametrize("length", [1, 5, 8, 100, 0.5, -1])
def test_truncated_file(tmp_path: Path, length: float):
    path = tmp_path / "agent.safetensors"
    save_agent(path, agent())
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if isinstance(length, float) else int(length)])
    refused(path, "not a whole safetensors file")


def test_text_file(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\n" * 3)
    refused(path, "not a whole safetensors file")


def test_pickles_and_zips_are_not_opened(tmp_path: Path):
    path, trap = tmp_path / "agent.zip", tmp_path / "sprung"
    torch.save({"weights": torch.zeros(3), "trap": Trap(trap)}, path)
    refused(path, "never unpickled")
    torch.save({"trap": Trap(trap)}, path, _use_new_zipfile_serialization=False)
    refused(path, "never unpickled")
    path.write_bytes(pickle.dumps(Trap(trap)))
    refused(path, "never unpickled")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", b"weights")
    refused(path, "never unpickled")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # the trap does work


def test_safetensors_of_someone_else(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    refused(path, "no lrp_compress metadata")
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    refused(path, "no lrp_compress metadata")


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any], old: bool = False) -> None:
    """Save an agent and tamper with its metadata and tensors; what `change` returns replaces the metadata."""
    save_agent(path, agent())
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["lrp_compress"])
    if old:  # as the first format had it
        for key in ("layers", "observations", "decision"):
            del header[key]
        header |= {"format": "lrp_compress/1", "widths": dict(WIDTHS), "head": "q", "actions": 6}
    replacement = change(header, tensors)
    text = json.dumps(header if replacement is None else replacement)
    save_file(tensors, path, metadata={"lrp_compress": text})


def drop(mapping: dict[str, Any], key: str) -> None:
    del mapping[key]


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]
OLD_CHANGES: dict[str, Change] = {
    "wider": lambda header, _: header["widths"].update(conv2=7),
    "more actions": lambda header, _: header.update(actions=9),
    "another head": lambda header, _: header.update(head="dueling"),
    "unknown head": lambda header, _: header.update(head="value"),
    "layer missing": lambda header, _: drop(header["widths"], "fc1"),
    "layer too many": lambda header, _: header["widths"].update(fc2=3),
    "widths a list": lambda header, _: header.update(widths=[4, 6, 6, 16]),
    "widths null": lambda header, _: header.update(widths=None),
    "width a word": lambda header, _: header["widths"].update(conv1="four"),
    "width zero": lambda header, _: header["widths"].update(conv1=0),
}
CHANGES: dict[str, Change] = {
    "wider": lambda header, _: header["layers"][0]["options"].update(width=7),
    "far wider": lambda header, _: header["layers"][0]["options"].update(width=2**40),
    "width a truth": lambda header, _: header["layers"][0]["options"].update(width=True),
    "option missing": lambda header, _: drop(header["layers"][0]["options"], "stride"),
    "option too many": lambda header, _: header["layers"][1]["options"].update(slope=0.1),
    "groups of no size": lambda header, _: header["layers"][2]["options"].update(groups=3),
    "kernel a number": lambda header, _: header["layers"][0]["options"].update(kernel=8),
    "slope infinite": lambda header, _: header["layers"][1].update(op="leaky_relu", options={"slope": 1e300}),
    "more actions": lambda header, _: header["decision"].update(size=9),
    "unknown head": lambda header, _: header["decision"].update(kind="value"),
    "other pictures": lambda header, _: header["observations"].update(shape=[4, 64, 64]),
    "no pictures": lambda header, _: header["observations"].update(shape=[4, 84]),
    "unit zero": lambda header, _: header["observations"].update(unit=0),
    "unit infinite": lambda header, _: header["observations"].update(unit=float("inf")),
    "unit beyond numbers": lambda header, _: header["observations"].update(unit=10**400),
    "unit next to nothing": lambda header, _: header["observations"].update(unit=1e-40),
    "unit a truth": lambda header, _: header["observations"].update(unit=True),
    "kept of another layer": lambda header, _: header["kept"].update(fc9=[0]),
    "kept too few": lambda header, _: header["kept"].update(conv1=[0]),
    "kept twice": lambda header, _: header["kept"].update(conv1=[0, 0, 1, 2]),
    "kept beyond all numbers": lambda header, _: header["kept"].update(conv1=[0, 1, 2, 10**30]),
    "a score that is no number": lambda header, _: header["lineage"].update(score=10**400),
    "kept below zero": lambda header, _: header["kept"].update(conv1=[-1, 0, 1, 2]),
    "score a word": lambda header, _: header["lineage"].update(score="high"),
    "whole numbers": lambda _, tensors: tensors.update({"head.bias": torch.zeros(6, dtype=torch.int64)}),
    "complex numbers": lambda _, tensors: tensors.update({"head.bias": torch.zeros(6, dtype=torch.complex64)}),
    "beyond float32": lambda _, tensors: tensors.update({"head.bias": torch.full((6,), 1e300, dtype=torch.float64)}),
    "layer missing": lambda header, _: header["layers"].pop(2),
    "layer twice": lambda header, _: header["layers"].insert(1, header["layers"][0]),
    "layer unread": lambda header, _: header["layers"].insert(1, header["layers"][1] | {"name": "other"}),
    "unknown op": lambda header, _: header["layers"][1].update(op="attention"),
    "rounding": lambda header, _: header["layers"][1].update(op="round"),
    "a name of torch's": lambda header, _: header["layers"][1].update(name="forward"),
    "a circle": lambda header, _: header["layers"][0].update(inputs=["conv1"]),
    "inputs no list": lambda header, _: header["layers"][0].update(inputs="observations"),
    "layers a word": lambda header, _: header.update(layers="conv"),
    "layers null": lambda header, _: header.update(layers=None),
    "another format": lambda header, _: header.update(format="lrp_compress/99"),
    "format missing": lambda header, _: drop(header, "format"),
    "game missing": lambda header, _: drop(header, "game"),
    "unknown key": lambda header, _: header.update(surprise=1),
    "unknown action set": lambda header, _: header.update(action_set="reduced"),
    "tensor missing": lambda _, tensors: drop(tensors, "head.bias"),
    "tensor too many": lambda _, tensors: tensors.update({"fc2.bias": torch.zeros(3)}),
    "tensor of another shape": lambda _, tensors: tensors.update({"fc1.bias": torch.zeros(15)}),
    "tensor not finite": lambda _, tensors: tensors.update({"fc1.bias": torch.full((16,), torch.nan)}),
    "metadata a list": lambda *_: ["lrp_compress/1"],
    "metadata a number": lambda *_: 5,
    "metadata empty": lambda *_: {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_metadata_and_tensors_must_fit(tmp_path: Path, change: str):
    path = tmp_path / "agent.safetensors"
    rewritten(path, CHANGES[change])
    refused(path, "does not fit its own metadata")


@pytest.mark.parametrize("change", OLD_CHANGES)
def test_metadata_and_tensors_of_the_first_format_must_fit(tmp_path: Path, change: str):
    path = tmp_path / "agent.safetensors"
    rewritten(path, OLD_CHANGES[change], old=True)
    refused(path, "does not fit its own metadata")


def test_a_layer_whose_channels_are_not_listed_has_all(tmp_path: Path):
    save_agent(
        tmp_path / "agent.safetensors", Agent(agent().network, dataclasses.replace(agent().info, kept={"fc1": [0]}))
    )
    with pytest.raises(UserError, match="kept does not list the channels of fc1"):
        load_agent(tmp_path / "agent.safetensors")
    part = {"conv1": agent().info.kept["conv1"]}
    save_agent(tmp_path / "agent.safetensors", Agent(agent().network, dataclasses.replace(agent().info, kept=part)))
    assert load_agent(tmp_path / "agent.safetensors").info.kept == agent().info.kept


def test_the_first_format_is_read(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    rewritten(path, lambda *_: None, old=True)
    loaded = load_agent(path)
    assert (loaded.info, loaded.network.layers) == (agent().info, agent().network.layers)


def test_a_dueling_agent_of_the_first_format_is_folded(tmp_path: Path):
    """Its units are numbered value stream first, as they were in the unpruned teacher."""
    path = tmp_path / "agent.safetensors"
    torch.manual_seed(1)
    features, units = 6 * 49, {"value": 2, "advantage": 3}
    streams = {f"{name}_fc1.weight": torch.randn(width, features) for name, width in units.items()}
    streams |= {f"{name}_fc1.bias": torch.randn(width) for name, width in units.items()}
    streams |= {"value_head.weight": torch.randn(1, 2), "value_head.bias": torch.randn(1)}
    streams |= {"advantage_head.weight": torch.randn(6, 3), "advantage_head.bias": torch.randn(6)}

    def dueling(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for key in ("fc1.weight", "fc1.bias", "head.weight", "head.bias"):
            del tensors[key]
        tensors |= streams
        widths = {name: width for name, width in WIDTHS.items() if name != "fc1"}
        header |= {
            "head": "dueling",
            "widths": widths | {"value_fc1": 2, "advantage_fc1": 3},
            "kept": all_channels(widths) | {"value_fc1": [1, 4], "advantage_fc1": [0, 2, 5]},
        }

    rewritten(path, dueling, old=True)
    loaded = load_agent(path)
    assert loaded.network.head_kind == "q"
    assert loaded.network.widths == WIDTHS | {"fc1": 5}
    assert loaded.info.kept["fc1"] == [1, 4, 5, 7, 10]
    pixels = torch.rand(3, 4, 84, 84)
    with torch.no_grad():
        features_of = pixels
        for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
            layer = loaded.network.get_submodule(name)
            features_of = torch.conv2d(features_of, layer.weight, layer.bias, stride).relu()
        ends = {}
        for name in units:
            hidden = features_of.flatten(1) @ streams[f"{name}_fc1.weight"].T + streams[f"{name}_fc1.bias"]
            ends[name] = hidden.relu() @ streams[f"{name}_head.weight"].T + streams[f"{name}_head.bias"]
        expected = ends["value"] + ends["advantage"] - ends["advantage"].mean(1, keepdim=True)
        torch.testing.assert_close(loaded.network(pixels), expected, rtol=1e-4, atol=1e-4)


def test_metadata_that_is_no_json(tmp_path: Path):
    path = tmp_path / "agent.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"lrp_compress": "{widths:"})
    refused(path, "does not fit its own metadata")


def test_an_untampered_rewrite_loads(tmp_path: Path):
    """The refusals above are due to the changes."""
    rewritten(tmp_path / "agent.safetensors", lambda *_: None)
    assert load_agent(tmp_path / "agent.safetensors").info == agent().info
