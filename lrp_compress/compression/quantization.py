"""Int8: which of the ways to quantise an agent is nearest to it, and distillation that prepares the agent for it.

Quantisation-aware distillation runs the student as its int8 file will run: weights and activations are rounded to the
grid in the forward pass, and the gradient passes the rounding unchanged (Jacob et al. 2018, section 3). The teacher is
the original agent, as in every other distillation.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import parametrize

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.compensation import compensated_rounding
from lrp_compress.compression.equalization import equalize
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import Deviation, deviation
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import HEAD, Layer, Network
from lrp_compress.networks.ops import ACTIVATIONS
from lrp_compress.networks.rounding import RoundedWeight
from lrp_compress.support.files import atomic_path

WAYS = ("per_channel", "per_tensor", "equalized")


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
    """Give the agent, of float32 with weights on the grid of int8, that one of the ways quantises."""
    observations, network = torch.from_numpy(calibration), agent.network
    if way == "equalized":
        network = equalize(network, observations)
    return Agent(compensated_rounding(network, observations, per_channel=way != "per_tensor"), agent.info)


def quantization_aware(network: Network) -> Network:
    """Copy a network into one that computes as if it were int8, and learns all the same.

    Parameters
    ----------
    network : Network
        Left untouched.

    Returns
    -------
    Network
        Weights are rounded per channel; values, to the ranges seen in training mode, wherever the int8 file rounds
        them; the outputs are not rounded.
    """
    layers: list[Layer] = []
    now: dict[str, str] = {}  # by layer the one that gives its value, rounded
    for layer in network.layers:
        layers.append(replace(layer, inputs=tuple(now.get(name, name) for name in layer.inputs)))
        if _rounds(network, layer):
            now[layer.name] = f"{layer.name}_rounded"
            layers.append(Layer(now[layer.name], "round", (layer.name,)))
    aware = Network(layers, network.observations, network.decision)
    aware.load_state_dict(network.state_dict(), strict=False)  # ranges are still to be seen
    for name in aware.weighted:
        parametrize.register_parametrization(aware.get_submodule(name), "weight", RoundedWeight())
    return aware.to(network.device)


def full_precision(aware: Network) -> Network:
    """Give the float32 network behind one of `quantization_aware`."""
    rounded = {layer.name: layer.inputs[0] for layer in aware.layers if layer.op == "round"}
    layers = [
        replace(layer, inputs=tuple(rounded.get(name, name) for name in layer.inputs))
        for layer in aware.layers
        if layer.name not in rounded
    ]
    plain = Network(layers, aware.observations, aware.decision)
    state = {name.replace("parametrizations.weight.original", "weight"): v for name, v in aware.state_dict().items()}
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain.eval()


def _rounds(network: Network, layer: Layer) -> bool:
    """Tell whether a value is rounded: not what an activation follows at once, and not what has a grid already."""
    if layer.op in ("max_pool", "flatten") or layer.name == HEAD:
        return False
    readers = network.readers(layer.name)
    return len(readers) != 1 or network.layer(readers[0]).op not in ACTIVATIONS
