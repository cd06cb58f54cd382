"""Convolutions, then dense layers, of explicit widths: the networks that everything here compresses.

The Nature CNN is the usual one.

Architecture from Mnih et al. 2015, "Human-level control through deep reinforcement learning" (Methods, Model
architecture); dueling streams from Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEADS = ("q", "policy", "dueling")
NATURE_CONVOLUTIONS = {"conv1": (8, 4), "conv2": (4, 2), "conv3": (3, 1)}  # kernel, stride in pixels
STACK, SIDE = 4, 84  # frames of an observation, and pixels along a side
NATURE_WIDTHS = {"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}


class PolicyNetwork(nn.Module):
    """Convolutions without padding, dense layers and a head, each hidden layer of an explicit width.

    Hidden layers are named ``conv1 conv2 ...`` and ``fc1 fc2 ...``; with a dueling head the dense layers are
    ``value_fc1 ...`` and ``advantage_fc1 ...``. Each is an attribute of that name, followed by a ReLU of its own.

    Parameters
    ----------
    widths : mapping of str to int
        Channels (filters or units) of each hidden layer, in order.
    head : {"q", "policy", "dueling"}
        What the outputs are: Q-values, action logits, or Q-values from value and advantage streams.
    actions : int
        Number of actions.
    convolutions : mapping of str to (int, int)
        Kernel and stride, in pixels, of each convolution.

    Raises
    ------
    ValueError
        If the head or the layer names are not of the kinds above, a width is below 1, or a kernel larger than its
        input.
    """

    conv1: nn.Conv2d
    conv1_relu: nn.ReLU
    head: nn.Linear
    value_head: nn.Linear
    advantage_head: nn.Linear

    def __init__(
        self,
        widths: Mapping[str, int],
        head: str,
        actions: int,
        convolutions: Mapping[str, tuple[int, int]] = NATURE_CONVOLUTIONS,
    ) -> None:
        super().__init__()
        _check_widths(widths, head, actions, convolutions)
        self.widths = dict(widths)
        self.head_kind = head
        self.actions = actions
        self.convolutions = dict(convolutions)
        channels, side = STACK, SIDE
        for name, (kernel, stride) in convolutions.items():
            setattr(self, name, nn.Conv2d(channels, widths[name], kernel, stride))
            setattr(self, f"{name}_relu", nn.ReLU())
            channels, side = widths[name], (side - kernel) // stride + 1
        for stream, outputs in self._streams():
            features = channels * side * side
            for name in self._dense(stream):
                setattr(self, name, nn.Linear(features, widths[name]))
                setattr(self, f"{name}_relu", nn.ReLU())
                features = widths[name]
            setattr(self, f"{stream}head", nn.Linear(features, outputs))

    def resized(self, widths: Mapping[str, int]) -> PolicyNetwork:
        """Make a network of the same kind with other widths, and weights of its own."""
        return PolicyNetwork(widths, self.head_kind, self.actions, self.convolutions)

    def _streams(self) -> tuple[tuple[str, int], ...]:
        return (("value_", 1), ("advantage_", self.actions)) if self.head_kind == "dueling" else (("", self.actions),)

    def _dense(self, stream: str) -> list[str]:
        return [name for name in self.widths if name.startswith(f"{stream}fc")]

    @property
    def dense_layers(self) -> tuple[str, ...]:
        """Names of the dense hidden layers."""
        return tuple(name for name in self.widths if name not in self.convolutions)

    @property
    def heads(self) -> tuple[nn.Linear, ...]:
        """The last layers, whose outputs are the network's; with a dueling head the value's and the advantage's."""
        return tuple(getattr(self, f"{stream}head") for stream, _ in self._streams())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.conv1.weight.device

    def forward(self, observations: Tensor) -> Tensor:
        """Compute the outputs.

        Parameters
        ----------
        observations : Tensor
            Shape (N, 4, 84, 84), oldest frame first: uint8 in [0, 255], or a floating type in [0, 1].

        Returns
        -------
        Tensor
            Shape (N, actions): Q-values or action logits.
        """
        images = observations.float() / 255 if observations.dtype == torch.uint8 else observations
        return self.decide(*self.after_conv1(self.conv1(images)))

    def after_conv1(self, features: Tensor) -> tuple[Tensor, ...]:
        """Compute what the heads see, from conv1's output before its ReLU, shape (N, channels, h, w).

        Returns
        -------
        tuple of Tensor
            Values of the last dense layer, shape (N, units); with a dueling head of both streams, value first.
        """
        features = self.conv1_relu(features)
        for name in list(self.convolutions)[1:]:
            features = self._apply_layer(name, features)
        features = features.flatten(1)
        return tuple(self._run_stream(stream, features) for stream, _ in self._streams())

    def decide(self, *hidden: Tensor) -> Tensor:
        """Compute the outputs, shape (N, actions), from what `after_conv1` returns."""
        outputs: list[Tensor] = [head(values) for head, values in zip(self.heads, hidden, strict=True)]
        if self.head_kind != "dueling":
            return outputs[0]
        value, advantage = outputs
        return value + advantage - advantage.mean(1, keepdim=True)

    def _apply_layer(self, name: str, features: Tensor) -> Tensor:
        result: Tensor = getattr(self, f"{name}_relu")(getattr(self, name)(features))
        return result

    def _run_stream(self, stream: str, features: Tensor) -> Tensor:
        for name in self._dense(stream):
            features = self._apply_layer(name, features)
        return features


def _check_widths(
    widths: Mapping[str, int], head: str, actions: int, convolutions: Mapping[str, tuple[int, int]]
) -> None:
    if head not in HEADS:
        raise ValueError(f"head {head!r} is not one of {', '.join(HEADS)}")
    streams = ("value_", "advantage_") if head == "dueling" else ("",)
    expected = [f"conv{number}" for number in range(1, len(convolutions) + 1)]
    if list(convolutions) != expected or not expected:
        raise ValueError(f"convolutions are named conv1, conv2 and so on, got {list(convolutions)}")
    side = SIDE
    for name, (kernel, stride) in convolutions.items():
        if not (1 <= kernel <= side and stride >= 1):
            raise ValueError(f"{name} has the kernel {kernel} and the stride {stride} on a map of {side}x{side}")
        side = (side - kernel) // stride + 1
    for stream in streams:
        count = sum(name.startswith(f"{stream}fc") for name in widths)
        expected += [f"{stream}fc{i}" for i in range(1, max(count, 1) + 1)]
    if list(widths) != expected:
        raise ValueError(f"a network with head {head!r} has the layers {expected}, got {list(widths)}")
    if min(*widths.values(), actions) < 1:
        raise ValueError(f"widths and actions must be at least 1, got {dict(widths)} and {actions} actions")


def twin(network: PolicyNetwork) -> PolicyNetwork:
    """Copy a network for another thread: its weights stay those of the original, gradients and hooks are its own."""
    copied = copy.deepcopy(network)
    for own, original in zip(copied.parameters(), network.parameters(), strict=True):
        own.data = original.data
    return copied


@torch.no_grad()
def fold_dueling(network: PolicyNetwork) -> PolicyNetwork:
    """Rewrite a dueling network as the plain Q-network that computes the same outputs.

    The streams' dense layers are stacked (value units first), and the mean-subtraction becomes part of the last
    layer, so relevance reaches both streams. Exact up to rounding.

    Parameters
    ----------
    network : PolicyNetwork
        Any network; one without a dueling head is returned as it is.

    Returns
    -------
    PolicyNetwork
        Head ``"q"``; ``fcK`` holds the units of ``value_fcK`` followed by those of ``advantage_fcK``.

    Raises
    ------
    ValueError
        If the two streams differ in their number of layers.
    """
    if network.head_kind != "dueling":
        return network
    value, advantage = network._dense("value_"), network._dense("advantage_")
    if len(value) != len(advantage):
        raise ValueError("the value and the advantage stream must have the same number of layers to be folded")
    widths = {name: network.widths[name] for name in network.convolutions}
    for i, (v, a) in enumerate(zip(value, advantage, strict=True), start=1):
        widths[f"fc{i}"] = network.widths[v] + network.widths[a]
    folded = PolicyNetwork(widths, "q", network.actions, network.convolutions)
    state = {key: tensor for key, tensor in network.state_dict().items() if key.startswith("conv")}
    for i, (v, a) in enumerate(zip(value, advantage, strict=True), start=1):
        v_layer, a_layer = getattr(network, v), getattr(network, a)
        weights = [v_layer.weight, a_layer.weight]
        # the first layers share their input, later ones see their own stream only
        stack = torch.cat if i == 1 else lambda blocks: torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
        state[f"fc{i}.weight"] = stack(weights)
        state[f"fc{i}.bias"] = torch.cat([v_layer.bias, a_layer.bias])
    v_head, a_head = network.value_head, network.advantage_head
    state["head.weight"] = torch.cat(
        [v_head.weight.expand(network.actions, -1), a_head.weight - a_head.weight.mean(0)], dim=1
    )
    state["head.bias"] = v_head.bias + a_head.bias - a_head.bias.mean()
    folded.load_state_dict(state)
    return folded.to(network.device).train(network.training)
