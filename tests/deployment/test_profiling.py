"""A network's cost against formulas worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn

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


def test_both_streams_of_a_dueling_network_count() -> None:
    network = nature_cnn({**CONVS, "value_fc1": 11, "advantage_fc1": 13}, "dueling", 4)
    profile = profile_network(network)
    assert profile.params == sum(parameter.numel() for parameter in network.parameters())
    macs = {layer.name: layer.macs for layer in profile.layers}
    assert macs["value_fc1"] == 343 * 11
    assert macs["value_head"] == 11
    assert macs["advantage_fc1"] == 343 * 13
    assert macs["advantage_head"] == 13 * 4
    assert profile.macs == sum(macs.values())


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
