"""Agents that run in ONNX Runtime, from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.support.errors import UserError

INPUT, OUTPUT = "observations", "outputs"  # of the graph
DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
# Without it int8 sums saturate at 16 bits on x86 processors with AVX2 and no VNNI; elsewhere it changes nothing.
EXACT = "session.x64quantprecision"


class OnnxPolicy:
    """An agent's ONNX file, ready to decide on one thread.

    Parameters
    ----------
    path : Path
        A file with an input ``observations`` and a float32 output ``outputs``.
    exact : bool
        Whether int8 files compute in exact integer arithmetic, so that outputs are the same on every processor; else as
        fast as ONNX Runtime's default session, which is what a user's device runs.

    Attributes
    ----------
    path : Path
        The file.
    shape : tuple of int
        Of one observation.
    dtype : {"uint8", "float32"}
        Of its numbers.
    metadata : dict of str to str
        What the file says of itself: game, actions, head and so on.

    Raises
    ------
    UserError
        If the file is missing, corrupt, or of another kind.
    """

    def __init__(self, path: Path, exact: bool = True) -> None:
        if not path.is_file():
            raise UserError(f"ONNX file {path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        options.add_session_config_entry(EXACT, str(int(exact)))
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"ONNX file {path} cannot be loaded: {reason}; export the agent again") from error
        inputs = [(one.name, one.type, list(one.shape[1:])) for one in self._session.get_inputs()]
        name, kind, sides = inputs[0] if len(inputs) == 1 else ("", "", [])
        if name != INPUT or kind not in DTYPES or len(sides) not in (1, 3) or not all(type(s) is int for s in sides):
            raise UserError(f"ONNX file {path} is no agent of this project: its inputs are {inputs}")
        self.shape: tuple[int, ...] = tuple(sides)
        self.dtype = DTYPES[kind]
        self.path = path
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def outputs(self, observations: NDArray[Any]) -> Tensor:
        """Compute Q-values or action logits.

        Parameters
        ----------
        observations : ndarray of `dtype`, shape (N, *shape)

        Returns
        -------
        Tensor of float32, shape (N, actions)
        """
        return torch.from_numpy(self.run(observations))

    def run(self, observations: NDArray[Any]) -> NDArray[np.float32]:
        """Compute the same as an array."""
        values: NDArray[np.float32] = self._session.run(None, {INPUT: observations})[0]
        return values
