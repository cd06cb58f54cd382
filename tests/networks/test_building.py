"""Networks from values: names and order depend on what is computed alone, and sizes are checked first."""

from __future__ import annotations

import resource

import pytest
import torch

from lrp_compress.networks import values
from lrp_compress.networks.building import build, network_of
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.networks.spaces import ATARI, Observations
from lrp_compress.networks.values import Unread, Value

VECTOR = Observations((6,), "float32")


def weights(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def branches(swapped: bool, again: bool = False) -> Value:
    """Two dense layers of one depth, added; with `again` the activation before them is computed twice."""
    hidden = values.dense(values.given(VECTOR), weights(5, 6, seed=0), None)
    shown = values.activated("relu", hidden)
    shown_again = values.activated("relu", hidden) if again else shown
    parts = [values.dense(shown, weights(4, 5, seed=1), None), values.dense(shown_again, weights(4, 5, seed=2), None)]
    total = values.added(parts[::-1] if swapped else parts)
    return values.dense(values.activated("tanh", total), weights(3, 4, seed=3), None)


def same(one: Network, other: Network) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return one.layers == other.layers and all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_a_network_does_not_depend_on_how_it_is_written(swapped: bool, again: bool):
    network = network_of(branches(swapped, again), "policy", VECTOR)
    assert same(network, network_of(branches(False), "policy", VECTOR))
    names = [layer.name for layer in network.layers]
    assert names == ["fc1", "fc1_relu", "fc2", "fc3", "add1", "add1_tanh", "head"]


def test_what_is_folded_into_a_layer_does_not_touch_its_other_readers():
    """A normalised layer that is also read as it is becomes two."""
    hidden = values.dense(values.given(VECTOR), weights(5, 6, seed=0), weights(5, seed=4))
    mean, variance = weights(5, seed=5), weights(5, seed=6).square() + 0.1
    first = values.dense(values.activated("relu", hidden), weights(5, 5, seed=7), None)
    normal = values.normalised(first, mean, variance, None, None, 1e-5)
    both = values.dense(values.added([values.activated("relu", normal), first]), weights(3, 5, seed=8), None)
    network, given = network_of(both, "q", VECTOR), VECTOR.random(4, 0)
    plain = (given @ weights(5, 6, seed=0).T + weights(5, seed=4)).relu() @ weights(5, 5, seed=7).T
    summed = ((plain - mean) / (variance + 1e-5).sqrt()).relu() + plain
    expected = summed @ weights(3, 5, seed=8).T
    torch.testing.assert_close(network(given), expected, rtol=1e-4, atol=1e-4)


def test_pixels_in_other_units_are_the_weights_matter():
    def made(factor: float) -> Network:
        pixels = values.affine(values.given(ATARI), torch.tensor(factor), None)
        hidden = values.conv(pixels, weights(2, 4, 8, 8, seed=0), None, (8, 8))
        return network_of(values.dense(values.flattened(hidden), weights(3, 200, seed=1), None), "q", ATARI)

    pixels = ATARI.random(2, 0)
    assert torch.equal(made(1 / 255).get_parameter("conv1.weight"), weights(2, 4, 8, 8, seed=0))
    torch.testing.assert_close(made(1.0)(pixels), made(1 / 255)(pixels) * 255, rtol=1e-4, atol=1e-2)


def test_sizes_are_checked_before_they_are_taken():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"conv1\.weight has the shape None, not \(1000000, 4, 8, 8\)"):
        build(lambda: nature_cnn({"conv1": 10**6, "conv2": 10**6, "conv3": 4, "fc1": 4}, "q", 4), {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        (lambda: values.given(VECTOR), "outputs by observations"),
        (lambda: values.activated("relu", branches(False)), "outputs by relu"),
        (lambda: values.probabilities(branches(False)), "softmax, which Q-values have not"),
        (lambda: values.activated("relu", values.probabilities(branches(False))), "softmax that is not at the end"),
        (lambda: values.added([values.given(VECTOR), branches(False)]), "a sum of values of"),
        (
            lambda: values.affine(values.activated("relu", branches(False)), torch.ones(3), None),
            "arithmetic with const",
        ),
    ],
)
def test_what_is_no_network(outputs: object, why: str):
    with pytest.raises(Unread, match=why):
        network_of(outputs(), "q", VECTOR)  # type: ignore[operator]
