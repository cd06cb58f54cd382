"""Int8: the nearer file is kept, and the network that learns for int8 computes what the int8 file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels
from lrp_compress.compression.quantization import full_precision, quantization_aware, quantize_static
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import deviation
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from tests.compression.networks import NETWORKS, built

WIDTHS = {"conv1": 6, "conv2": 6, "conv3": 7, "fc1": 12}


def agent() -> Agent:
    torch.manual_seed(0)
    network = nature_cnn(WIDTHS, "policy", 6).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2  # a fresh network hardly tells one state from another
    return Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(network.widths)))


@pytest.fixture(scope="module")
def play() -> NDArray[np.uint8]:
    how = RolloutsConfig(states=96, envs=2, block=1, every=3)
    played = collect_rollouts(agent(), how, Acting(action_rule("sample", "policy", 0.0), "noop", 0))
    return played.observations(torch.arange(96)).numpy()


def test_the_nearer_file_is_kept(tmp_path: Path, play: NDArray[np.uint8]) -> None:
    own = agent()
    with torch.no_grad():  # one unit of far larger weights: a scale for all leaves the others few values
        own.network.fc1.weight[0] *= 100
        own.network.head.weight[:, 0] /= 100
    made = quantize_static(tmp_path / "agent.onnx", own, play[:48], play[48:])
    assert made.per_channel
    assert made.deviations["per_channel"].error < made.deviations["per_tensor"].error
    assert made.chosen.error == min(deviation.error for deviation in made.deviations.values())
    outputs = OnnxPolicy(tmp_path / "agent.onnx").outputs(play[48:])
    reference = own.network(torch.from_numpy(play[48:])).detach()
    default = OnnxPolicy(tmp_path / "agent.onnx", exact=False).outputs(play[48:])
    assert made.default_session_differs == pytest.approx(1 - float((default == outputs).all(1).float().mean()))
    assert (outputs - reference).abs().max().item() == pytest.approx(made.chosen.max_difference, rel=1e-3)


def test_the_aware_network_computes_what_the_int8_file_does(tmp_path: Path, play: NDArray[np.uint8]) -> None:
    own = agent()
    observations = torch.from_numpy(play)
    aware = quantization_aware(own.network).train()
    with torch.no_grad():
        for _ in range(3):
            fast_outputs(aware, observations)  # sees the ranges
    aware.eval()
    exact = own.network(observations).detach()
    save_int8(tmp_path / "agent.onnx", own, play, per_channel=True)
    real = OnnxPolicy(tmp_path / "agent.onnx").outputs(play)
    rounding = deviation(exact, real).error
    assert deviation(fast_outputs(aware, observations).detach(), real).error < 0.7 * rounding
    for name, largest in largest_activations(own.network, play).items():
        seen = aware.get_submodule(f"{name}_relu_rounded").high
        assert seen.item() == pytest.approx(largest, rel=0.02)
        seen.fill_(largest)
    # The same ranges, the same grid: what is left are sums that fall on the other side of the middle between two steps.
    assert deviation(fast_outputs(aware, observations).detach(), real).error < 0.1 * rounding


def largest_activations(network: Network, play: NDArray[np.uint8]) -> dict[str, float]:
    """Upper ends of the ranges that `save_int8` sets: of the float32 network, where one state has a white pixel."""
    calibration = torch.from_numpy(play).clone()
    calibration[0, 0, 0, 0] = 255
    found = {}
    for name in network.widths:
        relu = network.get_submodule(f"{name}_relu")
        relu.register_forward_hook(lambda _, inputs, output, name=name: found.update({name: output.max().item()}))
    with torch.no_grad():
        network(calibration)
    return found


def test_gradients_pass_the_rounding_and_ranges_follow(play: NDArray[np.uint8]) -> None:
    aware = quantization_aware(agent().network).train()
    fast_outputs(aware, torch.from_numpy(play[:8])).square().sum().backward()
    for name in WIDTHS:
        gradient = getattr(aware, name).parametrizations.weight.original.grad
        assert gradient.abs().sum() > 0
    assert all(aware.get_submodule(f"{name}_relu_rounded").high > 0 for name in WIDTHS)


@pytest.mark.parametrize("kind", NETWORKS)
def test_full_precision_gives_the_weights_back(kind: str) -> None:
    network = built(kind)
    back = full_precision(quantization_aware(network))
    assert back.widths == network.widths
    assert not back.training
    for name, value in network.state_dict().items():
        assert back.state_dict()[name].equal(value)
    assert back.layers == network.layers


@pytest.mark.parametrize("kind", ["impala", "mlp", "other", "depthwise"])
def test_aware_networks_of_other_kinds_are_near_their_own(kind: str) -> None:
    network = built(kind).eval()
    aware = quantization_aware(network).train()
    states = network.observations.random(64, seed=0)
    with torch.no_grad():
        for _ in range(3):
            aware(states)
        own, rounded = network(states), aware.eval()(states)
    assert 0 < (rounded - own).std() < 0.15 * own.std()
