"""Relevance: what is conserved, what the rules compute, and that the explained network stays as it is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lrp_compress.compression import attribution
from lrp_compress.compression.attribution import gradient_batches, heat_maps, relevance, relevance_batches, traced
from lrp_compress.compression.composites import COMPOSITES, SEEDS
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import built

WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}
GAMMA = 0.25


def small_network(head: str, *, biases: bool = True, seed: int = 3) -> Network:
    """A network with outputs of order 1, so that the rules' stabiliser of 1e-6 does not show."""
    torch.manual_seed(seed)
    network = nature_cnn(WIDTHS, head, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.uniform_(module.bias, -0.1, 0.1) if biases else nn.init.zeros_(module.bias)
    return network


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """24 states of a random player's Breakout."""
    envs = AtariEnvs("breakout", 4, "noop", seed=0, threads=1)
    draws = np.random.default_rng(0)
    envs.reset()
    steps = [envs.step(draws.integers(0, envs.actions, 4)).observations for _ in range(60)]
    envs.close()
    return torch.from_numpy(np.concatenate(steps[9::10]))


def total(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["q", "policy"])
@pytest.mark.parametrize("composite", COMPOSITES.names())
def test_relevance_is_conserved_in_every_layer_without_biases(frames, composite, head):
    network = small_network(head, biases=False)
    result = relevance(network, frames, composite, "greedy")
    assert list(result.layers) == list(network.widths)
    layers = dict(result.layers)
    if composite == "alpha2_beta1":  # conserves only where a neuron has contributions of both signs
        layers = {"fc1": layers["fc1"], "conv3": layers["conv3"]}
    for layer in layers.values():
        torch.testing.assert_close(total(layer), result.output, rtol=1e-4, atol=1e-5)


def difference(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected, 1 at least: rounding errors are no difference."""
    return float((result - expected).norm() / expected.norm().clamp(min=1))


def test_shapes(frames):
    result = relevance(small_network("q"), frames, "gamma", "greedy")
    shapes = {name: tuple(layer.shape) for name, layer in result.layers.items()}
    assert shapes == {"conv1": (24, 4, 20, 20), "conv2": (24, 6, 9, 9), "conv3": (24, 6, 7, 7), "fc1": (24, 16)}
    assert result.inputs.shape == (24, 4, 84, 84)
    assert not any(tensor.requires_grad for tensor in (*result.layers.values(), result.inputs, result.output))


@pytest.mark.parametrize("seed", SEEDS.names())
def test_epsilon_rule_is_activation_times_gradient(frames, seed):
    network = small_network("q")
    with traced(network) as hidden:
        outputs = network(frames)
        weights = SEEDS[seed](outputs.detach(), outputs.detach())
        gradients = torch.autograd.grad((weights * outputs).sum(), list(hidden.values()))
    by_rule = relevance(network, frames, "epsilon", seed)
    by_gradient = next(gradient_batches(network, frames, seed, len(frames)))
    for (name, activation), gradient in zip(hidden.items(), gradients, strict=True):
        expected = activation.detach() * gradient
        assert difference(by_rule.layers[name], expected) < 2e-3  # the stabiliser, where a neuron is near zero
        assert difference(by_gradient.layers[name], expected) < 1e-5


def linear_map(layer: nn.Module, shape: torch.Size) -> torch.Tensor:
    """The layer's weights as a matrix (inputs, outputs), found by feeding it one unit vector after another."""
    basis = torch.eye(shape.numel(), dtype=torch.double).reshape(-1, *shape)
    return (layer(basis) - layer(torch.zeros_like(basis[:1]))).flatten(1)


def slow_gamma(layer: nn.Module, inputs: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """The gamma rule by its definition, one state and one upper neuron at a time."""
    matrix = linear_map(layer, inputs.shape[1:])
    lower = torch.zeros_like(inputs).flatten(1)
    for state in range(len(inputs)):
        activation = inputs[state].flatten()
        outputs = layer(inputs[state : state + 1]).flatten()
        bias = outputs - activation @ matrix
        for k, output in enumerate(outputs):
            sign = output.sign()
            favoured = matrix[:, k] + GAMMA * (matrix[:, k] * sign).clamp(min=0) * sign
            bias_favoured = bias[k] + GAMMA * (bias[k] * sign).clamp(min=0) * sign
            parts = activation * favoured
            lower[state] += parts / (parts.sum() + bias_favoured + 1e-6 * sign) * upper[state].flatten()[k]
    return lower.reshape(inputs.shape)


def test_gamma_against_its_definition(frames):
    network, states = small_network("q"), frames[[3, 20]]
    result = relevance(network, states, "gamma", "greedy")
    exact = copy.deepcopy(network).double()
    with torch.no_grad(), traced(exact) as hidden:
        outputs = exact(states.double() / 255)
        expected = functional.one_hot(outputs.argmax(1), 4) * outputs
        for layer, below in (("head", "fc1"), ("fc1", "conv3"), ("conv3", "conv2"), ("conv2", "conv1")):
            inputs = hidden[below].flatten(1) if layer == "fc1" else hidden[below]
            expected = slow_gamma(getattr(exact, layer), inputs, expected).reshape(hidden[below].shape)
            torch.testing.assert_close(result.layers[below], expected)


def test_seeds_start_at_the_outputs_values(frames):
    network = small_network("q")
    outputs = network(frames).detach()
    started = {seed: relevance(network, frames, "gamma", seed).output for seed in SEEDS.names()}
    torch.testing.assert_close(started["greedy"].float(), outputs.max(1).values)
    torch.testing.assert_close(started["all"].float(), outputs.abs().sum(1))
    torch.testing.assert_close(started["softmax"].float(), (outputs.softmax(1) * outputs).sum(1))


def test_other_outputs_can_choose_the_action(frames):
    network = small_network("q")
    outputs = network(frames).detach()
    worst = relevance(network, frames, "gamma", "greedy", outputs=-outputs)
    torch.testing.assert_close(worst.output.float(), outputs.min(1).values)


@pytest.mark.parametrize("seed", SEEDS.names())
def test_what_all_logits_share_has_no_relevance(frames, seed):
    network = small_network("policy")
    shifted = copy.deepcopy(network)
    with torch.no_grad():
        shifted.head.weight += torch.linspace(-1, 1, 16)
        shifted.head.bias += 5
    torch.testing.assert_close(shifted(frames).softmax(1), network(frames).softmax(1))
    before, after = (relevance(given, frames, "gamma", seed) for given in (network, shifted))
    for name in WIDTHS:
        torch.testing.assert_close(after.layers[name], before.layers[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("composite", ["epsilon", "zplus", "gamma"])
@pytest.mark.parametrize("kind", ["impala", "mlp", "depthwise"])
def test_relevance_is_conserved_through_sums_and_pooling(kind, composite):
    """By a plain sum's gradient it would grow from block to block: 64-fold by z+ in this network."""
    network = built(kind, bias=0)
    with torch.no_grad():
        for name in network.weighted:
            nn.init.kaiming_normal_(network.get_parameter(f"{name}.weight"), nonlinearity="relu")
            network.get_parameter(f"{name}.bias").zero_()
    result = relevance(network, network.observations.random(6, seed=0), composite, "greedy")
    last, first = result.layers["fc1"], result.layers[network.layers[0].name]
    torch.testing.assert_close(total(last), result.output, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(total(first), result.output, rtol=1e-3, atol=1e-4)


def test_mean_pooling_shares_out_what_it_gets():
    network = built("other")
    result = relevance(network, network.observations.random(6, seed=0), "epsilon", "greedy")
    assert all(layer.isfinite().all() for layer in result.layers.values())
    assert set(result.layers) == {"conv1", "conv2", "conv3", "fc1", "fc2"}
    assert result.inputs.shape == (6, 3, 40, 36)


def test_batches_add_up_to_the_whole(frames):
    network = small_network("policy")
    whole = relevance(network, frames, "gamma", "softmax", outputs=network(frames).flip(0))
    parts = list(relevance_batches(network, frames, "gamma", "softmax", 7, outputs=network(frames).flip(0)))
    assert [len(part.output) for part in parts] == [7, 7, 7, 3]
    for name, layer in whole.layers.items():
        joined = torch.cat([part.layers[name] for part in parts])
        torch.testing.assert_close(joined, layer)


def test_bytes_and_floats_are_the_same_observations(frames):
    network = small_network("q")
    by_byte, by_float = (relevance(network, given, "gamma", "greedy") for given in (frames, frames.float() / 255))
    torch.testing.assert_close(by_byte.inputs, by_float.inputs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("head", ["q", "policy"])
def test_the_network_is_left_as_it_is(frames, head):
    network = small_network(head).train()
    network(frames).sum().backward()
    network.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(network.state_dict())
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    relevance(network, frames, "gamma", "greedy")
    heat_maps(network, frames, "gamma", "greedy")
    list(gradient_batches(network, frames, "greedy", 8))
    with pytest.raises(RuntimeError):
        relevance(network, frames[:, :3], "gamma", "greedy")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter.grad, gradients[name])
        assert parameter.requires_grad == (name != "conv1.weight")
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_traced_removes_its_hooks_after_an_exception(frames):
    network = small_network("q")
    with pytest.raises(RuntimeError), traced(network):
        network(frames[:, :3])
    assert not any(module._forward_hooks for module in network.modules())


def test_works_without_gradients(frames):
    network = small_network("q")
    expected = relevance(network, frames, "gamma", "greedy")
    network.requires_grad_(False)
    with torch.no_grad():
        result = relevance(network, frames, "gamma", "greedy")
        assert not torch.is_grad_enabled()
    for name in WIDTHS:
        assert torch.equal(result.layers[name], expected.layers[name])


def test_heat_maps_change_the_first_rule_alone(frames):
    network = small_network("q", biases=False)
    maps = heat_maps(network, frames, "gamma", "greedy")
    plain = relevance(network, frames, "gamma", "greedy")
    assert maps.shape == (24, 84, 84)
    black = (frames == 0).all(1)
    assert plain.inputs.sum(1)[black].abs().max() == 0
    assert maps[black].abs().max() > 0
    boxed = relevance(network, frames, "epsilon_gamma_box", "greedy").inputs.sum(1)
    torch.testing.assert_close(heat_maps(network, frames, "epsilon_gamma_box", "greedy"), boxed)


@pytest.mark.parametrize(
    ("composite", "seed", "message"),
    [
        ("gama", "greedy", "criterion.composite=gama is unknown .did you mean gamma"),
        ("gamma", "gready", "criterion.relevance_seed=gready is unknown .did you mean greedy"),
    ],
)
def test_unknown_names_give_the_closest_match(frames, composite, seed, message):
    with pytest.raises(UserError, match=message):
        relevance(small_network("q"), frames, composite, seed)


def test_torchvision_is_left_alone_where_it_imports(frames):
    relevance(small_network("q"), frames[:1], "gamma", "greedy")
    # By now torchvision imports, by itself or mended, so another look finds nothing to do.
    assert attribution._mend_torchvision.__wrapped__() is None
