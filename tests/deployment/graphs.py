"""Small networks of every kind of layer, and observations that they tell apart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.networks.graph import INPUT, Layer, Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.networks.spaces import ATARI, Decision, Observations


class Chain:
    """Layers written one after the other, each of which reads the one before unless told otherwise."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []

    def __call__(self, op: str, *inputs: str, name: str = "", **options: int | float | tuple[int, int]) -> str:
        """Add a layer and give its name."""
        before = self.layers[-1].name if self.layers else INPUT
        self.layers.append(Layer(name or f"{op}{len(self.layers)}", op, inputs or (before,), dict(options)))
        return self.layers[-1].name


def nature() -> Network:
    """Nature CNN with a few channels."""
    return nature_cnn({"conv1": 5, "conv2": 6, "conv3": 7, "fc1": 9}, "q", 6)


def impala() -> Network:
    """IMPALA ResNet as CleanRL has it, narrow: sums that are read twice."""
    then = Chain()
    same = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
    for width in (4, 6, 6):
        then("conv", width=width, **same)
        at = then("max_pool", kernel=(3, 3), stride=(2, 2), padding=(1, 1))
        for _ in range(2):
            for _ in range(2):
                then("relu")
                then("conv", width=width, **same)
            at = then("add", then.layers[-1].name, at)
    then("relu")
    then("flatten")
    then("dense", name="fc1", width=16)
    then("relu")
    then("dense", name="head", width=6)
    return Network(then.layers, ATARI, Decision("policy", 6))


def vectors() -> Network:
    """MLP on vectors, as for control tasks."""
    then = Chain()
    for width in (12, 9):
        then("dense", width=width)
        then("tanh")
    then("dense", name="head", width=5)
    return Network(then.layers, Observations((17,), "float32"), Decision("policy", 5))


def curved() -> Network:
    """Chain of curved activations that have integer operators, on vectors in a unit of their own."""
    then = Chain()
    then("dense", width=10)
    then("leaky_relu", slope=0.2)
    then("dense", width=7)
    then("sigmoid")
    then("dense", name="head", width=3)
    return Network(then.layers, Observations((6,), "float32", 2.0), Decision("q", 3))


def odd() -> Network:
    """Other kernels, strides, paddings and pictures, a sum of three, ReLUs behind pooling, a layer called outputs."""
    then = Chain()
    then("conv", width=5, kernel=(5, 4), stride=(3, 2), padding=(2, 1))
    then("leaky_relu", slope=0.1)
    then("mean_pool", kernel=(2, 3), stride=(2, 2))
    then("mean_pool", kernel=(2, 2), stride=(1, 1))
    then("relu")
    then("conv", width=7, kernel=(3, 3), stride=(2, 1), padding=(1, 1))
    pooled = then("max_pool", kernel=(3, 2), stride=(2, 2), padding=(1, 1))
    cut = then("relu")
    then("conv", width=7, kernel=(1, 1), stride=(1, 1), padding=(0, 0))
    then("add", cut, then("elu", alpha=0.7), pooled)
    then("flatten")
    then("dense", width=11)
    then("sigmoid", name="outputs")
    then("dense", name="head", width=3)
    return Network(then.layers, Observations((3, 40, 30), "uint8", 255.0), Decision("q", 3))


def grouped() -> Network:
    """Convolutions in groups: of pictures, depthwise with padding, with two filters for a channel, and others."""
    then = Chain()
    then("conv", width=6, kernel=(5, 4), stride=(3, 2), padding=(2, 0), groups=3)
    then("relu")
    then("conv", width=6, kernel=(3, 3), stride=(1, 1), padding=(1, 1), groups=6)
    then("relu")
    then("conv", width=5, kernel=(1, 1), stride=(1, 1), padding=(0, 0))
    then("relu")
    then("conv", width=10, kernel=(3, 2), stride=(2, 2), padding=(1, 1), groups=5)
    then("relu")
    then("conv", width=4, kernel=(2, 2), stride=(1, 2), padding=(0, 0), groups=2)
    then("leaky_relu", slope=0.1)
    then("flatten")
    then("dense", width=9)
    then("relu")
    then("dense", name="head", width=3)
    return Network(then.layers, Observations((3, 40, 30), "uint8", 255.0), Decision("q", 3))


GRAPHS: dict[str, Callable[[], Network]] = {
    "nature": nature,
    "impala": impala,
    "vectors": vectors,
    "curved": curved,
    "odd": odd,
    "grouped": grouped,
}


def agent(name: str) -> Agent:
    """Make an agent whose values neither die out nor grow."""
    torch.manual_seed(2)
    network = GRAPHS[name]().eval()
    for layer in network.weighted:
        nn.init.kaiming_normal_(network.get_parameter(f"{layer}.weight"))
        nn.init.normal_(network.get_parameter(f"{layer}.bias"), 0, 0.1)
    return Agent(network, AgentInfo("pong", "minimal", False, {"step": 1}, all_channels(network.widths)))


def seen(network: Network, count: int, seed: int) -> NDArray[np.generic]:
    """Draw observations: vectors, or pictures of patches, most of them dark."""
    space = network.observations
    if space.dtype == "float32":
        return space.random(count, seed).numpy()
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.rand((2, count, space.shape[0], 7, 7), generator=generator)
    patches = brightness[0] * (brightness[1] > 0.6)
    return (nn.functional.interpolate(patches, space.shape[1:]) * 255).to(torch.uint8).numpy()
