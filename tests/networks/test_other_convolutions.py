"""Networks with other convolutions than the Nature CNN's go the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, load_agent, save_agent
from lrp_compress.compression.criteria import score_channels
from lrp_compress.compression.equalization import equalize
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.compression.quantization import full_precision, quantization_aware
from lrp_compress.compression.repair import lessons, repair
from lrp_compress.config.schema import CriterionConfig, PruneConfig
from lrp_compress.deployment.c.source import example_outputs, export_c
from lrp_compress.deployment.files.onnx_models import save_float, save_int8
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn

PIXELS = torch.randint(0, 256, (48, 4, 84, 84), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
SHAPES = {
    "two": ({"conv1": 8, "conv2": 12, "fc1": 16, "fc2": 10}, {"conv1": (6, 5), "conv2": (5, 3)}),
    "four": (
        {"conv1": 8, "conv2": 8, "conv3": 12, "conv4": 8, "fc1": 16},
        {"conv1": (8, 4), "conv2": (3, 2), "conv3": (3, 1), "conv4": (3, 2)},
    ),
}
HOW = CriterionConfig("lrp", "epsilon_gamma_box", "greedy", 48, 16, 1)


@pytest.fixture(params=sorted(SHAPES))
def network(request: pytest.FixtureRequest) -> Network:
    torch.manual_seed(0)
    widths, convolutions = SHAPES[request.param]
    return nature_cnn(widths, "policy", 6, convolutions).eval()


def agent(network: Network) -> Agent:
    return Agent(network, AgentInfo("pong", "minimal", True, {}, all_channels(network.widths)))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_is_written_and_read(network: Network, tmp_path: Path):
    save_agent(tmp_path / "agent.safetensors", agent(network))
    read = load_agent(tmp_path / "agent.safetensors").network
    assert read.layers == network.layers
    assert torch.equal(read(PIXELS), network(PIXELS))
    close(fast_outputs(network, PIXELS), network(PIXELS))


def test_it_is_pruned_and_repaired(network: Network):
    scores = score_channels(network, PIXELS, network(PIXELS).detach(), HOW, seed=0)
    prune = PruneConfig(0.5, {}, "all", "layer", "one_shot", 1, 1, "none", True, "none", 1.0)
    plan = plan_pruning(scores, network, network.widths, all_channels(network.widths), prune, 0.5)
    pruned = apply_pruning(network, plan)
    assert pruned.widths == {name: width // 2 for name, width in network.widths.items()}
    masked = network.resized(network.widths)
    masked.load_state_dict(network.state_dict())
    with torch.no_grad():
        for name, width in network.widths.items():
            gone = sorted(set(range(width)) - set(plan.keep[name]))
            masked.get_submodule(name).weight[gone] = 0  # type: ignore[index]
            masked.get_submodule(name).bias[gone] = 0  # type: ignore[index]
        close(pruned(PIXELS), masked(PIXELS))
        training, held_out = (lessons(network, part, seed=0) for part in (PIXELS[:32], PIXELS[32:]))
        repaired = repair(pruned, plan.keep, training, held_out).network
        before, after = ((one(PIXELS) - network(PIXELS)).square().mean() for one in (pruned, repaired))
    assert after < before
    assert profile_network(pruned).macs < profile_network(network).macs


@torch.no_grad()
def test_its_files_compute_the_same(network: Network, tmp_path: Path):
    close(equalize(network, PIXELS)(PIXELS), network(PIXELS))
    save_float(tmp_path / "float.onnx", agent(network))
    close(OnnxPolicy(tmp_path / "float.onnx").outputs(PIXELS.numpy()), network(PIXELS))
    aware = full_precision(quantization_aware(network))
    assert torch.equal(aware(PIXELS), network(PIXELS))
    save_int8(tmp_path / "int8.onnx", agent(network), PIXELS.numpy(), per_channel=True)
    rounded = OnnxPolicy(tmp_path / "int8.onnx").outputs(PIXELS.numpy())
    assert (rounded - network(PIXELS)).abs().max() < 0.2 * network(PIXELS).abs().max()
    in_c = example_outputs(export_c(tmp_path / "int8.onnx", tmp_path / "c"), PIXELS.numpy())
    assert torch.equal(in_c, rounded)


@pytest.mark.parametrize(
    ("widths", "convolutions", "why"),
    [
        ({"conv1": 4, "fc1": 4}, {"conv1": (85, 1)}, "kernel 85"),
        ({"conv1": 4, "fc1": 4}, {"first": (8, 4)}, "has the layers"),
        ({"conv1": 4, "conv2": 4, "fc1": 4}, {"conv1": (8, 4)}, "has the layers"),
    ],
)
def test_impossible_ones(widths: dict[str, int], convolutions: dict[str, tuple[int, int]], why: str):
    with pytest.raises(ValueError, match=why):
        nature_cnn(widths, "q", 6, convolutions)
