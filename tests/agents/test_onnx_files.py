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
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError

WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 5, "fc1": 12}
PIXELS = torch.randint(0, 256, (3, 4, 84, 84), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
Node = tuple[str, Sequence[str], str, dict[str, Any]]


def network(head: str = "policy", actions: int = 6) -> Network:
    torch.manual_seed(0)
    return nature_cnn(WIDTHS, head, actions).eval()


def weights(made: Network) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value.detach().numpy() for key, value in made.state_dict().items()}


def convolutions(first: str, values: str = "features", **changes: Any) -> list[Node]:
    nodes: list[Node] = []
    for number, stride in enumerate((4, 2, 1), start=1):
        options = {"strides": [stride] * 2} | (changes if number == 2 else {})
        nodes.append(("Conv", [first, f"conv{number}.weight", f"conv{number}.bias"], f"c{number}", options))
        first = values if number == 3 else f"r{number}"
        nodes.append(("Relu", [f"c{number}"], first, {}))
    return nodes


def write(
    path: Path,
    nodes: Sequence[Node],
    constants: dict[str, np.ndarray[Any, Any]],
    outputs: Sequence[str],
    shape: Sequence[int] = (4, 84, 84),
    kind: int = TensorProto.UINT8,
) -> Path:
    made = [helper.make_node(op, list(inputs), [output], output, **options) for op, inputs, output, options in nodes]
    tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    given = helper.make_tensor_value_info("obs", kind, ["n", *shape])
    kinds = {"action": TensorProto.INT64}
    told = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), ["n", "m"]) for name in outputs]
    graph = helper.make_graph(made, "agent", [given], told, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def as_torch_writes(path: Path, made: Network, **changes: Any) -> Path:
    """Write what `torch.onnx.export` writes of a module that divides by 255 and flattens by a computed shape."""
    nodes: list[Node] = [
        ("Cast", ["obs"], "floats", {"to": TensorProto.FLOAT}),
        ("Div", ["floats", "white"], "scaled", {}),
        *convolutions("scaled", **changes),
        ("Shape", ["features"], "shape", {}),
        ("Gather", ["shape", "zero"], "count", {"axis": 0}),
        ("Concat", ["count", "minus"], "flat_shape", {"axis": 0}),
        ("Reshape", ["features", "flat_shape"], "flat", {}),
        ("Gemm", ["flat", "fc1.weight", "fc1.bias"], "f1", {"transB": 1}),
        ("Relu", ["f1"], "hidden", {}),
        ("Gemm", ["hidden", "head.weight", "head.bias"], "logits", {"transB": 1}),
        ("Gemm", ["hidden", "critic.weight", "critic.bias"], "value", {"transB": 1}),
        ("ArgMax", ["logits"], "action", {"axis": 1}),
    ]
    constants = weights(made) | {
        "white": np.float32(255),
        "zero": np.array([0]),
        "minus": np.array([-1]),
        "critic.weight": np.ones((1, 12), np.float32),
        "critic.bias": np.ones(1, np.float32),
    }
    return write(path, nodes, constants, ["logits", "value", "action"])


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
    read, layout, _ = read_foreign(writer(tmp_path / "agent.onnx", made), [6, 18], "policy")
    assert (read.widths, read.head_kind, read.actions, layout.name) == (WIDTHS, "policy", 6, "ONNX")
    with torch.inference_mode():
        torch.testing.assert_close(read(PIXELS), made(PIXELS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["q", "policy"])
def test_our_own_file_says_how_it_plays(tmp_path: Path, head: str):
    agent = Agent(network(head), AgentInfo("pong", "minimal", True, {}, {}, frame_skip=3))
    save_float(tmp_path / "agent.onnx", agent)
    read, layout, _ = read_foreign(tmp_path / "agent.onnx", [6])
    assert (read.head_kind, layout.fires, layout.frame_skip) == (head, True, 3)
    with torch.inference_mode():
        torch.testing.assert_close(read(PIXELS), agent.network(PIXELS), rtol=1e-4, atol=1e-5)


def refused(path: Path, head: str = "policy", actions: Sequence[int] = (6,)) -> str:
    with pytest.raises(UserError) as raised:
        read_foreign(path, actions, head)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_its_outputs_are_is_asked(tmp_path: Path):
    assert "add teacher.head=q or" in refused(as_torch_writes(tmp_path / "agent.onnx", network()), "auto")


def test_a_node_that_is_no_layer_is_named(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    model = onnx.load(path)
    for op in ("Tanh", "Elu", "Sigmoid"):
        model.graph.node[5].op_type = op
        onnx.save(model, path)
        assert f"{op} (r2) is no layer that is read" in refused(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"pads": [1, 1, 1, 1]}, "padding"), ({"dilations": [2, 2]}, "dilation"), ({"auto_pad": "SAME_UPPER"}, "Conv")],
)
def test_other_convolutions_are_refused(tmp_path: Path, changes: dict[str, Any], named: str):
    assert named in refused(as_torch_writes(tmp_path / "agent.onnx", network(), **changes))


def test_files_that_are_not_read(tmp_path: Path):
    path = as_torch_writes(tmp_path / "agent.onnx", network())
    assert "6 values, none for each action" in refused(path, actions=(4,))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "no whole ONNX file" in refused(path)
    onnx.save(onnx.load_from_string(whole), path, save_as_external_data=True, size_threshold=0, location="beside.data")
    assert "in another file" in refused(path)
    save_int8(path, Agent(network(), AgentInfo("pong", "minimal", True, {}, {})), PIXELS.numpy(), per_channel=False)
    assert "is no layer that is read" in refused(path)
    nodes = [("Relu", ["obs"], "out", {})]
    assert "must be observations alone" in refused(write(path, nodes, {}, ["out"], (3, 84, 84), TensorProto.FLOAT))


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
    assert "ConstantOfShape (huge) is no layer that is read" in refused(path)
