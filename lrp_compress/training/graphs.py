"""Work on a GPU without Python's part in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

Outputs = TypeVar("Outputs")
WARM_UP = 3  # calls before the recording: libraries set themselves up in the first ones, which no recording may contain


class Replayed(Generic[Outputs]):
    """A function of tensors that is recorded as a CUDA graph and replayed from then on; on a CPU it is just called.

    A step of a small network is some 200 operations, and it takes Python several times as long to issue them as the
    GPU to do them. Every call does the work of one call of the function, also while it is recorded. What a replay
    returns is written over by the next one.

    Parameters
    ----------
    function : callable
        Takes tensors on one device; what it does must depend on nothing else that changes, and must not wait for the
        GPU.
    """

    def __init__(self, function: Callable[..., Outputs]) -> None:
        self._function = function
        self._calls = 0
        self._inputs: tuple[Tensor, ...] = ()

    def __call__(self, *inputs: Tensor) -> Outputs:
        """Do it with these inputs."""
        if inputs[0].device.type != "cuda":
            return self._function(*inputs)
        if self._calls < WARM_UP:
            self._calls += 1
            return self._aside(inputs)
        if not self._inputs:
            self._record(inputs)
        if any(kept.shape != given.shape for kept, given in zip(self._inputs, inputs, strict=True)):
            return self._function(*inputs)
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._outputs

    def _aside(self, inputs: tuple[Tensor, ...]) -> Outputs:
        """Call the function on another stream, as a recording will, so that PyTorch sets itself up for that."""
        main = torch.cuda.current_stream()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            outputs = self._function(*inputs)
        main.wait_stream(stream)
        return outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(given.clone() for given in inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = self._function(*self._inputs)
