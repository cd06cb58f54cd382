"""Agents as ONNX files: equal to their networks, in float32 up to rounding and in int8 nearly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.exports import EXPORTS, Deliverable, Int8Source, check_exports
from lrp_compress.deployment.files.onnx_models import OPSET, save_float, save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.cold_start import cold_start
from lrp_compress.deployment.measuring.deviation import deviation
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError

WIDTHS = {
    "policy": {"conv1": 5, "conv2": 6, "conv3": 7, "fc1": 9},
    "q": {"conv1": 5, "conv2": 6, "conv3": 7, "fc1": 9, "fc2": 8},
}


def agent(head: str) -> Agent:
    torch.manual_seed(0)
    network = nature_cnn(WIDTHS[head], head, 6).eval()
    return Agent(network, AgentInfo("pong", "minimal", False, {"step": 1}, all_channels(network.widths)))


@pytest.fixture(scope="module")
def play() -> NDArray[np.uint8]:
    """States of real Pong."""
    how = RolloutsConfig(states=96, envs=2, block=1, every=3)
    played = collect_rollouts(agent("policy"), how, Acting(action_rule("sample", "policy", 0.0), "noop", 0))
    return played.observations(torch.arange(96)).numpy()


@pytest.mark.parametrize("head", WIDTHS)
def test_float32_equals_the_network(tmp_path: Path, play: NDArray[np.uint8], head: str) -> None:
    path = tmp_path / "agent.onnx"
    own = agent(head)
    before = {name: value.clone() for name, value in own.network.state_dict().items()}
    save_float(path, own)
    policy = OnnxPolicy(path)
    for count in (1, 7, 96):  # of any batch size
        expected = own.network(torch.from_numpy(play[:count]))
        torch.testing.assert_close(policy.outputs(play[:count]), expected, rtol=1e-5, atol=1e-5)
    assert all(value.equal(before[name]) for name, value in own.network.state_dict().items())
    assert policy.metadata["game"] == "pong"
    assert policy.metadata["actions"] == "6"
    assert policy.metadata["head"] == head
    assert policy.metadata["format"] == "float32"
    assert json.loads(policy.metadata["lineage"]) == {"step": 1}
    model = onnx.load(path)
    assert next(one.version for one in model.opset_import if not one.domain) == OPSET
    assert str(Path.cwd()) not in str(model)  # no paths of the machine that wrote it
    assert [file.name for file in tmp_path.iterdir()] == ["agent.onnx"]  # one file


@pytest.mark.parametrize(("head", "per_channel"), [("policy", True), ("q", False)])
def test_int8_is_near_and_both_formats_are_the_same(
    tmp_path: Path, play: NDArray[np.uint8], head: str, per_channel: bool
) -> None:
    own = agent(head)
    outputs = {}
    for kind, operators in (("operators", True), ("pairs", False)):
        save_int8(tmp_path / kind, own, play[:32], per_channel, operators)
        outputs[kind] = OnnxPolicy(tmp_path / kind).outputs(play[32:])
    assert outputs["operators"].equal(outputs["pairs"])
    reference = own.network(torch.from_numpy(play[32:])).detach()
    spread = float((reference - reference.mean(1, keepdim=True)).square().mean().sqrt())
    assert 0 < deviation(outputs["operators"], reference).error < 0.2 * spread
    kinds = [node.op_type for node in onnx.load(tmp_path / "operators").graph.node]
    assert kinds[:3] == ["QLinearConv"] * 3  # the observation goes in as it is
    assert kinds[-1] == "QGemm"  # the head gives its sums in float32, unrounded
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds)


def test_the_input_has_a_scale_of_exactly_one_255th(tmp_path: Path, play: NDArray[np.uint8]) -> None:
    dark = np.minimum(play[:8], 100)  # without a single white pixel
    save_int8(tmp_path / "agent", agent("q"), dark, True)
    graph = onnx.load(tmp_path / "agent").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scale, zero = (constants[name] for name in graph.node[0].input[1:3])
    assert scale == np.float32(1 / 255)
    assert zero == 0


def test_deviation_of_known_outputs() -> None:
    reference = torch.tensor([[1.0, 0.0, -1.0], [2.0, 1.5, 0.0]])
    shifted = deviation(reference + 5, reference)
    assert (shifted.agreement, shifted.error, shifted.max_difference) == (1, 0, 5)
    assert shifted.margin_where_differing == 0
    swapped = deviation(torch.tensor([[1.0, 0.0, -1.0], [1.5, 2.0, 0.0]]), reference)
    assert (swapped.agreement, swapped.max_difference) == (0.5, 0.5)
    assert swapped.margin_where_differing == 0.5


def truncated(whole: bytes) -> bytes:
    return whole[: len(whole) // 2]


@pytest.mark.parametrize("spoil", [truncated, lambda whole: b"", lambda whole: b"no ONNX at all"])
def test_a_corrupt_file_is_told_in_one_line(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    save_float(tmp_path / "agent.onnx", agent("q"))
    path = tmp_path / "spoilt.onnx"
    path.write_bytes(spoil((tmp_path / "agent.onnx").read_bytes()))
    with pytest.raises(UserError, match=r"spoilt\.onnx") as caught:
        OnnxPolicy(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        OnnxPolicy(tmp_path / "none.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [value])
    graph.output[0].name = "y"
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="no agent of this project"):
        OnnxPolicy(tmp_path / "other.onnx")


def test_cold_start_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    save_float(tmp_path / "agent.onnx", agent("q"))
    start = cold_start(tmp_path / "agent.onnx")
    assert start.load_ms > 0
    assert start.first_ms > 0
    assert 0 < start.memory_bytes < 500e6
    with pytest.raises(RuntimeError, match=r"none\.onnx"):
        cold_start(tmp_path / "none.onnx")


def test_export_compares_what_it_wrote(tmp_path: Path, play: NDArray[np.uint8]) -> None:
    own = agent("policy")
    save_float(tmp_path / "float.onnx", own)
    save_int8(tmp_path / "int8.onnx", own, play[:32], True)
    source = Int8Source(tmp_path / "int8.onnx", own, play[:32], True)
    folder = tmp_path / "out"
    deviations = EXPORTS["onnx"].write(Deliverable(own, tmp_path / "float.onnx", play[32:], source), folder)
    assert set(deviations) == {"float32", "int8", "int8_qdq"}
    assert deviations["float32"].max_difference < 1e-5
    assert deviations["int8"] == deviations["int8_qdq"]
    assert {file.name for file in folder.iterdir()} == {"student.onnx", "student-int8.onnx", "student-int8-qdq.onnx"}
    save_float(tmp_path / "float.onnx", agent("q"))  # another network
    with pytest.raises(UserError, match="more than rounding"):
        EXPORTS["onnx"].write(Deliverable(own, tmp_path / "float.onnx", play[32:], None), folder)


def test_c_is_the_same_bit_by_bit(tmp_path: Path, play: NDArray[np.uint8]) -> None:
    own = agent("policy")
    save_int8(tmp_path / "int8.onnx", own, play[:32], True)
    source = Int8Source(tmp_path / "int8.onnx", own, play[:32], True)
    what = Deliverable(own, tmp_path / "float.onnx", play[32:], source)
    deviations = EXPORTS["c"].write(what, tmp_path / "c")
    assert deviations["int8"].max_difference == 0
    assert {"policy.c", "policy.h", "main.c", "Makefile"} <= {file.name for file in (tmp_path / "c").iterdir()}


def test_exports_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    check_exports(["onnx"], "none")
    check_exports(["onnx", "c"], "int8")
    with pytest.raises(UserError, match=r"export=onx is unknown \(did you mean onnx\?\)"):
        check_exports(["onx"], "int8")
    with pytest.raises(UserError, match="choose quantize=int8"):
        check_exports(["c"], "none")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="make and cc"):
        check_exports(["c"], "int8")
