"""A network's cost against formulas worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.networks.spaces import Decision, Observations
from tests.deployment.graphs import GRAPHS, Chain, seen

CONVS = {"conv1": 3, "conv2": 5, "conv3": 7}


def test_nature_network_with_six_actions() -> None:
    profile = profile_network(nature_cnn(NATURE_WIDTHS, "q", 6))
    assert profile.params == 1_687_206
    assert profile.macs == 20 * 20 * 32 * 4 * 64 + 9 * 9 * 64 * 32 * 16 + 7 * 7 * 64 * 64 * 9 + 3136 * 512 + 512 * 6
    assert profile.macs == 9_346_048
    assert profile.activation_bytes == 4 * (4 * 84 * 84 + 32 * 20 * 20)


def test_layers_of_odd_widths() -> None:
    network = nature_cnn({**CONVS, "fc1": 11, "fc2": 13}, "policy", 4)
    layers = profile_network(network).layers
    table = [(layer.name, layer.inputs, layer.outputs, layer.params, layer.macs) for layer in layers]
    assert table == [
        ("conv1", 4, 3, 3 * (4 * 64 + 1), 400 * 3 * 4 * 64),
        ("conv2", 3, 5, 5 * (3 * 16 + 1), 81 * 5 * 3 * 16),
        ("conv3", 5, 7, 7 * (5 * 9 + 1), 49 * 7 * 5 * 9),
        ("fc1", 343, 11, 344 * 11, 343 * 11),
        ("fc2", 11, 13, 12 * 13, 11 * 13),
        ("head", 13, 4, 14 * 4, 13 * 4),
    ]
    assert [layer.activation_bytes for layer in layers[-3:]] == [4 * (343 + 11), 4 * (11 + 13), 4 * (13 + 4)]


@pytest.mark.parametrize("name", GRAPHS)
def test_any_network_counts_as_pytorch_counts(name: str) -> None:
    network = GRAPHS[name]().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.from_numpy(seen(network, 1, 0)))
    profile = profile_network(network)
    assert profile.macs == counter.get_total_flops() // 2 == sum(layer.macs for layer in profile.layers)
    assert profile.params == sum(parameter.numel() for parameter in network.parameters())


def test_what_is_read_later_is_kept() -> None:
    then = Chain()
    kept = then("dense", width=50)
    then("relu")
    then("dense", width=60)
    then("relu")
    then("dense", width=50)
    then("add", then.layers[-1].name, kept)
    then("dense", name="head", width=2)
    network = Network(then.layers, Observations((10,), "float32"), Decision("q", 2))
    # the second layer reads the activation of the first and writes its own, while the first is kept for the sum
    assert profile_network(network).activation_bytes == 4 * (50 + 50 + 60)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_size_is_that_of_the_float32_file(tmp_path: Path, dtype: torch.dtype) -> None:
    network = nature_cnn({**CONVS, "fc1": 11}, "q", 4)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    assert profile_network(network.to(dtype)).size_bytes == (tmp_path / "weights.safetensors").stat().st_size


def test_the_network_is_left_as_it_was() -> None:
    network = nature_cnn({**CONVS, "fc1": 11}, "q", 4)
    random_state = torch.get_rng_state()
    profile_network(network)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
