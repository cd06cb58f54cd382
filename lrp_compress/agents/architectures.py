"""The networks whose tensors other libraries keep, made from these by the names that they have here.

Sources: Mnih et al. 2015 (Nature CNN); Espeholt et al. 2018, "IMPALA" (Figure 3, right), as it is in CleanRL's
``ppo_procgen.py`` and ``qdagger_dqn_atari_impalacnn.py``; the policies for vectors of Stable-Baselines3 and CleanRL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_compress.networks import values
from lrp_compress.networks.building import build, network_of
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_CONVOLUTIONS, STREAMS, fold_dueling, nature_cnn
from lrp_compress.networks.spaces import Observations
from lrp_compress.networks.values import Unread, Value

State = Mapping[str, Tensor]
SEQUENCES, BLOCKS = 3, 2  # of an IMPALA network, and residual blocks in each


@dataclass(frozen=True)
class Architecture:
    """A kind of network.

    Attributes
    ----------
    name : str
        As errors call it.
    convolutions : int
        How many there are, ``conv1 conv2 ...``; dense layers follow, ``fc1 fc2 ...``, and the ``head``.
    activation : str
        Class of what follows the dense layers, by its name in PyTorch.
    extractor : str
        Class of Stable-Baselines3 that makes what comes before the dense layers.
    make : callable
        Makes the network from its tensors, the kind of its head and the environment's observations; ValueError or
        Unread if they are none of its.
    """

    name: str
    convolutions: int
    activation: str
    extractor: str
    make: Callable[[State, str, Observations], Network]

    def names(self, layers: int, dueling: bool) -> list[str]:
        """Name the layers in the order of computation, of a dueling head the value stream first."""
        convolutions = [f"conv{number}" for number in range(1, self.convolutions + 1)]
        hidden = layers - self.convolutions - 1
        if dueling:
            return [*convolutions, *(f"{stream}{name}" for stream in STREAMS for name in ("fc1", "head"))]
        return [*convolutions, *(f"fc{number}" for number in range(1, hidden + 1)), "head"]


def _nature(state: State, head: str, observations: Observations) -> Network:
    _check_frames(state, observations)
    if head == "dueling":
        state, head = fold_dueling(state), "q"
    widths = {key.removesuffix(".weight"): len(tensor) for key, tensor in state.items() if key.endswith("weight")}
    actions = widths.pop("head")
    return build(lambda: nature_cnn(widths, head, actions, observations=observations), state)


def _impala(state: State, head: str, observations: Observations) -> Network:
    _check_frames(state, observations)
    number = 0

    def conv(value: Value) -> Value:
        nonlocal number
        number += 1
        weight = state[f"conv{number}.weight"]
        if weight.shape[2:] != (3, 3):  # their padding is not in the file
            raise Unread(f"conv{number} has the shape {tuple(weight.shape)}, which is no 3x3 convolution's")
        return values.conv(value, weight, state[f"conv{number}.bias"], padding=(1, 1))

    value = values.affine(values.given(observations), torch.tensor(1 / observations.unit), None)
    for _ in range(SEQUENCES):
        value = values.pooled("max_pool", conv(value), (3, 3), (2, 2), (1, 1))
        for _ in range(BLOCKS):
            inner = conv(values.activated("relu", value))
            value = values.added([conv(values.activated("relu", inner)), value])
    return _dense(state, values.activated("relu", values.flattened(value)), head, observations, "relu")


def _mlp(activation: str) -> Callable[[State, str, Observations], Network]:
    def make(state: State, head: str, observations: Observations) -> Network:
        first = next(iter(state.values()))
        if first.dim() != 2:
            raise Unread(f"a first layer with a weight of {tuple(first.shape)}")
        if observations.shape != first.shape[1:]:
            raise ValueError(f"it takes {first.shape[1]} numbers, but the game's observations are {observations.shape}")
        return _dense(state, values.given(observations), head, observations, activation)

    return make


def _dense(state: State, value: Value, head: str, observations: Observations, activation: str) -> Network:
    for number in range(1, 1 + sum(key.startswith("fc") and key.endswith(".weight") for key in state)):
        value = values.dense(value, state[f"fc{number}.weight"], state[f"fc{number}.bias"])
        value = values.activated(activation, value)
    return network_of(values.dense(value, state["head.weight"], state["head.bias"]), head, observations)


def _check_frames(state: State, observations: Observations) -> None:
    stack, frames = state["conv1.weight"].shape[1:2], observations.shape[0]
    if stack != (frames,):
        raise ValueError(f"its observations have {stack[0] if stack else 0} channels, not the {frames} frames expected")


NATURE = Architecture("Nature CNN", len(NATURE_CONVOLUTIONS), "ReLU", "NatureCNN", _nature)
IMPALA = Architecture("IMPALA ResNet", SEQUENCES * (1 + 2 * BLOCKS), "ReLU", "none", _impala)
TANH_MLP = Architecture("MLP with Tanh", 0, "Tanh", "FlattenExtractor", _mlp("tanh"))
RELU_MLP = Architecture("MLP with ReLU", 0, "ReLU", "FlattenExtractor", _mlp("relu"))
