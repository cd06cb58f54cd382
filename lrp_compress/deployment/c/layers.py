"""What an integer network consists of: layers, the values between them, and what bytes stand for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrp_compress.deployment.c.int8_files import Grid

Pair = tuple[int, int]  # of rows and of columns


@dataclass(frozen=True)
class Value:
    """Bytes that layers read, the observation or what a layer computes.

    Attributes
    ----------
    name : str
        In the file, of whom computes it.
    channels, height, width : int
        Its sides; 1 and 1 of a vector.
    planar : bool
        Whether all of a channel lies together, as in a picture that is observed; else all of a place.
    flat : bool
        Whether it is a vector to the file; the bytes of a map stay where they are.
    """

    name: str
    channels: int
    height: int
    width: int
    planar: bool = False
    flat: bool = False

    @property
    def count(self) -> int:
        """Number of bytes."""
        return self.channels * self.height * self.width


@dataclass(frozen=True)
class Window:
    """A window that moves over a map."""

    kernel: Pair
    stride: Pair
    padding: Pair  # above and left
    padded: bool  # on any side


@dataclass(frozen=True)
class IntegerLayer:
    """A convolution or a dense layer, as ``kernels.h`` describes it.

    Attributes
    ----------
    height, width, channels : int
        Of the output.
    run : int
        Bytes of a filter's row, rounded up to a multiple of 4.
    behind : int
        By how many they are rounded up: bytes behind the input that are read, to no effect.
    steps : (int, int)
        Bytes of the input from one output to the next below, and to the right.
    row : ndarray of uint32, shape (rows,)
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
    window : Window or None
        Of a padded convolution.
    input_zero : int
        The input's zero point, which stands in a padding.
    """

    height: int
    width: int
    channels: int
    run: int
    behind: int
    steps: Pair
    row: NDArray[np.uint32]
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero: int
    window: Window | None
    input_zero: int

    @property
    def window_bytes(self) -> int:
        """Bytes of a copied window."""
        return len(self.row) * self.run


@dataclass(frozen=True)
class GroupedLayer:
    """A convolution in groups, as ``grouped.h`` describes it.

    Attributes
    ----------
    window : Window
    weights : ndarray of int8, shape (channels, rows, columns, inputs of a group)
    bias : ndarray of int32, shape (channels,)
    scale : ndarray of float32, shape (channels,)
        As in `IntegerLayer`.
    groups : int
        How many.
    zero, input_zero : int
        The output's and the input's zero point.
    """

    window: Window
    weights: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: NDArray[np.float32]
    groups: int
    zero: int
    input_zero: int


@dataclass(frozen=True)
class Table:
    """What each byte becomes."""

    values: NDArray[np.uint8]


@dataclass(frozen=True)
class Addition:
    """A sum of values, each dequantised, that is rounded at the end."""

    given: tuple[Grid, ...]
    grid: Grid


@dataclass(frozen=True)
class Pool:
    """The largest byte of a window; the mean, rounded, where it is known what bytes stand for."""

    window: Window
    given: Grid | None
    grid: Grid | None


@dataclass(frozen=True)
class Rounding:
    """Observations in float32, rounded to bytes."""

    grid: Grid


Layer = IntegerLayer | GroupedLayer | Table | Addition | Pool | Rounding


@dataclass(frozen=True)
class Step:
    """A layer and what it reads and writes."""

    layer: Layer
    inputs: tuple[Value, ...]
    output: Value


@dataclass(frozen=True)
class IntegerNetwork:
    """A network that computes in int8.

    Attributes
    ----------
    shape : tuple of int
        Of an observation.
    dtype : {"uint8", "float32"}
        Of its numbers.
    steps : list of Step
        From the observation to the head, the only one whose outputs are float32.
    metadata : dict of str to str
        What the file says of the agent.
    """

    shape: tuple[int, ...]
    dtype: str
    steps: list[Step]
    metadata: dict[str, str]
