"""Agents as ONNX files, which every framework writes: the way from the observations to the outputs is read.

Nothing else of the file is: a critic, a drawn action and their nodes do not matter. What was read is compared with what
ONNX Runtime computes from the same file before it is believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto
from torch import Tensor

from lrp_compress.agents.checkpoints import stated_frame_skip
from lrp_compress.agents.layouts import Layout
from lrp_compress.agents.outputs import check_same, check_shape, policy_of, settled_head
from lrp_compress.networks.graph import Network
from lrp_compress.networks.onnx_reading import READERS, SHAPE_OPS, read_graph
from lrp_compress.networks.spaces import Spaces
from lrp_compress.support.errors import UserError
from lrp_compress.support.protobuf import check_parts

DTYPES: Mapping[int, Any] = {TensorProto.UINT8: np.uint8, TensorProto.FLOAT: np.float32}
DOMAINS = ("", "ai.onnx")
HEAD = "head"  # in the metadata of this project's own files


def is_onnx(content: bytes) -> bool:
    """Tell by its first bytes whether a file may be ONNX: the version of the format, then the next field."""
    return content[:1] == b"\x08" and content[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x2a", b"\x32", b"\x3a", b"\x42")


def read_onnx(content: bytes, head: str, spaces: Spaces, source: str) -> tuple[Network, Layout]:
    """Read the network that an ONNX file computes.

    Parameters
    ----------
    content : bytes
        The file, its weights in it. Its input is a batch of observations: pictures, uint8 or float32 in [0, 255], with
        their channels first or last, or vectors of float32.
    head : {"auto", "q", "policy"}
        What the outputs are. Only files of this project say so themselves.
    spaces : Spaces
        What the environment gives and takes; of several outputs the one as wide as an action set is the policy's.
    source : str
        What errors call the agent.

    Returns
    -------
    network : Network
        In evaluation mode, compared with ONNX Runtime on random observations.
    layout : Layout
        How the agent plays, if the file is of this project.

    Raises
    ------
    UserError
        If the file is damaged, no output or more than one may be the policy's, or a node on the way is no layer.
    """
    model = _parsed(content, source)
    stated = {entry.key: entry.value for entry in model.metadata_props}
    head = settled_head(head, stated.get(HEAD), source)
    given = _given(model.graph, source)
    shape = _shape(given)[1:]
    check_shape(shape, spaces.observations, source)
    last = shape != spaces.observations.shape
    outputs = read_graph(model.graph, given.name, spaces.observations, last)
    name, network = policy_of(outputs, head, spaces, source)
    session = _session(model, given.name, name, source)
    kind = DTYPES[given.type.tensor_type.elem_type]

    def original(pictures: Tensor) -> Tensor:
        fed = np.ascontiguousarray(pictures.permute(0, 2, 3, 1) if last else pictures, dtype=kind)
        try:
            (computed,) = session.run([name], {given.name: fed})
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise _not_run(source, error) from error
        return torch.from_numpy(computed)

    check_same(network, original, source, _shape(given)[0] or 4)
    fires, frame_skip = stated.get("fire_on_life_loss") == "true", stated_frame_skip(stated, source)
    return network, Layout("ONNX", head, (), fires=fires, frame_skip=frame_skip)


def _parsed(content: bytes, source: str) -> onnx.ModelProto:
    try:
        check_parts(content, onnx.ModelProto.DESCRIPTOR)
        model = onnx.load_model_from_string(content)
        theirs = [f"{node.op_type} of {node.domain}" for node in model.graph.node if node.domain not in DOMAINS]
        if theirs := theirs or [f"a function {function.name}" for function in model.functions]:
            raise UserError(f"{source} is not read: it computes {theirs[0][:160]}, which is no layer here")
        if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
            raise UserError(f"{source} keeps its weights in another file; save them in the same")
        onnx.checker.check_model(content)  # given the model, it would write it out first
    except UserError:
        raise
    except Exception as error:  # of protobuf and of the checker, which share no base class
        raise UserError(f"{source} is no whole ONNX file ({' '.join(str(error).split())[:200]})") from error
    return model


def _given(graph: onnx.GraphProto, source: str) -> onnx.ValueInfoProto:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in DTYPES:
        told = ", ".join(f"{value.name} of shape {_shape(value)} and type {_dtype(value)}" for value in inputs)
        raise UserError(f"{source} takes {told[:200] or 'nothing'}; it must be observations alone, uint8 or float32")
    given: onnx.ValueInfoProto = inputs[0]
    return given


def _dtype(value: onnx.ValueInfoProto) -> str:
    return str(TensorProto.DataType.Name(value.type.tensor_type.elem_type)).lower()


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Shape with the batch; 0 is a side that is not fixed."""
    return tuple(max(side.dim_value, 0) for side in value.type.tensor_type.shape.dim) or (0,)


def _session(model: onnx.ModelProto, start: str, end: str, source: str) -> onnxruntime.InferenceSession:
    """Cut the way from the observations to an output out of a model, and refuse to run what else is on it."""
    part = onnx.utils.Extractor(model).extract_model([start], [end])
    if odd := next((node for node in part.graph.node if node.op_type not in READERS.keys() | SHAPE_OPS), None):
        raise UserError(f"{source} is not read: {odd.op_type} ({(odd.name or odd.output[0])[:80]}) is no layer here")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise _not_run(source, error) from error


def _not_run(source: str, error: Exception) -> UserError:
    return UserError(f"{source} is not run by ONNX Runtime: {' '.join(str(error).split())[:200]}")
