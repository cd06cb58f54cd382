"""The fast path computes what the network computes, gradients included."""

from __future__ import annotations

import pytest
import torch

from lrp_compress.networks.fast import batched_outputs, check_device, dense_values, fast_outputs, faster_precision
from lrp_compress.networks.graph import Layer, Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.networks.spaces import ATARI, Decision, Observations
from lrp_compress.support.errors import UserError

NETWORKS = {
    "nature": (NATURE_WIDTHS, "q"),
    "odd": ({"conv1": 3, "conv2": 7, "conv3": 5, "fc1": 13}, "policy"),
    "single channels": ({"conv1": 1, "conv2": 1, "conv3": 1, "fc1": 1}, "q"),
    "two dense layers": ({"conv1": 9, "conv2": 6, "conv3": 6, "fc1": 16, "fc2": 3}, "policy"),
}


def built(kind: str) -> Network:
    torch.manual_seed(0)
    network = residual() if kind == "impala" else nature_cnn(*NETWORKS[kind], actions=5)
    with torch.no_grad():
        for name in network.widths:  # living channels, whatever chance says
            getattr(network, name).bias += 0.1
    return network


def residual() -> Network:
    """One residual block between other layers."""
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)}
    layers = [
        Layer("conv1", "conv", ("observations",), {"width": 4} | window),
        Layer(
            "max_pool1", "max_pool", ("conv1",), window | {"kernel": (12, 12), "stride": (12, 12), "padding": (0, 0)}
        ),
        Layer("max_pool1_relu", "relu", ("max_pool1",)),
        Layer("conv2", "conv", ("max_pool1_relu",), {"width": 4} | window),
        Layer("add1", "add", ("max_pool1", "conv2")),
        Layer("flatten", "flatten", ("add1",)),
        Layer("fc1", "dense", ("flatten",), {"width": 6}),
        Layer("fc1_relu", "relu", ("fc1",)),
        Layer("head", "dense", ("fc1_relu",), {"width": 5}),
    ]
    return Network(layers, ATARI, Decision("policy", 5))


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [*NETWORKS, "impala"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_outputs_are_the_networks(kind: str, memory_format: torch.memory_format):
    network = built(kind).to(memory_format=memory_format)
    with torch.no_grad():
        expected = network(frames(5))
        outputs = fast_outputs(network, frames(5))
    assert expected.std(0).max() > 1e-4  # the frames do matter
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "unit"), [((3, 64, 96), 255.0), ((4, 82, 85), 255.0), ((1, 84, 84), 2.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_of_other_sizes_and_units(shape: tuple[int, ...], unit: float, dtype: torch.dtype):
    torch.manual_seed(0)
    observations = Observations(shape, "uint8", unit)
    network = nature_cnn(*NETWORKS["odd"], actions=5, observations=observations)
    given = observations.random(5, seed=1)
    with torch.no_grad():
        expected, outputs = network(given), fast_outputs(network, given, dtype)
    accuracy = 1e-5 if dtype == torch.float32 else 2e-2
    assert (outputs - expected).abs().max() < accuracy * expected.abs().max()


@pytest.mark.parametrize("kind", ["nature", "odd", "impala"])
def test_gradients_are_the_networks(kind: str):
    network = built(kind)
    gradients = []
    for compute in (network, lambda observations: fast_outputs(network, observations)):
        network.zero_grad()
        (compute(frames(4)) * torch.arange(1.0, 6.0)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("kind", ["nature", "odd"])
def test_bfloat16_is_close(kind: str):
    network = built(kind)
    with torch.no_grad():
        expected = network(frames(8))
        outputs = fast_outputs(network, frames(8), torch.bfloat16)
    assert outputs.dtype == torch.float32
    assert not torch.equal(outputs, expected)
    assert (outputs - expected).abs().max() < 0.02 * expected.abs().max()


def test_bfloat16_tells_outputs_apart_that_lie_close_together():
    """Q-values near 8, where bfloat16 has steps of 1/32, with differences of some 1/1000."""
    network = built("nature")
    with torch.no_grad():
        network.head.weight.mul_(1 / 64)
        network.head.bias.fill_(8.0)
        observations = frames(64)
        outputs, exact = fast_outputs(network, observations, torch.bfloat16), network(observations)
    spread = (exact - exact.mean(1, keepdim=True)).std()
    assert spread < 1 / 128
    assert (outputs - exact).abs().max() < spread / 4


def test_pixels_are_exact_in_bfloat16():
    """One bright pixel changes the outputs even where it is one grey level: 255 levels stay distinct."""
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levels.to(torch.bfloat16).to(torch.uint8), levels)
    network = nature_cnn({"conv1": 1, "conv2": 1, "conv3": 1, "fc1": 1}, "q", 1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0)
        network.conv1.weight[0, 3, 0, 0] = 255.0  # reads the corner pixel of the newest frame
        network.conv2.weight[0, 0, 0, 0] = network.conv3.weight[0, 0, 0, 0] = 1
        network.fc1.weight[0, 0] = network.head.weight[0, 0] = 1
        observations = torch.zeros(256, 4, 84, 84, dtype=torch.uint8)
        observations[:, 3, 0, 0] = levels
        assert fast_outputs(network, observations, torch.bfloat16).flatten().tolist() == list(range(256))


def test_batches_add_up():
    network = built("odd")
    with torch.no_grad():
        expected = network(frames(11))
    for batch_size in (1, 4, 11, 64):
        torch.testing.assert_close(
            batched_outputs(network, frames(11), batch_size=batch_size), expected, rtol=0, atol=1e-4
        )


def test_faster_precision_leaves_the_network_as_it_was():
    network = built("odd")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert faster_precision(network, 8) in (torch.float32, torch.bfloat16)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("kind", ["nature", "two dense layers", "impala"])
def test_dense_values_are_what_the_heads_see(kind: str):
    network = built(kind)
    with dense_values(network) as values:
        outputs = fast_outputs(network, frames(3))
    assert {name: tuple(tensor.shape) for name, tensor in values.items()} == {
        name: (3, network.widths[name]) for name in network.dense_layers
    }
    expected = network.head(values[network.dense_layers[-1]])
    torch.testing.assert_close(outputs, expected)
    before = dict(values)
    fast_outputs(network, frames(2))
    assert all(values[name] is tensor for name, tensor in before.items())  # no longer listening


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu")
    with pytest.raises(UserError, match="device=cuda, but PyTorch finds no GPU; choose device=cpu"):
        check_device("cuda")
