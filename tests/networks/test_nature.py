"""The Nature network: its size, its arithmetic, and the folding of dueling heads."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_WIDTHS, fold_dueling, nature_cnn

CONVS = {"conv1": 4, "conv2": 6, "conv3": 5}


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def parameters(network: Network) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(("actions", "count"), [(6, 1_687_206), (4, 1_686_180), (18, 1_693_362)])
def test_parameters_of_the_nature_network(actions: int, count: int):
    assert parameters(nature_cnn(NATURE_WIDTHS, "q", actions)) == count


def test_parameters_of_a_dueling_network():
    widths = {"conv1": 32, "conv2": 64, "conv3": 64, "value_fc1": 512, "advantage_fc1": 512}
    convs = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1)
    assert parameters(nature_cnn(widths, "dueling", 6)) == convs + 2 * 512 * 3137 + 513 + 513 * 6


def test_forward_is_the_sequence_of_its_layers():
    network = nature_cnn({**CONVS, "fc1": 16, "fc2": 7}, "policy", 3)
    x = frames(2) / 255
    for name, stride in [("conv1", 4), ("conv2", 2), ("conv3", 1)]:
        layer = getattr(network, name)
        x = functional.conv2d(x, layer.weight, layer.bias, stride).clamp(min=0)
    x = x.flatten(1)
    for name in ("fc1", "fc2"):
        layer = getattr(network, name)
        x = (x @ layer.weight.T + layer.bias).clamp(min=0)
    expected = x @ network.head.weight.T + network.head.bias
    torch.testing.assert_close(network(frames(2)), expected, rtol=0, atol=1e-6)
    assert expected.shape == (2, 3)


def test_dueling_outputs_have_the_value_as_their_mean():
    network = nature_cnn({**CONVS, "value_fc1": 8, "advantage_fc1": 9}, "dueling", 5)
    seen: dict[str, torch.Tensor] = {}
    for name in ("value_head", "advantage_head"):
        getattr(network, name).register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output}))
    outputs = network(frames(3))
    torch.testing.assert_close(outputs.mean(1, keepdim=True), seen["value_head"], rtol=0, atol=1e-6)
    gaps = seen["advantage_head"] - seen["advantage_head"][:, :1]
    torch.testing.assert_close(outputs - outputs[:, :1], gaps, rtol=0, atol=1e-6)


def test_bytes_and_floats_are_the_same_image():
    network = nature_cnn({**CONVS, "fc1": 16}, "q", 4)
    torch.testing.assert_close(network(frames(2)), network(frames(2).float() / 255), rtol=0, atol=0)


def test_the_network_says_what_it_is():
    network = nature_cnn({**CONVS, "value_fc1": 8, "advantage_fc1": 9}, "dueling", 5)
    assert network.widths == {**CONVS, "value_fc1": 8, "advantage_fc1": 9}
    assert (network.head_kind, network.actions) == ("dueling", 5)
    assert network.dense_layers == ("value_fc1", "advantage_fc1")
    assert network.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("widths", "head", "actions", "message"),
    [
        ({**CONVS, "fc1": 16}, "value", 4, "head 'value' is not one of q, policy, dueling"),
        (CONVS, "q", 4, "has the layers"),
        ({"conv1": 4, "conv3": 5, "fc1": 16}, "q", 4, "has the layers"),
        ({"conv2": 6, "conv1": 4, "conv3": 5, "fc1": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc2": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16, "fc3": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16, "conv4": 3}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16}, "dueling", 4, "has the layers"),
        ({**CONVS, "value_fc1": 16}, "dueling", 4, "has the layers"),
        ({**CONVS, "value_fc1": 16, "advantage_fc1": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 0}, "q", 4, "at least 1"),
        ({**CONVS, "fc1": 16}, "q", 0, "at least 1"),
    ],
)
def test_wrong_descriptions_are_refused(widths: dict[str, int], head: str, actions: int, message: str):
    with pytest.raises(ValueError, match=message):
        nature_cnn(widths, head, actions)


@pytest.mark.parametrize(
    "streams",
    [
        {"value_fc1": 8, "advantage_fc1": 11},
        {"value_fc1": 8, "value_fc2": 3, "advantage_fc1": 11, "advantage_fc2": 9},
    ],
)
def test_folded_dueling_network_computes_the_same(streams: dict[str, int]):
    torch.manual_seed(0)
    network = nature_cnn({**CONVS, **streams}, "dueling", 6).eval()
    with torch.no_grad():  # outputs of the size of real Q-values
        network.value_head.bias += 3
        network.advantage_head.weight *= 5
    folded = fold_dueling(network)
    assert folded.head_kind == "q"
    dense = [folded.widths[name] for name in folded.dense_layers]
    assert dense[0] == 19
    assert len(dense) == len(streams) // 2
    assert not folded.training
    with torch.no_grad():
        torch.testing.assert_close(folded(frames(16)), network(frames(16)), rtol=0, atol=1e-5)


def test_only_dueling_networks_with_even_streams_are_folded():
    plain = nature_cnn({**CONVS, "fc1": 16}, "policy", 4)
    assert fold_dueling(plain) is plain
    uneven = nature_cnn({**CONVS, "value_fc1": 8, "value_fc2": 8, "advantage_fc1": 8}, "dueling", 4)
    with pytest.raises(ValueError, match="same number of layers"):
        fold_dueling(uneven)
