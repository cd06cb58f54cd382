"""The Nature CNN and its kin: convolutions without padding, then dense layers, each followed by a ReLU.

Architecture from Mnih et al. 2015, "Human-level control through deep reinforcement learning" (Methods, Model
architecture); dueling streams from Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning".
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lrp_compress.networks.graph import HEAD, INPUT, Layer, Network
from lrp_compress.networks.spaces import ATARI, Decision, Observations

NATURE_CONVOLUTIONS = {"conv1": (8, 4), "conv2": (4, 2), "conv3": (3, 1)}  # kernel, stride in pixels
NATURE_WIDTHS = {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}
STREAMS = ("value_", "advantage_")  # of a dueling head


def nature_cnn(
    widths: Mapping[str, int],
    head: str,
    actions: int,
    convolutions: Mapping[str, tuple[int, int]] = NATURE_CONVOLUTIONS,
    observations: Observations = ATARI,
) -> Network:
    """Make a network of convolutions ``conv1 conv2 ...``, dense layers ``fc1 fc2 ...`` and a head.

    Parameters
    ----------
    widths : mapping of str to int
        Channels (filters or units) of each hidden layer, in order.
    head : {"q", "policy"}
        What the outputs are: Q-values or action logits.
    actions : int
        Number of actions.
    convolutions : mapping of str to (int, int)
        Kernel and stride, in pixels, of each convolution.
    observations : Observations
        Pictures.

    Returns
    -------
    Network
        With weights drawn as PyTorch draws them.

    Raises
    ------
    ValueError
        If the head or the layer names are not of the kinds above, a width is below 1, or a kernel larger than its
        input.
    """
    convs = [f"conv{number}" for number in range(1, len(convolutions) + 1)]
    dense = [f"fc{number}" for number in range(1, max(len(widths) - len(convs), 1) + 1)]
    if list(convolutions) != convs or not convs or list(widths) != convs + dense:
        raise ValueError(f"such a network has the layers {convs + dense}, got {list(convolutions)} and {list(widths)}")
    layers: list[Layer] = []
    values = INPUT

    def then(name: str, op: str, **options: int | tuple[int, int]) -> None:
        nonlocal values
        layers.append(Layer(name, op, (values,), options))
        values = name

    for name, (kernel, stride) in convolutions.items():
        then(name, "conv", width=widths[name], kernel=(kernel, kernel), stride=(stride, stride), padding=(0, 0))
        then(f"{name}_relu", "relu")
    then("flatten", "flatten")
    for name in dense:
        then(name, "dense", width=widths[name])
        then(f"{name}_relu", "relu")
    then(HEAD, "dense", width=actions)
    return Network(layers, observations, Decision(head, actions))


@torch.no_grad()
def fold_dueling(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite the weights of a dueling network as those of the plain Q-network that computes the same outputs.

    The streams' dense layers are stacked (value units first), and the mean-subtraction becomes part of the last layer.
    Exact up to rounding.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights of ``conv1 ...``, ``value_fc1 ... value_head`` and ``advantage_fc1 ... advantage_head``.

    Returns
    -------
    dict of str to Tensor
        Of ``conv1 ... fc1 ... head``.

    Raises
    ------
    ValueError
        If the two streams differ in their number of layers.
    """
    folded = {key: tensor for key, tensor in state.items() if key.startswith("conv")}
    depths = [sum(key.startswith(f"{stream}fc") and key.endswith(".bias") for key in state) for stream in STREAMS]
    if depths[0] != depths[1]:
        raise ValueError("the value and the advantage stream must have the same number of layers to be folded")
    for number in range(1, depths[0] + 1):
        weights, biases = ([state[f"{stream}fc{number}.{kind}"] for stream in STREAMS] for kind in ("weight", "bias"))
        # the first layers share their input, later ones see their own stream only
        stack = torch.cat if number == 1 else lambda blocks: torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        folded[f"fc{number}.weight"] = stack(weights)
        folded[f"fc{number}.bias"] = torch.cat(biases)
    value, advantage = (state[f"{stream}head.weight"] for stream in STREAMS)
    folded["head.weight"] = torch.cat([value.expand(len(advantage), -1), advantage - advantage.mean(0)], dim=1)
    value, advantage = (state[f"{stream}head.bias"] for stream in STREAMS)
    folded["head.bias"] = value + advantage - advantage.mean()
    return folded
