"""Files and C code of any network: float32 equal to it, int8 near to it, C equal to int8 bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.deployment.c.boards import BOARDS
from lrp_compress.deployment.c.building import STACK_BYTES, build_firmware
from lrp_compress.deployment.c.emulation import EmulatedBoard
from lrp_compress.deployment.c.integer_layers import read_int8
from lrp_compress.deployment.c.layers import GroupedLayer, IntegerLayer, Table
from lrp_compress.deployment.c.source import example_outputs, export_c
from lrp_compress.deployment.files.onnx_models import has_operators, save_float, save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.cold_start import cold_start
from lrp_compress.deployment.measuring.latency import onnx_decision, torch_decision
from lrp_compress.support.errors import UserError
from tests.deployment.arm import needs_arm_tools
from tests.deployment.graphs import GRAPHS, agent, seen

NEAR = 0.05  # of the outputs' standard deviation; an IMPALA network whose ReLUs are dropped is at 0.8


@pytest.fixture(params=GRAPHS, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def own(name: str) -> Agent:
    return agent(name)


@pytest.fixture(scope="module")
def int8_file(own: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "agent.onnx"
    save_int8(path, own, seen(own.network, 32, 1), per_channel=True)
    return path


def test_float32_equals_the_network(own: Agent, tmp_path: Path) -> None:
    path, observations = tmp_path / "agent.onnx", seen(own.network, 5, 0)
    save_float(path, own)
    policy = OnnxPolicy(path)
    with torch.no_grad():
        wanted = own.network(torch.from_numpy(observations))
    torch.testing.assert_close(policy.outputs(observations), wanted, rtol=1e-5, atol=1e-5)
    assert (policy.shape, policy.dtype) == (own.network.observations.shape, own.network.observations.dtype)
    assert [node.name for node in onnx.load(path).graph.node if node.name] == [one.name for one in own.network.layers]


def test_int8_is_near_in_both_formats(own: Agent, name: str, int8_file: Path, tmp_path: Path) -> None:
    observations = seen(own.network, 64, 2)
    policy = OnnxPolicy(int8_file)
    outputs = policy.outputs(observations)
    with torch.no_grad():
        wanted = own.network(torch.from_numpy(observations))
    error = float((outputs - wanted).square().mean().sqrt() / wanted.std())
    assert 0 < error < NEAR
    operators = name in ("nature", "curved", "grouped")
    assert has_operators(own.network) == operators
    assert policy.metadata["format"] == ("int8 QOperator" if operators else "int8 QDQ")
    save_int8(tmp_path / "pairs.onnx", own, seen(own.network, 32, 1), True, operators=False)
    assert OnnxPolicy(tmp_path / "pairs.onnx").outputs(observations).equal(outputs)


def test_c_computes_what_onnxruntime_computes(own: Agent, int8_file: Path, tmp_path: Path) -> None:
    observations = seen(own.network, 20, 3)
    computed = example_outputs(export_c(int8_file, tmp_path), observations)
    assert computed.numpy().tobytes() == OnnxPolicy(int8_file).run(observations).tobytes()


@needs_arm_tools
@pytest.mark.parametrize("name", ["impala", "vectors", "grouped"])
def test_a_board_decides_bit_for_bit_alike(name: str, tmp_path: Path) -> None:
    own = agent(name)
    save_int8(tmp_path / "agent.onnx", own, seen(own.network, 8, 1), per_channel=True)
    firmware = build_firmware(export_c(tmp_path / "agent.onnx", tmp_path), BOARDS["mps2-an386"])
    observations = seen(own.network, 2, 3)
    with EmulatedBoard(firmware, timeout_s=60) as board:
        outputs = board.outputs(observations)
        assert board.finish() < STACK_BYTES
    assert outputs.numpy().tobytes() == OnnxPolicy(tmp_path / "agent.onnx").run(observations).tobytes()


def test_pairs_become_the_same_code_as_operators(tmp_path: Path) -> None:
    own = agent("curved")
    for operators in (True, False):
        save_int8(tmp_path / f"{operators}.onnx", own, seen(own.network, 16, 1), False, operators)
        export_c(tmp_path / f"{operators}.onnx", tmp_path / str(operators))
    assert (tmp_path / "True" / "policy.c").read_text() == (tmp_path / "False" / "policy.c").read_text()


def test_values_lie_where_none_is_alive(own: Agent, name: str, int8_file: Path, tmp_path: Path) -> None:
    network, ram = read_int8(int8_file), export_c(int8_file, tmp_path).static_ram_bytes
    sizes = [step.output.count for step in network.steps[:-1]]
    if name == "nature":  # two buffers, in turn
        assert ram <= max(sizes[0::2]) + max(sizes[1::2]) + 6
    if name == "impala":
        assert [step.layer.window is None for step in network.steps if isinstance(step.layer, IntegerLayer)] == (
            [False] * 15 + [True] * 2
        )
        # the first convolution's and its pooled map; what comes behind, three values at a time, is smaller
        assert max(sizes) + 42 * 42 * 4 <= ram < max(sizes) + 42 * 42 * 4 + 64
    if name == "vectors":
        assert sum(isinstance(step.layer, Table) for step in network.steps) == 2
        assert ram < 17 + 12 + 8
    if name == "grouped":
        grouped = [step.layer for step in network.steps if isinstance(step.layer, GroupedLayer)]
        assert [layer.weights.shape for layer in grouped] == [(6, 5, 4, 1), (6, 3, 3, 1), (10, 3, 2, 1), (4, 2, 2, 5)]
    assert ram < sum(sizes) + 6


def test_latency_takes_what_the_network_takes(tmp_path: Path) -> None:
    own = agent("vectors")
    save_float(tmp_path / "agent.onnx", own)
    observation = torch.from_numpy(seen(own.network, 1, 0))
    decisions = torch_decision(own.network, observation), onnx_decision(tmp_path / "agent.onnx", observation)
    assert decisions[0]() == decisions[1]()
    with pytest.raises(ValueError, match=r"one float32 observation of the shape \(17,\) is needed"):
        onnx_decision(tmp_path / "agent.onnx", observation.byte())
    assert cold_start(tmp_path / "agent.onnx").first_ms > 0


def scale_of_nothing(model: onnx.ModelProto) -> None:
    named = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    (own,) = (tensor for tensor in model.graph.initializer if tensor.name == named)
    own.CopyFrom(onnx.numpy_helper.from_array(np.array(0, np.float32), named))


def pad_last(model: onnx.ModelProto, pads: list[int]) -> None:
    *_, node = (node for node in model.graph.node if node.op_type == "Conv")
    next(entry for entry in node.attribute if entry.name == "pads").ints[:] = pads


def other_grid(model: onnx.ModelProto) -> None:
    quantising = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    next(node for node in quantising if "max_pool" in node.input[0]).input[1] = quantising[-1].input[1]


@pytest.mark.parametrize("name", ["impala"], indirect=True)
def test_hostile_files_are_refused_in_one_line(int8_file: Path, tmp_path: Path) -> None:
    changes: dict[str, Callable[[onnx.ModelProto], None]] = {
        "scale is not above 0": scale_of_nothing,
        "its padding no smaller than itself": lambda model: pad_last(model, [3, 0, 0, 0]),
        "what is added differs in its sides": lambda model: pad_last(model, [0, 0, 0, 0]),
        "a MaxPool changes what bytes stand for": other_grid,
    }
    for told, change in changes.items():
        model = onnx.load(int8_file)
        change(model)
        (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UserError, match=told) as caught:
            read_int8(tmp_path / "odd.onnx")
        assert "\n" not in str(caught.value)
