"""The layers of an int8 ONNX file, laid out as the C kernels want them.

Each computes what ONNX Runtime computes, bit for bit, on every processor: exact integer sums, and between them IEEE
float32 in ONNX Runtime's order of operations. Activations that are curved, or that read a byte, are tables of what ONNX
Runtime makes of each byte here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lrp_compress.deployment.c.int8_files import Grid, Operation, open_int8
from lrp_compress.deployment.c.layers import (
    Addition,
    GroupedLayer,
    IntegerLayer,
    IntegerNetwork,
    Layer,
    Pair,
    Pool,
    Rounding,
    Step,
    Table,
    Value,
    Window,
)
from lrp_compress.deployment.files.onnx_models import IR_VERSION, OPSET
from lrp_compress.deployment.files.onnx_sessions import INPUT
from lrp_compress.support.errors import UserError

BLOCK = 4  # channels that the kernel computes at a time, and bytes that it reads at a time


def read_int8(path: Path) -> IntegerNetwork:
    """Read an int8 ONNX file.

    Parameters
    ----------
    path : Path
        As `lrp_compress.deployment.files.onnx_models.save_int8` writes it, in either format.

    Returns
    -------
    IntegerNetwork

    Raises
    ------
    UserError
        If it is missing, corrupt, of another format, or has an operator that the kernels do not know.
    """
    try:
        file = open_int8(path)
        return IntegerNetwork(file.shape, file.dtype, list(_steps(file.shape, file.operations)), file.metadata)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"ONNX file {path} cannot be turned into C: {error}") from error


def _steps(shape: tuple[int, ...], operations: list[Operation]) -> Iterator[Step]:
    channels, height, width = shape if len(shape) == 3 else (shape[0], 1, 1)
    values = {INPUT: Value(INPUT, channels, height, width, planar=len(shape) == 3, flat=len(shape) == 1)}
    for operation in operations:
        inputs = tuple(values[name] for name in operation.inputs)
        if inputs[0].planar and operation.op not in ("Conv", "QuantizeLinear"):
            raise ValueError("pictures are read by what is no convolution")
        if operation.op in ("Reshape", "Flatten"):
            values[operation.output] = dataclasses.replace(inputs[0], flat=True)
            continue
        layer, output = _layer(operation, inputs)
        values[operation.output] = output
        yield Step(layer, inputs, output)


def _layer(operation: Operation, inputs: tuple[Value, ...]) -> tuple[Layer, Value]:
    """Lay out what an operation computes."""
    given, grid = inputs[0], operation.grid
    same = dataclasses.replace(given, name=operation.output)
    if operation.op == "Conv":
        return _convolution(operation, given)
    if operation.op == "Gemm":
        return _dense(operation, given)
    if operation.op in ("MaxPool", "AveragePool"):
        return _pool(operation, given)
    if grid is None:
        raise ValueError(f"a {operation.op} gives no bytes")
    if operation.op == "QuantizeLinear":
        return Rounding(grid), same
    if operation.op == "Sum":
        if len({(one.channels, one.height * one.width) for one in inputs}) > 1:
            raise ValueError("what is added differs in its sides")
        return Addition(operation.grids, grid), same
    return Table(_table(operation.op, operation.attributes, operation.grids[0], grid)), same


def _table(op: str, attributes: dict[str, Any], given: Grid, grid: Grid) -> NDArray[np.uint8]:
    """Let ONNX Runtime compute what an activation makes of each byte."""
    constants = {"given": given.scale, "given_zero": np.uint8(given.zero)}
    constants |= {"grid": grid.scale, "grid_zero": np.uint8(grid.zero)}
    slope: dict[str, Any] = {"alpha": float(attributes["alpha"])} if "alpha" in attributes else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["bytes", "given", "given_zero"], ["floats"]),
        helper.make_node(op, ["floats"], ["curved"], **slope),
        helper.make_node("QuantizeLinear", ["curved", "grid", "grid_zero"], ["table"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.UINT8, [256]) for name in ("bytes", "table")]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "table", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    table: NDArray[np.uint8] = session.run(None, {"bytes": np.arange(256, dtype=np.uint8)})[0]
    return table


def _moving(attributes: dict[str, Any], kernel: tuple[int, ...], given: Value) -> tuple[Window, Pair]:
    """Say how a window moves over a map, and how often it fits below and beside itself."""
    stride, pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
    odd = attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or attributes.get("ceil_mode", 0)
    if odd or set(attributes.get("dilations", [1])) != {1} or given.flat:
        raise ValueError("a window is dilated or padded in a way that is not known, or on no map")
    if min(stride) < 1 or not all(0 <= pad < side for pad, side in zip(pads, [*kernel] * 2, strict=True)):
        raise ValueError("a window's stride is below 1, or its padding no smaller than itself")
    height, width = (
        (side + pads[axis] + pads[axis + 2] - kernel[axis]) // stride[axis] + 1
        for axis, side in enumerate((given.height, given.width))
    )
    if min(height, width) < 1:
        raise ValueError("a window is larger than its input")
    return Window((kernel[0], kernel[1]), (stride[0], stride[1]), (pads[0], pads[1]), any(pads)), (height, width)


def _convolution(operation: Operation, given: Value) -> tuple[IntegerLayer | GroupedLayer, Value]:
    assert operation.weights is not None
    weights, groups = operation.weights.values, operation.attributes.get("group", 1)
    window, size = _moving(operation.attributes, weights.shape[2:], given)
    if weights.ndim != 4 or weights.shape[1] * groups != given.channels or operation.grid is None:
        raise ValueError("a convolution has other inputs than it gets, or gives floats")
    if groups > 1:
        return _grouped(operation, window, groups), Value(operation.output, len(weights), *size)
    channels, height, width = given.channels, given.height, given.width
    if given.planar:
        rows = [(c * height + y) * width for c in range(channels) for y in range(window.kernel[0])]
        line, pixel = width, 1
        ordered = weights.reshape(len(weights), -1, window.kernel[1])
    else:
        rows = [y * width * channels for y in range(window.kernel[0])]
        line, pixel = width * channels, channels
        ordered = weights.transpose(0, 2, 3, 1).reshape(len(weights), window.kernel[0], -1)
    steps = (window.stride[0] * line, window.stride[1] * pixel)
    output = Value(operation.output, len(weights), *size)
    return _laid_out(operation, output, steps, rows, ordered, window if window.padded else None), output


def _grouped(operation: Operation, window: Window, groups: int) -> GroupedLayer:
    assert operation.weights is not None
    assert operation.grid is not None
    (given,), grid, weights = operation.grids, operation.grid, operation.weights
    if len(weights.values) % groups:
        raise ValueError("a convolution's groups have no one size")
    ordered = np.ascontiguousarray(weights.values.transpose(0, 2, 3, 1))
    return GroupedLayer(window, ordered, weights.bias, _scales(operation, given, grid), groups, grid.zero, given.zero)


def _scales(operation: Operation, given: Grid, grid: Grid) -> NDArray[np.float32]:
    """Compute what each channel's sums are multiplied by, as onnxruntime does."""
    assert operation.weights is not None
    scale = (given.scale * operation.weights.scale / grid.scale).reshape(-1)
    return np.broadcast_to(scale, len(operation.weights.values))


def _dense(operation: Operation, given: Value) -> tuple[IntegerLayer, Value]:
    assert operation.weights is not None
    weights = operation.weights.values
    if not given.flat or weights.ndim != 2 or weights.shape[1] != given.count:
        raise ValueError("a dense layer has other inputs than it gets")
    # The file flattens channel first, the kernel's activations lie channel last.
    ordered = weights.reshape(-1, given.channels, given.height * given.width).transpose(0, 2, 1)
    output = Value(operation.output, len(weights), 1, 1, flat=True)
    return _laid_out(operation, output, (0, 0), [0], ordered.reshape(len(weights), 1, -1), None), output


def _pool(operation: Operation, given: Value) -> tuple[Pool, Value]:
    window, size = _moving(operation.attributes, tuple(operation.attributes["kernel_shape"]), given)
    mean = operation.op == "AveragePool"
    if mean and (window.padded or operation.grid is None):
        raise ValueError("a mean is padded, or gives floats")
    pool = Pool(window, operation.grids[0] if mean else None, operation.grid if mean else None)
    return pool, Value(operation.output, given.channels, *size)


def _laid_out(
    operation: Operation,
    output: Value,
    steps: Pair,
    rows: list[int],
    ordered: NDArray[np.int8],
    window: Window | None,
) -> IntegerLayer:
    """Bring weights of shape (channels, rows, run) into the kernel's order, with zeros up to multiples of 4."""
    assert operation.weights is not None
    (given,) = operation.grids
    grid = operation.grid or Grid(np.float32(1), 0)
    channels, count, run = ordered.shape
    blocks, words = -(-channels // BLOCK), -(-run // BLOCK)
    more = blocks * BLOCK - channels
    padded = np.pad(ordered, ((0, more), (0, 0), (0, words * BLOCK - run)))
    scale = _scales(operation, given, grid)
    bias = operation.weights.bias - given.zero * ordered.sum((1, 2), dtype=np.int32)
    return IntegerLayer(
        output.height,
        output.width,
        channels,
        words * BLOCK,
        words * BLOCK - run,
        steps,
        np.array(rows, np.uint32),
        padded.reshape(blocks, BLOCK, count, words, BLOCK).transpose(0, 2, 3, 1, 4),
        np.pad(bias, (0, more)),
        np.pad(scale, (0, more)),
        grid.zero,
        window,
        given.zero,
    )
