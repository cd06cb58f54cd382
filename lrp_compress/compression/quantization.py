"""Int8: which of the ways to quantise an agent is nearest to it, and distillation that prepares the agent for it.

Quantisation-aware distillation runs the student as its int8 file will run: weights and activations are rounded to the
grid in the forward pass, and the gradient passes the rounding unchanged (Jacob et al. 2018, section 3). The teacher is
the original agent, as in every other distillation.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.equalization import equalize
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import Deviation, deviation
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import fold_dueling
from lrp_compress.support.files import atomic_path

WAYS = ("per_channel", "per_tensor", "equalized")
RANGE_MEMORY = 0.99  # share of a range that stays after a batch (Jacob et al. 2018, section 3.1)


@dataclass(frozen=True)
class Quantization:
    """What static quantisation chose.

    Attributes
    ----------
    way : {"per_channel", "per_tensor", "equalized"}
        A scale for every output channel of a layer's weights, one for the layer, or the former after `equalize`: the
        one with the smallest error.
    deviations : dict of str to Deviation
        Of all three, on held-out states, in exact integer arithmetic.
    default_session_differs : float
        Share of the held-out states in which ONNX Runtime's default session gives other outputs for the kept file: 0
        but for x86 processors without VNNI, where it saturates.
    """

    way: str
    deviations: dict[str, Deviation]
    default_session_differs: float

    @property
    def chosen(self) -> Deviation:
        """The deviation of the file that was kept."""
        return self.deviations[self.way]

    @property
    def per_channel(self) -> bool:
        """Whether every output channel has a scale."""
        return self.way != "per_tensor"


def quantize_static(
    path: Path, agent: Agent, calibration: NDArray[np.uint8], held_out: NDArray[np.uint8]
) -> Quantization:
    """Quantise an agent in three ways, and keep the file that is nearest to it.

    Parameters
    ----------
    path : Path
        For the int8 file with integer operators.
    agent : Agent
        Left untouched.
    calibration, held_out : ndarray of uint8, shape (N, 4, 84, 84)
        States of the agent's own play: for the ranges of the activations, and for the comparison.

    Returns
    -------
    Quantization
    """
    reference = batched_outputs(agent.network, torch.from_numpy(held_out))
    outputs, deviations = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            candidate = Path(folder) / f"{way}.onnx"
            save_int8(candidate, prepared(agent, way, calibration), calibration, per_channel=way != "per_tensor")
            outputs[way] = OnnxPolicy(candidate).outputs(held_out)
            deviations[way] = deviation(outputs[way], reference)
        best = min(deviations, key=lambda way: deviations[way].error)
        with atomic_path(path) as temporary:
            copyfile(Path(folder) / f"{best}.onnx", temporary)
    differs = (OnnxPolicy(path, exact=False).outputs(held_out) != outputs[best]).any(1)
    return Quantization(best, deviations, float(differs.float().mean()))


def prepared(agent: Agent, way: str, calibration: NDArray[np.uint8]) -> Agent:
    """Give the agent, with the same outputs, that one of the ways quantises."""
    if way != "equalized":
        return agent
    return Agent(equalize(agent.network, torch.from_numpy(calibration)), agent.info)


def quantization_aware(network: Network) -> Network:
    """Copy a network into one that computes as if it were int8, and learns all the same.

    Parameters
    ----------
    network : Network
        Left untouched.

    Returns
    -------
    Network
        Without a dueling head. Weights are rounded per channel; activations to the ranges seen in training mode; the
        outputs are not rounded.
    """
    aware = copy.deepcopy(fold_dueling(network))
    for name in aware.widths:
        setattr(aware, f"{name}_relu", _QuantizedReLU())
    for name in (*aware.widths, "head"):
        parametrize.register_parametrization(getattr(aware, name), "weight", _QuantizedWeight())
    return aware


def full_precision(aware: Network) -> Network:
    """Give the float32 network behind one of `quantization_aware`."""
    network = aware.resized(aware.widths)
    state = {name.replace("parametrizations.weight.original", "weight"): v for name, v in aware.state_dict().items()}
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network.eval()


class _QuantizedWeight(nn.Module):
    """Rounds a weight to int8, symmetric about 0, with a scale per output channel."""

    def forward(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().flatten(1).amax(1)
        scale = (largest / 127).clamp_min(1e-12)
        zero = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight.contiguous(), scale, zero, 0, -127, 127)


class _QuantizedRange(nn.Module):
    """Rounds activations to uint8 between a low and a high value that follow what is seen in training mode."""

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        values = values.float()
        if self.training:
            self._follow("low", values.detach().amin().clamp_max(0))
            self._follow("high", values.detach().amax().clamp_min(0))
        scale = ((self.high - self.low) / 255).clamp_min(1e-12)
        zero = (-self.low / scale).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)

    def _follow(self, name: str, seen: Tensor) -> None:
        known: Tensor = getattr(self, name)
        known.copy_(torch.where(known == 0, seen, RANGE_MEMORY * known + (1 - RANGE_MEMORY) * seen))


class _QuantizedReLU(nn.ReLU):
    def __init__(self) -> None:
        super().__init__()
        self.range = _QuantizedRange()

    def forward(self, features: Tensor) -> Tensor:
        rounded: Tensor = self.range(super().forward(features))
        return rounded
