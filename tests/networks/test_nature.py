"""The Nature network: its size, its arithmetic, and the folding of dueling heads."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lrp_compress.networks.building import build
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


def test_bytes_and_floats_are_the_same_image():
    network = nature_cnn({**CONVS, "fc1": 16}, "q", 4)
    torch.testing.assert_close(network(frames(2)), network(frames(2).float() / 255), rtol=0, atol=0)


def test_the_network_says_what_it_is():
    network = nature_cnn({**CONVS, "fc1": 8, "fc2": 9}, "policy", 5)
    assert network.widths == {**CONVS, "fc1": 8, "fc2": 9}
    assert (network.head_kind, network.actions) == ("policy", 5)
    assert network.dense_layers == ("fc1", "fc2")
    assert network.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("widths", "head", "actions", "message"),
    [
        ({**CONVS, "fc1": 16}, "value", 4, "head 'value' is not one of q, policy"),
        (CONVS, "q", 4, "has the layers"),
        ({"conv1": 4, "conv3": 5, "fc1": 16}, "q", 4, "has the layers"),
        ({"conv2": 6, "conv1": 4, "conv3": 5, "fc1": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc2": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16, "fc3": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16, "conv4": 3}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 16}, "dueling", 4, "head 'dueling' is not one of q, policy"),
        ({**CONVS, "value_fc1": 16, "advantage_fc1": 16}, "q", 4, "has the layers"),
        ({**CONVS, "fc1": 0}, "q", 4, "fc1 has a width of 0"),
        ({**CONVS, "fc1": 16}, "q", 0, "at least 1"),
    ],
)
def test_wrong_descriptions_are_refused(widths: dict[str, int], head: str, actions: int, message: str):
    with pytest.raises(ValueError, match=message):
        nature_cnn(widths, head, actions)


class Dueling(nn.Module):
    """A dueling network (Wang et al. 2016, equation 9)."""

    def __init__(self, value: list[int], advantage: list[int]) -> None:
        super().__init__()
        for number, (inputs, width, kernel) in enumerate(((4, 4, 8), (4, 6, 4), (6, 5, 3)), start=1):
            self.add_module(f"conv{number}", nn.Conv2d(inputs, width, kernel, kernel // 2 if kernel > 3 else 1))
        for stream, widths, outputs in (("value", value, 1), ("advantage", advantage, 6)):
            sizes = [5 * 49, *widths]
            for number, (inputs, width) in enumerate(zip(sizes, widths, strict=False), start=1):
                self.add_module(f"{stream}_fc{number}", nn.Linear(inputs, width))
            self.add_module(f"{stream}_head", nn.Linear(widths[-1], outputs))
        self.depths = {"value": len(value), "advantage": len(advantage)}

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        hidden = observations / 255
        for number in (1, 2, 3):
            hidden = self.get_submodule(f"conv{number}")(hidden).relu()
        ends = {}
        for stream, depth in self.depths.items():
            end = hidden.flatten(1)
            for number in range(1, depth + 1):
                end = self.get_submodule(f"{stream}_fc{number}")(end).relu()
            ends[stream] = self.get_submodule(f"{stream}_head")(end)
        return ends["value"] + ends["advantage"] - ends["advantage"].mean(1, keepdim=True)


@pytest.mark.parametrize(("value", "advantage"), [([8], [11]), ([8, 3], [11, 9])])
def test_a_folded_dueling_network_computes_the_same(value: list[int], advantage: list[int]):
    torch.manual_seed(0)
    module = Dueling(value, advantage)
    with torch.no_grad():  # outputs of the size of real Q-values
        module.get_submodule("value_head").bias += 3
        module.get_submodule("advantage_head").weight *= 5
    folded = fold_dueling(module.state_dict())
    widths = {
        **CONVS,
        **{f"fc{number}": sum(pair) for number, pair in enumerate(zip(value, advantage, strict=True), start=1)},
    }
    network = build(lambda: nature_cnn(widths, "q", 6), folded)
    with torch.no_grad():
        torch.testing.assert_close(network(frames(16)), module(frames(16)), rtol=0, atol=1e-5)


def test_only_dueling_networks_with_even_streams_are_folded():
    with pytest.raises(ValueError, match="same number of layers"):
        fold_dueling(Dueling([8, 8], [8]).state_dict())
