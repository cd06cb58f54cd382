"""Small networks of every kind that the tests share."""

from __future__ import annotations

import torch

from lrp_compress.networks.graph import HEAD, INPUT, Layer, Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.networks.spaces import ATARI, Decision, Observations

CONVS = {"conv1": 8, "conv2": 12, "conv3": 10}
ACTIONS = 6


def window(kernel: int, stride: int = 1, padding: int = 0) -> dict[str, tuple[int, int]]:
    return {"kernel": (kernel, kernel), "stride": (stride, stride), "padding": (padding, padding)}


class Layers(list[Layer]):
    """Layers, each added with a line; a new one reads the last unless told otherwise."""

    def then(self, name: str, op: str = "", *inputs: str, **options: object) -> str:
        kinds = {"conv": "conv", "fc": "dense", HEAD: "dense"}
        op = op or next(kind for start, kind in kinds.items() if name.startswith(start))
        self.append(Layer(name, op, inputs or (self[-1].name if self else INPUT,), options))
        return name


def nature(kind: str = "q") -> Network:
    dense = {"fc1": 20, "fc2": 15} if kind == "policy" else {"fc1": 20}
    return nature_cnn({**CONVS, **dense}, kind, ACTIONS)


def impala(widths: tuple[int, ...] = (4, 6, 8)) -> Network:
    """The ResNet of Espeholt et al. 2018 (IMPALA, figure 3), as CleanRL has it."""
    layers, number = Layers(), 0
    for width in widths:
        number += 1
        layers.then(f"conv{number}", width=width, **window(3, 1, 1))
        stream = layers.then(f"pool{number}", "max_pool", **window(3, 2, 1))
        for _ in range(2):
            for _ in range(2):
                layers.then(f"conv{number}_relu", "relu", *((stream,) if layers[-1].name == stream else ()))
                number += 1
                layers.then(f"conv{number}", width=width, **window(3, 1, 1))
            stream = layers.then(f"add{number}", "add", stream, f"conv{number}")
    layers.then("last_relu", "relu")
    layers.then("flatten", "flatten")
    layers.then("fc1", width=16)
    layers.then("fc1_relu", "relu")
    layers.then(HEAD, width=ACTIONS)
    return Network(layers, ATARI, Decision("policy", ACTIONS))


def residual() -> Network:
    """One residual block behind a convolution that leaves few places: the cheapest of its kind."""
    layers = Layers()
    layers.then("conv1", width=8, **window(8, 4, 2))
    stream = layers.then("pool1", "max_pool", **window(3, 2, 1))
    layers.then("conv2_relu", "relu", stream)
    layers.then("conv2", width=8, **window(3, 1, 1))
    layers.then("add1", "add", stream, "conv2")
    layers.then("last_relu", "relu")
    layers.then("pool2", "mean_pool", kernel=(3, 3), stride=(2, 2))
    layers.then("flatten", "flatten")
    layers.then("fc1", width=16)
    layers.then("fc1_relu", "relu")
    layers.then(HEAD, width=ACTIONS)
    return Network(layers, ATARI, Decision("policy", ACTIONS))


def mlp() -> Network:
    """Dense layers with tanh, on a vector, as Stable-Baselines3's PPO has them."""
    layers = Layers()
    for number, width in enumerate((12, 9), start=1):
        layers.then(f"fc{number}", width=width)
        layers.then(f"fc{number}_tanh", "tanh")
    layers.then(HEAD, width=ACTIONS)
    return Network(layers, Observations((17,), "float32"), Decision("policy", ACTIONS))


def other() -> Network:
    """Other sizes, padding, pooling by the mean, other activations, a skip past two layers and one among dense ones."""
    layers = Layers()
    layers.then("conv1", width=7, kernel=(5, 4), stride=(2, 3), padding=(2, 1))
    layers.then("conv1_leaky_relu", "leaky_relu", slope=0.1)
    layers.then("pool1", "mean_pool", kernel=(3, 3), stride=(2, 2))
    layers.then("conv2", width=9, **window(3, 2))
    layers.then("conv2_elu", "elu", alpha=0.7)
    layers.then("conv3", width=9, **window(1))
    layers.then("conv3_sigmoid", "sigmoid")
    layers.then("add1", "add", "conv2_elu", "conv3_sigmoid")
    layers.then("flatten", "flatten")
    layers.then("fc1", width=10)
    layers.then("fc1_relu", "relu")
    layers.then("fc2", width=10)
    layers.then("fc2_relu", "relu")
    layers.then("add2", "add", "fc1_relu", "fc2_relu")
    layers.then(HEAD, width=ACTIONS)
    return Network(layers, Observations((3, 40, 36), "uint8", 255.0), Decision("q", ACTIONS))


def depthwise() -> Network:
    """Depthwise convolutions, with one filter and with two for a channel, pointwise ones, and one in two groups."""
    layers = Layers()
    layers.then("conv1", width=8, **window(8, 4))
    layers.then("conv1_relu", "relu")
    layers.then("conv2", width=8, **window(3, 1, 1), groups=8)
    layers.then("conv2_relu", "relu")
    layers.then("conv3", width=6, **window(1))
    layers.then("conv3_relu", "relu")
    layers.then("conv4", width=12, **window(3, 2), groups=6)
    layers.then("conv4_relu", "relu")
    layers.then("conv5", width=8, **window(1))
    layers.then("conv5_relu", "relu")
    layers.then("conv6", width=6, **window(3, 2), groups=2)
    layers.then("flatten", "flatten")
    layers.then("fc1", width=16)
    layers.then("fc1_relu", "relu")
    layers.then(HEAD, width=ACTIONS)
    return Network(layers, ATARI, Decision("q", ACTIONS))


NETWORKS = {
    "q": nature,
    "policy, two dense layers": lambda: nature("policy"),
    "impala": impala,
    "residual": residual,
    "mlp": mlp,
    "other": other,
    "depthwise": depthwise,
}


def built(kind: str, bias: float = 0.5, seed: int = 0) -> Network:
    """Build a network whose channels are alive: with few of them left, chance would often leave no path open."""
    torch.manual_seed(seed)
    network = NETWORKS[kind]()
    with torch.no_grad():
        for name in network.weighted[:-1]:
            network.get_parameter(f"{name}.bias").add_(bias)
    return network


def weights(network: Network, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return network.get_parameter(f"{name}.weight"), network.get_parameter(f"{name}.bias")
