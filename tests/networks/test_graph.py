"""Networks as lists of layers: what they compute, which channels they have, and which lists are none."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import INPUT, Layer, Network, twin
from lrp_compress.networks.spaces import ATARI, Decision, Observations
from tests.compression.networks import NETWORKS, built, depthwise, impala, mlp, other, window


@torch.no_grad()
def by_hand(network: Network, observations: torch.Tensor) -> torch.Tensor:
    """Compute a network with functions, from its weights alone."""
    state = network.state_dict()
    values = {INPUT: observations.float() / network.observations.unit}
    for layer in network.layers:
        given = [values[name] for name in layer.inputs]
        weights = [state.get(f"{layer.name}.{kind}") for kind in ("weight", "bias")]
        options: dict[str, Any] = layer.options
        values[layer.name] = {
            "conv": lambda g=given, w=weights, o=options: functional.conv2d(
                g[0], *w, o["stride"], o["padding"], groups=o.get("groups", 1)
            ),
            "dense": lambda g=given, w=weights: functional.linear(g[0], *w),
            "relu": lambda g=given: g[0].clamp_min(0),
            "leaky_relu": lambda g=given, o=options: torch.where(g[0] > 0, g[0], o["slope"] * g[0]),
            "elu": lambda g=given, o=options: torch.where(g[0] > 0, g[0], o["alpha"] * g[0].expm1()),
            "tanh": lambda g=given: g[0].tanh(),
            "sigmoid": lambda g=given: g[0].sigmoid(),
            "add": lambda g=given: sum(g),
            "max_pool": lambda g=given, o=options: functional.max_pool2d(g[0], o["kernel"], o["stride"], o["padding"]),
            "mean_pool": lambda g=given, o=options: functional.avg_pool2d(g[0], o["kernel"], o["stride"]),
            "flatten": lambda g=given: g[0].flatten(1),
        }[layer.op]()
    return values["head"]


@pytest.mark.parametrize("kind", NETWORKS)
def test_outputs_are_those_of_the_list(kind: str) -> None:
    network = built(kind)
    observations = network.observations.random(3, seed=0)
    expected = by_hand(network, observations)
    assert expected.std(0).max() > 1e-4
    torch.testing.assert_close(network(observations), expected)
    torch.testing.assert_close(fast_outputs(network, observations), expected, rtol=1e-4, atol=1e-5)


def test_channels_of_a_residual_network() -> None:
    network = impala()
    assert network.channels["conv1"].writers == ("conv1", "conv3", "conv5")
    assert network.channels["conv1"].shown == ("conv1", "conv3", "conv5")
    assert network.layer(network.channels["conv2"].shown[0]).op == "relu"
    assert list(network.widths) == [
        "conv1", "conv2", "conv4", "conv6", "conv7", "conv9", "conv11", "conv12", "conv14", "fc1",
    ]  # fmt: skip
    assert network.value("flatten").channels == "conv11"
    assert network.value("flatten").positions == 11 * 11
    assert network.value("head").channels is None
    assert network.value(INPUT).channels is None


def test_channels_of_depthwise_convolutions() -> None:
    network = depthwise()
    assert network.widths == {"conv1": 8, "conv3": 6, "fc1": 16}
    assert network.channels["conv1"].writers == ("conv1", "conv2")
    assert network.channels["conv3"].writers == ("conv3", "conv4")
    assert [network.value(name).positions for name in ("conv2", "conv3", "conv4")] == [1, 1, 2]
    assert all(network.value(name).channels is None for name in ("conv5", "conv6", "flatten"))
    smaller = network.resized({"conv1": 3, "conv3": 1, "fc1": 2})
    assert smaller.widths == {"conv1": 3, "conv3": 1, "fc1": 2}
    assert [smaller.layer(name).options.get("groups") for name in ("conv2", "conv4", "conv6")] == [3, 1, 2]
    assert [smaller.shapes[name][0] for name in ("conv2", "conv4", "conv6")] == [3, 2, 6]


def test_filters_of_other_channels_that_are_added_stay() -> None:
    layers = list(depthwise().layers)
    layers[8:8] = [
        Layer("conv0", "conv", ("conv3_relu",), {"width": 12, **window(3, 2)}),
        Layer("sum", "add", ("conv4_relu", "conv0")),
    ]
    layers[10] = replace(layers[10], inputs=("sum",))
    network = Network(layers, ATARI, Decision("q", 6))
    assert list(network.widths) == ["conv1", "fc1"]
    assert network.value("sum").channels is None


def test_dense_layers_are_those_that_stand_alone() -> None:
    assert mlp().dense_layers == ("fc1", "fc2")
    assert other().dense_layers == ()  # the two are added
    assert other().channels["fc1"].writers == ("fc1", "fc2")
    assert impala().dense_layers == ("fc1",)


@pytest.mark.parametrize("kind", NETWORKS)
def test_other_widths(kind: str) -> None:
    network = built(kind)
    random_state = torch.get_rng_state()
    with torch.device("meta"):
        smaller = network.resized({name: max(1, width // 2) for name, width in network.widths.items()})
    assert torch.equal(torch.get_rng_state(), random_state)
    assert smaller.widths == {name: max(1, width // 2) for name, width in network.widths.items()}
    assert network.resized(network.widths).layers == network.layers


def test_a_twin_shares_weights_alone() -> None:
    network = built("impala")
    other_one = twin(network)
    other_one(network.observations.random(1, 0)).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    with torch.no_grad():
        network.get_parameter("head.bias").fill_(3)
    assert (other_one.get_parameter("head.bias") == 3).all()


def changed(place: int, **fields: Any) -> list[Layer]:
    layers = list(mlp().layers)
    layers[place] = replace(layers[place], **fields)
    return layers


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        (changed(0, op="attention"), "fc1 computes 'attention'; known are conv, dense"),
        (changed(0, options={}), "fc1 is a dense with the options [], not ['width']"),
        (changed(0, options={"width": 0}), "fc1 has a width of 0"),
        (changed(0, options={"width": True}), "fc1 has the width True"),
        (changed(0, op="conv", options={"width": 3, **window(3)}), "fc1 needs a map, not 17 values"),
        (changed(1, inputs=("fc2",)), "fc1_tanh cannot be computed from fc2"),
        (changed(1, inputs=()), "fc1_tanh cannot be computed from nothing"),
        (changed(1, inputs=("fc1", "fc1")), "fc1_tanh cannot be computed from fc1, fc1"),
        (changed(1, name="forward"), "no layer can be called 'forward' here"),
        (changed(1, name="fc1"), "no layer can be called 'fc1' here"),
        (changed(1, name="../x"), "no layer can be called '../x' here"),
        (changed(1, op="flatten"), "fc1_tanh flattens what is flat"),
        (changed(1, op="leaky_relu", options={"slope": float("nan")}), "fc1_tanh has the slope nan"),
        (changed(1, op="max_pool", options=window(2)), "fc1_tanh needs a map"),
        (changed(3, inputs=("fc1",)), "nothing reads fc2"),
        (changed(2, inputs=(INPUT,)), "not read by one convolution or dense layer alone"),
        (changed(-1, name="last"), "the last layer is no dense layer called head"),
        (changed(-1, options={"width": 5}), "the head gives 5 values for 6 actions"),
        (list(mlp().layers)[:1], "a network has 2 to 1000 layers, got 1"),
    ],
)
def test_lists_that_are_no_network_are_refused_by_the_layer(layers: list[Layer], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Network(layers, mlp().observations, mlp().decision)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (window(99), "conv1 has the kernel 99"),
        ({**window(3), "stride": (0, 1)}, "stride 0"),
        (window(3, padding=3), "padding 3"),
        ({**window(3), "kernel": [3]}, "conv1 has the kernel [3]"),
        ({**window(3), "groups": 2.0}, "conv1 has the groups 2.0"),
        ({**window(3), "groups": 3}, "conv1 has 3 groups for 4 channels and a width of 4"),
        ({**window(3), "groups": 0}, "conv1 has 0 groups"),
        ({**window(3), "parts": 2}, "conv1 is a conv with the options"),
    ],
)
def test_windows_that_do_not_fit_are_refused(options: dict[str, Any], told: str) -> None:
    layers = list(impala().layers)
    layers[0] = Layer("conv1", "conv", (INPUT,), {"width": 4, **options})
    with pytest.raises(ValueError, match=re.escape(told)):
        Network(layers, ATARI, Decision("q", 6))


def test_sums_of_different_shapes_are_refused() -> None:
    layers = copy.copy(list(other().layers))
    layers[5] = replace(layers[5], options={**layers[5].options, "width": 8})
    with pytest.raises(ValueError, match="add1 adds values of the shapes"):
        Network(layers, other().observations, other().decision)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"shape": (4, 84)}, "no picture's and no vector's"),
        ({"shape": (0,)}, "no picture's"),
        ({"shape": (3,), "dtype": "int64"}, "observations are int64"),
        ({"shape": (3,), "dtype": "uint8", "unit": 0.0}, "units of 0.0"),
    ],
)
def test_observations_of_other_kinds_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Observations(**{"dtype": "float32", **fields})


@pytest.mark.parametrize(("kind", "size"), [("value", 6), ("q", 0)])
def test_decisions_of_other_kinds_are_refused(kind: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"head .value.|at least 1"):
        Decision(kind, size)
