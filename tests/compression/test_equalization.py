"""Equalised networks compute the same, with channels of nearer sizes, and lose less in int8 where sizes differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.equalization import equalize
from lrp_compress.compression.quantization import quantize_static
from lrp_compress.config.schema import RolloutsConfig
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.rollouts import collect_rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from tests.compression.networks import built, weights


@pytest.fixture(scope="module")
def teacher() -> Agent:
    return load_agent(teachers_dir() / "breakout.safetensors")


@pytest.fixture(scope="module")
def play(teacher: Agent) -> torch.Tensor:
    how = RolloutsConfig(states=96, envs=2, block=1, every=3)
    return collect_rollouts(teacher, how, Acting(action_rule("sample", "policy", 0.0), "noop", 0)).observations(
        torch.arange(96)
    )


def largest_values(network: Network, observations: torch.Tensor) -> list[torch.Tensor]:
    """Largest value of every living channel, layer by layer."""
    found: list[torch.Tensor] = []
    hooks = [
        getattr(network, f"{name}_relu").register_forward_hook(
            lambda module, inputs, output: found.append(output.transpose(0, 1).flatten(1).amax(1))
        )
        for name in network.widths
    ]
    with torch.no_grad():
        network(observations)
    for hook in hooks:
        hook.remove()
    return [values[values > 0] for values in found]


def spread(values: torch.Tensor) -> float:
    return values.log().std().item()


def test_the_outputs_stay_and_the_channels_come_nearer(teacher: Agent, play: torch.Tensor):
    equal = equalize(teacher.network, play[:48])
    reference = batched_outputs(teacher.network, play)
    assert torch.allclose(batched_outputs(equal, play), reference, atol=1e-3)
    before, after = (largest_values(network, play[:48]) for network in (teacher.network, equal))
    for layer, (own, equalised) in enumerate(zip(before, after, strict=True)):
        assert spread(equalised) < 0.8 * spread(own), layer


def test_two_dense_layers_and_dead_channels(play: torch.Tensor):
    torch.manual_seed(0)
    network = nature_cnn({"conv1": 6, "conv2": 6, "conv3": 7, "fc1": 9, "fc2": 7}, "q", 4).eval()
    with torch.no_grad():
        network.conv2.bias[3] = -1e3  # never active
    before = {name: value.clone() for name, value in network.state_dict().items()}
    equal = equalize(network, play)
    assert torch.allclose(equal(play), network(play), rtol=1e-4, atol=1e-5)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["impala", "mlp", "other", "depthwise"])
def test_other_networks_compute_the_same(kind: str):
    network = built(kind).eval()
    states = network.observations.random(16, seed=0)
    equal = equalize(network, states)
    torch.testing.assert_close(equal(states), network(states), rtol=1e-3, atol=1e-5)
    changed = {name for name in network.weighted if not torch.equal(weights(equal, name)[0], weights(network, name)[0])}
    curved = {
        "impala": set(),
        "mlp": set(network.weighted),
        "other": {"conv2", "conv3"},
        "depthwise": {"conv2", "conv4", "conv6"},
    }[kind]
    assert set(network.weighted) - changed <= curved


def test_int8_is_nearer_where_channels_differ(tmp_path: Path, teacher: Agent, play: torch.Tensor):
    torch.manual_seed(1)
    network = nature_cnn({"conv1": 6, "conv2": 6, "conv3": 7, "fc1": 12}, "policy", 4).eval()
    with torch.no_grad():  # one channel of values 50 times the others'
        network.conv3.weight[2] *= 50
        network.fc1.weight[:, 2 * 49 : 3 * 49] /= 50
        network.head.weight *= 20
    observations: np.ndarray = play.numpy()
    made = quantize_static(tmp_path / "agent.onnx", Agent(network, teacher.info), observations[:48], observations[48:])
    assert made.way == "equalized"
    assert made.chosen.error < 0.7 * made.deviations["per_channel"].error
