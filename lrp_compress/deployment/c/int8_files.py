"""What an int8 ONNX file computes: one list of operations, whichever of the two formats it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from lrp_compress.agents.checkpoints import ROM_ID
from lrp_compress.deployment.files.onnx_models import QDQ, QOPERATOR
from lrp_compress.deployment.files.onnx_sessions import INPUT, OUTPUT
from lrp_compress.support.errors import UserError
from lrp_compress.support.protobuf import check_parts

LARGEST = 2**25  # bytes of a file
FLOATS = ("Conv", "Gemm", "LeakyRelu", "Elu", "Tanh", "Sigmoid", "Sum", "MaxPool", "AveragePool", "Reshape")
DIRECT = ("MaxPool", "Reshape", "Flatten")  # of bytes as well
# Of integer operators: which inputs are the scale and zero point of what goes in, of the weights and of what comes out.
INTEGERS = {
    "QLinearConv": ("Conv", 1, 4, 6),
    "QGemm": ("Gemm", 1, 4, 7),
    "QLinearLeakyRelu": ("LeakyRelu", 1, None, 3),
    "QLinearSigmoid": ("Sigmoid", 1, None, 3),
}
DTYPES = {onnx.TensorProto.UINT8: "uint8", onnx.TensorProto.FLOAT: "float32"}


@dataclass(frozen=True)
class Grid:
    """What bytes stand for: a byte b is ``scale * (b - zero)``."""

    scale: np.float32
    zero: int


@dataclass(frozen=True)
class Weights:
    """Weights of a convolution, (channels, inputs, rows, columns), or a dense layer, (units, inputs); 0 stands for 0.

    Attributes
    ----------
    values : ndarray of int8
        The weights.
    scale : ndarray of float32
        One, or one for each channel.
    bias : ndarray of int32, shape (channels,)
        In units of the input's scale times `scale`.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]


@dataclass(frozen=True)
class Operation:
    """One step of the computation.

    Attributes
    ----------
    op : str
        ONNX's name of what is computed, were it in floats; ``QuantizeLinear`` for observations that are.
    inputs : tuple of str
        Names of the values that it reads.
    grids : tuple of Grid
        What the bytes of each input stand for; none where they are only moved.
    output : str
        Name of the value.
    grid : Grid or None
        What the bytes of the output stand for; None where they are only moved, and for the head's floats.
    attributes : dict
        Of the ONNX operator.
    weights : Weights or None
        Of a convolution or a dense layer.
    """

    op: str
    inputs: tuple[str, ...]
    grids: tuple[Grid, ...]
    output: str
    grid: Grid | None
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: Weights | None = None


@dataclass(frozen=True)
class Int8File:
    """An int8 ONNX file.

    Attributes
    ----------
    shape : tuple of int
        Of an observation.
    dtype : {"uint8", "float32"}
        Of its numbers.
    operations : list of Operation
        In the order of computation; the last is the head, the only one whose outputs are float32.
    metadata : dict of str to str
        What the file says of the agent.
    """

    shape: tuple[int, ...]
    dtype: str
    operations: list[Operation]
    metadata: dict[str, str]


def open_int8(path: Path) -> Int8File:
    """Read an int8 ONNX file as `lrp_compress.deployment.files.onnx_models.save_int8` writes it.

    Raises
    ------
    UserError
        If it is missing, corrupt or of another format.
    ValueError
        If it has an operator that is not known, or one that is put together otherwise.
    """
    if not path.is_file():
        raise UserError(f"ONNX file {path} does not exist")
    if path.stat().st_size > LARGEST:
        raise UserError(f"ONNX file {path} has more than {LARGEST >> 20} MiB; no network of that size fits a board")
    try:
        content = path.read_bytes()
        check_parts(content, onnx.ModelProto.DESCRIPTOR)
        model = onnx.load_model_from_string(content)
        onnx.checker.check_model(content)
    except Exception as error:  # protobuf's decoder and onnx's checker share no kind of error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX file {path} is not whole: {reason}; export the agent again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("format") not in (QOPERATOR, QDQ):
        given = metadata.get("format", "of no stated format")
        raise UserError(f"ONNX file {path} is {given}; C code is made of files in {QOPERATOR} or {QDQ} format")
    if missing := {"game", "head", "actions"} - metadata.keys():
        raise UserError(f"ONNX file {path} does not state its {', '.join(sorted(missing))}; export the agent again")
    if not ROM_ID.fullmatch(metadata["game"]):  # it becomes part of a comment and of a configuration
        raise UserError(f"ONNX file {path}: its game {metadata['game'][:40]!r} is not the id of a ROM")
    if len(model.graph.input) != 1 or model.graph.input[0].name != INPUT:
        raise UserError(f"ONNX file {path} has other inputs than {INPUT}")
    tensor = model.graph.input[0].type.tensor_type
    shape = tuple(int(side.dim_value) for side in tensor.shape.dim[1:])
    if tensor.elem_type not in DTYPES or len(shape) not in (1, 3) or min(shape) < 1:
        raise UserError(f"ONNX file {path} takes observations that are neither pictures nor vectors")
    return Int8File(shape, DTYPES[tensor.elem_type], _Reader(model.graph).operations(), metadata)


class _Reader:
    """Reads operators one after the other.

    In the QDQ format bytes are dequantised, computed with in floats, and quantised: an operation is known in whole when
    its QuantizeLinear is met.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
            raise ValueError("its weights are in other files")
        self._nodes = graph.node
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._dequantised: dict[str, tuple[str, Grid]] = {}  # floats that are bytes' values
        self._weights: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # and those of constants, with their scale
        self._pending: dict[str, onnx.NodeProto] = {}  # float operators by their output

    def operations(self) -> list[Operation]:
        found: list[Operation] = []
        for node in self._nodes:
            if (operation := self._read(node)) is not None:
                found.append(operation)
                if operation.output == OUTPUT and operation.op == "Gemm":
                    return found
        raise ValueError("its last layer is not dense")

    def _read(self, node: onnx.NodeProto) -> Operation | None:
        read, output = node.input[0] if node.input else "", node.output[0]
        if node.op_type == "DequantizeLinear":
            if output == OUTPUT:
                raise ValueError("its outputs are rounded to 8 bits, as in earlier versions; export the agent again")
            if read in self._constants:
                self._weights[output] = self._constant(node, 0)
            else:
                self._dequantised[output] = read, self._grid(node, 1)
            return None
        if node.op_type == "QuantizeLinear":
            grid = self._grid(node, 1)
            if read == INPUT:
                return Operation(node.op_type, (INPUT,), (), output, grid)
            return self._in_floats(self._pending[read], output, grid)
        if node.op_type in INTEGERS:
            return self._in_integers(node)
        if node.op_type in FLOATS and read in self._dequantised:
            self._pending[output] = node
            return self._in_floats(node, output, None) if output == OUTPUT else None
        if node.op_type in DIRECT:
            return Operation(node.op_type, (read,), (), output, None, _attributes(node))
        raise ValueError(f"the operator {node.op_type} is not known")

    def _in_floats(self, node: onnx.NodeProto, output: str, grid: Grid | None) -> Operation:
        weights, names = None, list(node.input)
        if node.op_type in ("Conv", "Gemm"):
            names = names[:1]
            values, scale = self._weights[node.input[1]]
            bias = self._weights[node.input[2]][0] if len(node.input) > 2 else None
            weights = _weights(node, values, scale, bias)
        elif node.op_type == "Reshape":
            names = names[:1]
        read = [self._dequantised[name] for name in names]
        inputs, grids = tuple(name for name, _ in read), tuple(own for _, own in read)
        if node.op_type in DIRECT:
            if grids != (grid,):
                raise ValueError(f"a {node.op_type} changes what bytes stand for")
            grids, grid = (), None
        return Operation(node.op_type, inputs, grids, output, grid, _attributes(node), weights)

    def _in_integers(self, node: onnx.NodeProto) -> Operation:
        op, before, middle, after = INTEGERS[node.op_type]
        weights = None
        if middle is not None:
            last = 8 if op == "Conv" else 6
            bias = self._constants[node.input[last]] if len(node.input) > last else None
            weights = _weights(node, *self._constant(node, middle - 1), bias)
        grid = self._grid(node, after) if len(node.input) > after else None
        given = (self._grid(node, before),)
        return Operation(op, (node.input[0],), given, node.output[0], grid, _attributes(node), weights)

    def _constant(self, node: onnx.NodeProto, at: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Find constants whose scale and zero point, which has to be 0, are the inputs behind them."""
        values, scale, zero = (self._constants[name] for name in node.input[at : at + 3])
        if zero.any():
            raise ValueError("weights have a zero point other than 0")
        return values, scale

    def _grid(self, node: onnx.NodeProto, at: int) -> Grid:
        scale, zero = (self._constants[name] for name in node.input[at : at + 2])
        if zero.dtype != np.uint8 or scale.dtype != np.float32 or not (scale.item() > 0 and np.isfinite(scale)):
            raise ValueError("values are not rounded to uint8, or their scale is not above 0")
        return Grid(np.float32(scale.item()), int(zero.item()))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def _weights(node: onnx.NodeProto, values: NDArray[Any], scale: NDArray[Any], bias: NDArray[Any] | None) -> Weights:
    attributes: Mapping[str, Any] = _attributes(node)
    if node.op_type in ("Gemm", "QGemm"):
        if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            raise ValueError("a dense layer is transposed or scaled")
        values = values if attributes.get("transB", 0) else values.T
    if bias is None:
        bias = np.zeros(len(values), np.int32)
    if values.dtype != np.int8 or bias.dtype != np.int32 or bias.shape != values.shape[:1]:
        raise ValueError("weights are not int8, or biases not int32, one for each channel")
    return Weights(values, scale.astype(np.float32), bias)
