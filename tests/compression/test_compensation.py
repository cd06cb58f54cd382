"""Compensated rounding: weights on the grid that quantisation finds again, and outputs nearer than plain rounding's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression import compensation
from lrp_compress.compression.compensation import STEPS, compensated_rounding
from lrp_compress.compression.matrices import weight_matrix
from lrp_compress.compression.quantization import WAYS, prepared, quantize_static
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.deployment.files.onnx_models import save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.deviation import deviation
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from lrp_compress.networks.graph import Network
from lrp_compress.networks.rounding import RoundedWeight
from tests.compression.networks import NETWORKS, built


def steps(weights: Tensor, per_channel: bool) -> Tensor:
    """Weights, a row for each output, in steps of the scale that static quantisation gives them."""
    largest = weights.abs().amax(-1, keepdim=True) if per_channel else weights.abs().amax()
    return weights / (largest / STEPS).clamp_min(1e-30)


@torch.no_grad()
def nearest(network: Network) -> Network:
    """Round each weight by itself."""
    rounded = compensated_rounding(network, network.observations.random(8, seed=0))
    rounded.load_state_dict(network.state_dict())
    for name in rounded.weighted:
        layer = rounded.get_submodule(name)
        layer.weight.copy_(RoundedWeight()(layer.weight))
    return rounded


@torch.no_grad()
def error(network: Network, own: Network, states: Tensor) -> float:
    return float((network(states) - own(states)).square().mean().sqrt())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("kind", NETWORKS)
def test_weights_are_on_the_grid_and_outputs_are_nearer(kind: str, per_channel: bool) -> None:
    network = built(kind).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = network.observations.random(64, seed=1)
    rounded = compensated_rounding(network, states[:32], per_channel)
    for name in rounded.weighted:
        own = steps(weight_matrix(rounded.get_submodule(name)).detach()[..., :-1], per_channel)
        assert (own - own.round()).abs().max() < 1e-3
        assert own.abs().max() == pytest.approx(STEPS)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    if per_channel:  # on states that it was not rounded with
        assert error(rounded, network, states[32:]) < 0.9 * error(nearest(network), network, states[32:])


@pytest.mark.parametrize("way", WAYS)
def test_static_quantisation_finds_the_same_weights(tmp_path: Path, way: str) -> None:
    torch.manual_seed(0)
    network = built("q").eval()
    agent = Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(network.widths)))
    states = network.observations.random(32, seed=0).numpy()
    made = prepared(agent, way, states)
    save_int8(tmp_path / "agent.onnx", made, states, per_channel=way != "per_tensor")
    stored = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "agent.onnx").graph.initializer}
    for name in network.weighted:
        values = stored[f"{name}.weight_quantized"].astype(np.float32)
        wanted = made.network.get_submodule(name).weight.detach()
        values = values.T if values.shape != wanted.shape else values
        own = steps(wanted.flatten(1), per_channel=way != "per_tensor")
        assert (own - torch.from_numpy(values.copy()).flatten(1)).abs().max() < 1e-3


def test_inputs_that_never_change_and_weights_of_nothing_do_no_harm() -> None:
    network = built("q").eval()
    with torch.no_grad():
        network.get_submodule("fc1").weight.zero_()
        network.get_submodule("conv2").bias.fill_(-1e6)  # conv3 sees zeros alone
        rounded = compensated_rounding(network, network.observations.random(8, seed=0))
        states = network.observations.random(8, seed=1)
        assert torch.allclose(rounded(states), network(states), rtol=0.05, atol=1e-4)
    assert all(value.isfinite().all() for value in rounded.state_dict().values())


def test_inputs_that_stay_where_they_are_do_no_harm() -> None:
    network = built("mlp").eval()
    states = (1e4 * torch.randn(17)).repeat(173, 1)
    with torch.no_grad():
        rounded = compensated_rounding(network, states)
        assert torch.allclose(rounded(states), network(states), rtol=0.05, atol=0.02)


def test_wide_layers_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network = built("q").eval()
    states = network.observations.random(96, seed=0)
    monkeypatch.setattr(compensation, "MOST_INPUTS", 50)
    parts = compensated_rounding(network, states[:64])
    assert error(parts, network, states[64:]) < 0.9 * error(nearest(network), network, states[64:])


@pytest.mark.slow
def test_a_shipped_agent_loses_less_than_half_of_what_it_lost(tmp_path: Path) -> None:
    agent = load_agent(teachers_dir() / "freeway.safetensors")
    how = RolloutsConfig(states=128, envs=4, block=1, every=8)
    played = collect_rollouts(agent, how, Acting(action_rule("auto", "q", 0.001), "noop", 0))
    states = played.observations(torch.arange(128)).numpy()
    compensated = quantize_static(tmp_path / "agent.onnx", agent, states[:64], states[64:]).chosen.error
    save_int8(tmp_path / "plain.onnx", agent, states[:64], per_channel=True)
    own = agent.network(torch.from_numpy(states[64:])).detach()
    plain = deviation(OnnxPolicy(tmp_path / "plain.onnx").outputs(states[64:]), own).error
    assert compensated < 0.5 * plain
