"""Agents that run in ONNX Runtime, from their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.support.errors import UserError

INPUT, OUTPUT = "observations", "outputs"  # of the graph
# Without it int8 sums saturate at 16 bits on x86 processors with AVX2 and no VNNI; elsewhere it changes nothing.
EXACT = "session.x64quantprecision"


class OnnxPolicy:
    """An agent's ONNX file, ready to decide on one thread.

    Parameters
    ----------
    path : Path
        A file with a uint8 input ``observations``, shape (N, 4, 84, 84), and a float32 output ``outputs``.
    exact : bool
        Whether int8 files compute in exact integer arithmetic, so that outputs are the same on every processor; else as
        fast as ONNX Runtime's default session, which is what a user's device runs.

    Attributes
    ----------
    path : Path
        The file.
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
        if inputs != [(INPUT, "tensor(uint8)", [4, 84, 84])]:
            raise UserError(f"ONNX file {path} is no agent of this project: its inputs are {inputs}")
        self.path = path
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def outputs(self, observations: NDArray[np.uint8]) -> Tensor:
        """Compute Q-values or action logits.

        Parameters
        ----------
        observations : ndarray of uint8, shape (N, 4, 84, 84)

        Returns
        -------
        Tensor of float32, shape (N, actions)
        """
        return torch.from_numpy(self.run(observations))

    def run(self, observations: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the same as an array."""
        values: NDArray[np.float32] = self._session.run(None, {INPUT: observations})[0]
        return values
