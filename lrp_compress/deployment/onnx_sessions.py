"""Agents in onnxruntime: the only file that imports it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.errors import UserError


class OnnxPolicy:
    """A network of an ONNX file, computed by onnxruntime on one thread.

    Parameters
    ----------
    path : Path
        A file with the input ``observations``, uint8 (N, 4, 84, 84), and the output ``outputs``, float32 (N, actions).

    Attributes
    ----------
    metadata : dict of str to str
        What the file says of the agent: ``game``, ``actions``, ``head``, ``format``, ``lineage``.

    Raises
    ------
    UserError
        If the file is missing, or no network that onnxruntime can load.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"agent file {path} does not exist")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own kinds are not public
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"agent file {path} is no ONNX network that can be loaded: {reason}") from error
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def outputs(self, observations: NDArray[np.uint8]) -> Tensor:
        """Compute the outputs, float32 (N, actions), of observations, uint8 (N, 4, 84, 84)."""
        (outputs,) = self._session.run(["outputs"], {"observations": observations})
        return torch.from_numpy(outputs)
