"""The layers of an int8 ONNX file, laid out as the C kernel wants them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from lrp_compress.agents.checkpoints import ROM_ID
from lrp_compress.support.errors import UserError

FORMAT = "int8 QOperator"
LARGEST = 2**26  # bytes of a file
LAYERS, SHAPES = ("QLinearConv", "QGemm"), ("Flatten", "Reshape")  # the operators that are known
BLOCK = 4  # channels that the kernel computes at a time, and bytes that it reads at a time


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or a dense layer, as ``kernels.h`` describes it.

    Attributes
    ----------
    height, width, channels : int
        Of the output, which lies channel last.
    run : int
        Bytes of a filter's row, rounded up to a multiple of 4.
    step_y, step_x : int
        Bytes of the input from one output to the next below, and to the right.
    row : ndarray of uint16, shape (rows,)
        Where in the input each row starts.
    weights : ndarray of int8, shape (blocks, rows, run / 4, 4, 4)
        The last two axes are channels and bytes.
    bias : ndarray of int32, shape (4 * blocks,)
        With the input's zero point worked in.
    scale : ndarray of float32, shape (4 * blocks,)
        Input's scale times weights' scale over output's scale, as onnxruntime computes it; the head's outputs are
        float32, of scale 1.
    zero : int
        The output's zero point; 0 for the head.
    """

    height: int
    width: int
    channels: int
    run: int
    step_y: int
    step_x: int
    row: NDArray[np.uint16]
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero: int

    @property
    def output_bytes(self) -> int:
        """Bytes of the output with the 3 that are written behind it."""
        return self.height * self.width * self.channels + BLOCK - 1


@dataclass(frozen=True)
class IntegerNetwork:
    """A network that computes in int8.

    Attributes
    ----------
    layers : list of IntegerLayer
        From the observation, uint8 (4, 84, 84), to the head, the only one whose outputs are float32.
    metadata : dict of str to str
        What the file says of the agent.
    """

    layers: list[IntegerLayer]
    metadata: dict[str, str]


def read_int8(path: Path) -> IntegerNetwork:
    """Read an int8 ONNX file.

    Parameters
    ----------
    path : Path
        In the format ``int8 QOperator``: input ``observations``, uint8 (N, 4, 84, 84), scale 1/255; convolutions and
        dense layers, of which the last gives float32.

    Returns
    -------
    IntegerNetwork

    Raises
    ------
    UserError
        If it is missing, corrupt, of another format, or has an operator that the kernel does not know.
    """
    if not path.is_file():
        raise UserError(f"ONNX file {path} does not exist")
    if path.stat().st_size > LARGEST:
        raise UserError(f"ONNX file {path} has more than {LARGEST >> 20} MiB; no network of that size fits a board")
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's decoder and onnx's checker share no kind of error
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX file {path} is not whole: {reason}; export the agent again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if metadata.get("format") != FORMAT:
        given = metadata.get("format", "of no stated format")
        raise UserError(f"ONNX file {path} is {given}; C code is made of files in {FORMAT} format")
    if missing := {"game", "head", "actions"} - metadata.keys():
        raise UserError(f"ONNX file {path} does not state its {', '.join(sorted(missing))}; export the agent again")
    if not ROM_ID.fullmatch(metadata["game"]):  # it becomes part of a comment and of a configuration
        raise UserError(f"ONNX file {path}: its game {metadata['game'][:40]!r} is not the id of a ROM")
    try:
        return _network(model.graph, metadata)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"ONNX file {path} cannot be turned into C: {error}") from error


def _network(graph: onnx.GraphProto, metadata: dict[str, str]) -> IntegerNetwork:
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            raise ValueError("its outputs are rounded to 8 bits, as in earlier versions; export the agent again")
        if node.op_type not in (*LAYERS, *SHAPES):
            raise ValueError(f"the operator {node.op_type} is not known")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        raise ValueError("its weights are in other files")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    layers: list[IntegerLayer] = []
    shape = (4, 84, 84)  # channels, height, width of the input of the next layer
    for node in graph.node:
        values = [constants.get(name) for name in node.input]
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "QLinearConv":
            layers.append(_convolution(values, attributes, shape, channel_last=bool(layers)))
            shape = (layers[-1].channels, layers[-1].height, layers[-1].width)
        elif node.op_type == "QGemm":
            layers.append(_dense(values, attributes, shape))
            shape = (layers[-1].channels, 1, 1)
            if node.output[0] == graph.output[0].name:
                return IntegerNetwork(layers, metadata)
    raise ValueError("its last layer is not dense")


def _convolution(
    values: list[Any], attributes: dict[str, Any], shape: tuple[int, int, int], channel_last: bool
) -> IntegerLayer:
    _, input_scale, input_zero, weights, weight_scale, weight_zero, scale, zero, *rest = values
    kernel, stride = weights.shape[2:], attributes.get("strides", [1, 1])
    if (
        any(attributes.get("pads", ()))
        or attributes.get("group", 1) != 1
        or set(attributes.get("dilations", [1])) != {1}
    ):
        raise ValueError("a convolution is padded, grouped or dilated")
    channels, height, width = shape
    if channel_last:
        rows, line, pixel = [y * width * channels for y in range(kernel[0])], width * channels, channels
        ordered = weights.transpose(0, 2, 3, 1).reshape(len(weights), kernel[0], -1)
    else:
        rows, line, pixel = [(c * height + y) * width for c in range(channels) for y in range(kernel[0])], width, 1
        ordered = weights.reshape(len(weights), -1, kernel[1])
    if weights.dtype != np.int8 or weights.shape[1] != channels or min(stride) < 1:
        raise ValueError(
            "a convolution's weights are not int8, have other inputs than it gets, or its stride is below 1"
        )
    size = [(extent - own) // step + 1 for extent, own, step in zip((height, width), kernel, stride, strict=True)]
    if min(size) < 1:
        raise ValueError("a convolution's kernel is larger than its input")
    bias = rest[0] if rest else np.zeros(len(weights), np.int32)
    if weight_zero.any():
        raise ValueError("weights have a zero point other than 0")
    return _laid_out(
        (size[0], size[1]), (stride[0] * line, stride[1] * pixel), rows, ordered,
        _rescaling(input_scale, weight_scale, scale, len(weights)), bias, int(input_zero), int(zero),
    )  # fmt: skip


def _dense(values: list[Any], attributes: dict[str, Any], shape: tuple[int, int, int]) -> IntegerLayer:
    _, input_scale, input_zero, weights, weight_scale, weight_zero, bias, *output = values
    scale, zero = output or (1.0, 0)
    weights = weights if attributes.get("transB", 0) else weights.T
    if weight_zero.any() or attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
        raise ValueError("a dense layer is transposed or scaled, or its weights have a zero point other than 0")
    # The file flattens channel first, the kernel's activations lie channel last.
    ordered = weights.reshape(len(weights), *shape).transpose(0, 2, 3, 1).reshape(len(weights), 1, -1)
    return _laid_out(
        (1, 1), (0, 0), [0], ordered,
        _rescaling(input_scale, weight_scale, scale, len(weights)), bias, int(input_zero), int(zero),
    )  # fmt: skip


def _rescaling(input_scale: Any, weight_scale: Any, scale: Any, channels: int) -> NDArray[np.float32]:
    factors = np.float32(input_scale) * weight_scale.astype(np.float32) / np.float32(scale)
    return np.broadcast_to(factors.reshape(-1), channels)


def _laid_out(
    size: tuple[int, int],
    steps: tuple[int, int],
    rows: list[int],
    weights: NDArray[np.int8],
    scale: NDArray[np.float32],
    bias: NDArray[np.int32],
    input_zero: int,
    zero: int,
) -> IntegerLayer:
    """Bring weights of shape (channels, rows, run) into the kernel's order, with zeros up to multiples of 4."""
    channels, count, run = weights.shape
    blocks, words = -(-channels // BLOCK), -(-run // BLOCK)
    more = blocks * BLOCK - channels
    padded = np.pad(weights, ((0, more), (0, 0), (0, words * BLOCK - run)))
    return IntegerLayer(
        *size,
        channels,
        words * BLOCK,
        *steps,
        np.array(rows, np.uint16),
        padded.reshape(blocks, BLOCK, count, words, BLOCK).transpose(0, 2, 3, 1, 4),
        np.pad(bias - input_zero * weights.sum((1, 2), dtype=np.int32), (0, more)),
        np.pad(scale, (0, more)),
        zero,
    )
