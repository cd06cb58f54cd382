"""ONNX files as other frameworks write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lrp_compress.networks.graph import Network

Node = tuple[str, Sequence[str], str, dict[str, Any]]


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
        "critic.weight": np.ones((1, made.widths["fc1"]), np.float32),
        "critic.bias": np.ones(1, np.float32),
    }
    return write(path, nodes, constants, ["logits", "value", "action"])
