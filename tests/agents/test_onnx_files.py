"""Agents as ONNX files, written the way other frameworks write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from lrp_compress.agents.checkpoints import Agent, AgentInfo
from lrp_compress.agents.formats import read_foreign
from lrp_compress.deployment.files.onnx_models import save_float, save_int8
from lrp_compress.networks.graph import Layer, Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.networks.spaces import ATARI, Decision
from lrp_compress.support.errors import UserError
from tests.agents.environments import spaces
from tests.agents.onnx_graphs import Node, as_torch_writes, convolutions, weights, write
from tests.compression.networks import built

WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 5, "fc1": 12}
PIXELS = torch.randint(0, 256, (3, 4, 84, 84), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def network(head: str = "policy", actions: int = 6) -> Network:
    torch.manual_seed(0)
    return nature_cnn(WIDTHS, head, actions).eval()


def as_keras_writes(path: Path, made: Network) -> Path:
    """Write what tf2onnx writes: channels last, products with weights the other way round, probabilities."""
    constants = weights(made)
    dense = constants["fc1.weight"].reshape(12, 5, 49).transpose(0, 2, 1).reshape(12, -1)
    constants |= {"dense": dense.T, "out": constants["head.weight"].T, "factor": np.float32(1 / 255)}
    nodes: list[Node] = [
        ("Mul", ["obs", "factor"], "scaled", {}),
        ("Transpose", ["scaled"], "first", {"perm": [0, 3, 1, 2]}),
        *convolutions("first"),
        ("Transpose", ["features"], "last", {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["last", "flat_shape"], "flat", {}),
        ("MatMul", ["flat", "dense"], "product", {}),
        ("Add", ["product", "fc1.bias"], "f1", {}),
        ("Relu", ["f1"], "hidden", {}),
        ("MatMul", ["hidden", "out"], "product2", {}),
        ("Add", ["product2", "head.bias"], "logits", {}),
        ("Softmax", ["logits"], "probabilities", {"axis": 1}),
    ]
    constants["flat_shape"] = np.array([-1, 245])
    return write(path, nodes, constants, ["probabilities"], (84, 84, 4), TensorProto.FLOAT)


@pytest.mark.parametrize("writer", [as_torch_writes, as_keras_writes])
def test_other_frameworks_files_are_read(tmp_path: Path, writer: Any):
    made = network()
    read, layout, _ = read_foreign(writer(tmp_path / "agent.onnx", made), spaces(6, 18), "policy")
    assert (read.widths, read.head_kind, read.actions, layout.name) == (WIDTHS, "policy", 6, "ONNX")
    with torch.inference_mode():
        torch.testing.assert_close(read(PIXELS), made(PIXELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["q", "policy"])
def test_our_own_file_says_how_it_plays(tmp_path: Path, head: str):
    agent = Agent(network(head), AgentInfo("pong", "minimal", True, {}, {}, frame_skip=3))
    save_float(tmp_path / "agent.onnx", agent)
    read, layout, _ = read_foreign(tmp_path / "agent.onnx", spaces(6))
    assert (read.head_kind, layout.fires, layout.frame_skip) == (head, True, 3)
    with torch.inference_mode():
        torch.testing.assert_close(read(PIXELS), agent.network(PIXELS), rtol=1e-4, atol=1e-5)


def test_convolutions_in_groups(tmp_path: Path):
    agent = Agent(built("depthwise"), AgentInfo("pong", "minimal", True, {}, {}))
    save_float(tmp_path / "agent.onnx", agent)
    read, *_ = read_foreign(tmp_path / "agent.onnx", spaces(6))
    assert read.layers == agent.network.layers
    with torch.inference_mode():
        torch.testing.assert_close(read(PIXELS), agent.network(PIXELS), rtol=1e-4, atol=1e-5)


def residual(path: Path, made: Network, last: bool = False) -> Path:
    """Write a network with a sum, other activations and poolings; the sum's inputs in another order with `last`."""
    nodes: list[Node] = [
        ("Cast", ["obs"], "floats", {"to": TensorProto.FLOAT}),
        ("Div", ["floats", "white"], "scaled", {}),
        ("Conv", ["scaled", "conv1.weight", "conv1.bias"], "c1", {"strides": [4, 4], "auto_pad": "SAME_UPPER"}),
        ("LeakyRelu", ["c1"], "l1", {"alpha": 0.2}),
        ("Conv", ["l1", "conv2.weight"], "c2", {"auto_pad": "SAME_LOWER"}),
        ("BatchNormalization", ["c2", "one", "shift", "mean", "variance"], "b2", {}),
        ("Elu", ["b2"], "e2", {"alpha": 0.7}),
        ("Sum" if last else "Add", ["e2", "l1"] if last else ["l1", "e2"], "sum", {}),
        ("MaxPool", ["sum"], "m1", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Sigmoid", ["m1"], "s1", {}),
        ("GlobalAveragePool", ["s1"], "p1", {}) if last else ("ReduceMean", ["s1"], "p1", {"axes": [-2, 3]}),
        ("Squeeze", ["p1", "places"], "f1", {}) if last else ("Flatten", ["p1"], "f1", {}),
        ("MatMul", ["f1", "turned"], "d1", {})
        if last
        else ("Gemm", ["f1", "fc1.weight", "fc1.bias"], "d1", {"transB": 1}),
        *([("Add", ["fc1.bias", "d1"], "d1b", {})] if last else []),
        ("Tanh", ["d1b" if last else "d1"], "t1", {}),
        ("Gemm", ["t1", "head.weight", "head.bias"], "logits", {"transB": 1}),
    ]
    state = weights(made)
    constants = {key: value for key, value in state.items() if key not in ("conv2.bias", "fc1.weight")}
    constants |= {"turned": state["fc1.weight"].T, "places": np.array([2, 3])} if last else {}
    constants |= {} if last else {"fc1.weight": state["fc1.weight"]}
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    constants |= {"white": np.float32(255), "one": ones, "mean": zeros, "variance": ones - np.float32(1e-5)}
    constants |= {"shift": state["conv2.bias"]}
    return write(path, nodes, constants, ["logits"])


def residual_network() -> Network:
    """Make the network of `residual`."""
    window: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
    layers = [
        Layer("conv1", "conv", ("observations",), {"width": 4, "kernel": (8, 8), "stride": (4, 4), "padding": (2, 2)}),
        Layer("conv1_leaky_relu", "leaky_relu", ("conv1",), {"slope": 0.2}),
        Layer("conv2", "conv", ("conv1_leaky_relu",), {"width": 4} | window),
        Layer("conv2_elu", "elu", ("conv2",), {"alpha": 0.7}),
        Layer("add1", "add", ("conv1_leaky_relu", "conv2_elu")),
        Layer("max_pool1", "max_pool", ("add1",), window | {"stride": (2, 2)}),
        Layer("max_pool1_sigmoid", "sigmoid", ("max_pool1",)),
        Layer("mean_pool1", "mean_pool", ("max_pool1_sigmoid",), {"kernel": (11, 11), "stride": (11, 11)}),
        Layer("flatten", "flatten", ("mean_pool1",)),
        Layer("fc1", "dense", ("flatten",), {"width": 8}),
        Layer("fc1_tanh", "tanh", ("fc1",)),
        Layer("head", "dense", ("fc1_tanh",), {"width": 6}),
    ]
    torch.manual_seed(0)
    return Network(layers, ATARI, Decision("policy", 6)).eval()


@pytest.mark.parametrize("last", [False, True])
def test_a_graph_is_read_in_any_writing(tmp_path: Path, last: bool):
    made = residual_network()
    read, *_ = read_foreign(residual(tmp_path / "agent.onnx", made, last), spaces(6), "policy")
    assert read.layers == made.layers
    for key, value in made.state_dict().items():
        torch.testing.assert_close(read.state_dict()[key], value, rtol=0, atol=0 if key != "conv2.weight" else 1e-7)


def refused(path: Path, head: str = "policy", actions: Sequence[int] = (6,)) -> str:
    with pytest.raises(UserError) as raised:
        read_foreign(path, spaces(*actions), head)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_its_outputs_are_is_asked(tmp_path: Path):
    assert "add teacher.head=q or" in refused(as_torch_writes(tmp_path / "agent.onnx", network()), "auto")


def test_a_node_that_is_no_layer_is_named(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    model = onnx.load(path)
    for op in ("Softplus", "HardSwish", "Softmax"):
        model.graph.node[5].op_type = op
        onnx.save(model, path)
        assert f"{op} (r2)" in refused(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"pads": [1, 1, 2, 2]}, "Conv with pads=[1, 1, 2, 2], which are not the same on both sides"),
        ({"dilations": [2, 2]}, "a convolution with dilation=(2, 2)"),
        ({"auto_pad": "SAME_UPPER", "strides": [1, 1]}, "Conv with pads=[1, 1, 2, 2]"),
        ({"group": 2}, "on values of (4, 20, 20) in 2 groups"),
    ],
)
def test_other_convolutions_are_refused(tmp_path: Path, changes: dict[str, Any], named: str):
    assert named in refused(as_torch_writes(tmp_path / "agent.onnx", network(), **changes))


@pytest.mark.parametrize("skip", ["0", "61", "\N{SUPERSCRIPT TWO}", "9" * 5000])
def test_frames_of_a_decision(tmp_path: Path, skip: str):
    save_float(tmp_path / "agent.onnx", Agent(network(), AgentInfo("pong", "minimal", True, {}, {})))
    model = onnx.load(tmp_path / "agent.onnx")
    (entry,) = (one for one in model.metadata_props if one.key == "frame_skip")
    entry.value = skip
    onnx.save(model, tmp_path / "agent.onnx")
    assert "is not between 1 and 60" in refused(tmp_path / "agent.onnx")


def test_files_that_are_not_read(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    assert "6 values, none for each action" in refused(path, actions=(4,))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "no whole ONNX file" in refused(path)
    onnx.save(onnx.load_from_string(whole), path, save_as_external_data=True, size_threshold=0, location="beside.data")
    assert "in another file" in refused(path)
    save_int8(path, Agent(network(), AgentInfo("pong", "minimal", True, {}, {})), PIXELS.numpy(), per_channel=False)
    assert "is no layer here" in refused(path)
    nodes: list[Node] = [("Relu", ["obs"], "out", {})]
    assert "must be observations alone" in refused(write(path, nodes, {}, ["out"], kind=TensorProto.DOUBLE))
    assert "shape (84, 84), but the game gives (4, 84, 84)" in refused(write(path, nodes, {}, ["out"], (84, 84)))
    assert "by relu, not by a dense layer" in refused(write(path, nodes, {}, ["out"]))


def test_a_tensor_that_is_not_what_it_says_is_one_line(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    model = onnx.load(path)
    (weight,) = (tensor for tensor in model.graph.initializer if tensor.name == "fc1.weight")
    weight.raw_data = weight.raw_data[:100]
    onnx.save(model, path)
    assert "agent.onnx" in refused(path)


def test_a_file_cannot_take_memory(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    model = onnx.load(path)
    huge = helper.make_node("ConstantOfShape", ["many"], ["flat_shape"], "huge")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2**40]), "many"))
    (index,) = (i for i, node in enumerate(model.graph.node) if node.op_type == "Concat")
    model.graph.node[index].CopyFrom(huge)
    onnx.save(model, path)
    assert "ConstantOfShape (huge) is no layer here" in refused(path)
