"""Repair: exact where nothing is lost, no change where nothing is missing, and nearer to every shipped teacher."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from lrp_compress.agents.checkpoints import all_channels, load_agent
from lrp_compress.agents.inference import batched_outputs
from lrp_compress.agents.networks import CONV3_AREA, PolicyNetwork
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.atari.acting import action_rule
from lrp_compress.atari.rollouts import Rollouts, collect_rollouts
from lrp_compress.checks import conf_dir
from lrp_compress.compression.criteria import score_channels
from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning
from lrp_compress.compression.repair import STRENGTHS, held_out_games, lessons, repair
from lrp_compress.config import CriterionConfig, PruneConfig, RolloutsConfig

GAMES = ("breakout", "freeway", "pong", "road_runner")
WIDTHS = {
    "policy": {"conv1": 4, "conv2": 5, "conv3": 6, "fc1": 10},
    "q": {"conv1": 4, "conv2": 5, "conv3": 6, "fc1": 10, "fc2": 8},
    "dueling": {"conv1": 4, "conv2": 5, "conv3": 6, "value_fc1": 10, "advantage_fc1": 8},
}


def played(game: str, states: int) -> Rollouts:
    agent = load_agent(teachers_dir() / f"{game}.safetensors")
    rule = action_rule("auto", agent.network.head_kind, 0.001)
    return collect_rollouts(agent, RolloutsConfig(states=states, envs=8, block=4, every=4), rule, "noop", seed=0)


@pytest.fixture(scope="module")
def states() -> Tensor:
    return played("pong", 384).observations(torch.arange(384))


def alive(head: str) -> PolicyNetwork:
    torch.manual_seed(0)
    network = PolicyNetwork(WIDTHS[head], head, 6).eval()
    with torch.no_grad():
        for name in network.widths:
            network.get_submodule(name).bias += 0.3
    return network


@torch.no_grad()
def with_copies(network: PolicyNetwork) -> PolicyNetwork:
    """Give every channel an exact copy behind it, whose share of what follows differs from its original's."""
    doubled = PolicyNetwork({name: 2 * width for name, width in network.widths.items()}, network.head_kind, 6).eval()
    for name, module in network.named_children():
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            continue
        weight, twin = module.weight, doubled.get_submodule(name)
        if name != "conv1":  # each copy's readers take a part of what they took of the original
            share = torch.rand(weight.shape[1]).view([1, -1] + [1] * (weight.dim() - 2))
            parts = [weight * share, weight * (1 - share)]
            if name.endswith("fc1"):  # a map's places lie together
                parts = [part.view(len(weight), -1, CONV3_AREA) for part in parts]
            weight = torch.cat(parts, 1).flatten(1) if weight.dim() == 2 else torch.cat(parts, 1)
        hidden = name in network.widths
        twin.weight.copy_(torch.cat([weight, weight]) if hidden else weight)
        twin.bias.copy_(torch.cat([module.bias, module.bias]) if hidden else module.bias)
    return doubled


@pytest.mark.parametrize("head", WIDTHS)
def test_removed_copies_are_made_up_for_exactly(head: str, states: Tensor) -> None:
    teacher = with_copies(alive(head))
    keep = {name: list(range(width)) for name, width in WIDTHS[head].items()}
    pruned = apply_pruning(teacher, PruningPlan(keep, keep, 0.5, 0.5))
    training, held_out = (lessons(teacher, part, seed=0) for part in (states[:320], states[320:]))
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    repaired = repair(pruned, keep, training, held_out)
    outputs, wanted = (batched_outputs(network, states[320:]) for network in (repaired.network, teacher))
    lost = (batched_outputs(pruned, states[320:]) - wanted).square().mean()
    assert (outputs - wanted).square().mean() < 1e-4 * lost
    assert all(value.equal(before[name]) for name, value in pruned.state_dict().items())


@pytest.mark.parametrize("head", WIDTHS)
@pytest.mark.parametrize("strength", [None, 1e-3])
def test_what_lost_nothing_does_not_change(head: str, strength: float | None, states: Tensor) -> None:
    network = alive(head)
    learned = lessons(network, states[:128], seed=0)
    repaired = repair(network, all_channels(network.widths), learned, learned, strength).network
    for name, value in network.state_dict().items():
        torch.testing.assert_close(repaired.state_dict()[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("game", GAMES)
def test_every_shipped_agent_comes_nearer_to_its_teacher(game: str) -> None:
    teacher, play = load_agent(teachers_dir() / f"{game}.safetensors").network, played(game, 1536)
    out = held_out_games(play.episodes, 1 / 3)
    seen, unseen = (play.observations(chosen.nonzero().flatten()) for chosen in (~out, out))
    training, held_out = lessons(teacher, seen, 0), lessons(teacher, unseen[::2].contiguous(), 0)
    judged, wanted = unseen[1::2].contiguous(), play.outputs[out][1::2]
    temperature = default_temperature(teacher.head_kind, wanted)
    how = CriterionConfig("taylor", "epsilon", "greedy", states=128, batch_size=64)
    scores = score_channels(teacher, seen, play.outputs[~out], how, seed=0)
    for ratio in (0.3, 0.5, 0.8):
        prune = PruneConfig(ratio, {}, "all", "layer", "one_shot", 1, 1, "none", True)
        plan = plan_pruning(scores, teacher, teacher.widths, all_channels(teacher.widths), prune, ratio)
        pruned = apply_pruning(teacher, plan)
        result = repair(pruned, plan.kept_original, training, held_out)
        assert set(result.strengths.values()) <= set(STRENGTHS)
        lost, left = (kl(batched_outputs(net, judged), wanted, temperature) for net in (pruned, result.network))
        assert left < (lost if ratio > 0.5 else 0.5 * lost)


def test_the_default_criterion_beats_chance_before_and_after_repair() -> None:
    """On Breakout, where other composites choose worse than chance; `benchmarks/criteria.py` compares all."""
    teacher, play = load_agent(teachers_dir() / "breakout.safetensors").network, played("breakout", 640)
    default: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf_dir() / "criterion" / "lrp.yaml"))
    how = CriterionConfig(**default | {"states": 64})
    out = held_out_games(play.episodes, 1 / 5)
    seen, judged = (play.observations(chosen.nonzero().flatten()) for chosen in (~out, out))
    training = lessons(teacher, seen, 0)

    def divergences(how: CriterionConfig, seed: int) -> Tensor:
        scores = score_channels(teacher, seen, play.outputs[~out], how, seed)
        prune = PruneConfig(0.5, {}, "all", "layer", "one_shot", 1, 1, "none", True)
        plan = plan_pruning(scores, teacher, teacher.widths, all_channels(teacher.widths), prune, 0.5)
        pruned = apply_pruning(teacher, plan)
        repaired = repair(pruned, plan.kept_original, training, (), strength=0.1).network
        return torch.stack(
            [kl(batched_outputs(network, judged), play.outputs[out], 1.0) for network in (pruned, repaired)]
        )

    chance = torch.stack([divergences(dataclasses.replace(how, name="random"), seed) for seed in range(3)])
    assert (divergences(how, 0) < chance.mean(0)).all()


def test_whole_games_are_held_out() -> None:
    episodes = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 3])
    assert held_out_games(episodes, 1 / 6).tolist() == [False] * 8 + [True] * 2
    assert held_out_games(episodes, 0.3).tolist() == [False] * 5 + [True] * 5
    assert held_out_games(torch.zeros(10, dtype=torch.int64), 0.2).tolist() == [False] * 8 + [True] * 2


def test_the_network_itself_is_left_alone(states: Tensor) -> None:
    network = alive("policy")
    hooks = copy.copy(network.head._forward_pre_hooks)
    repair(network, all_channels(network.widths), lessons(network, states[:64], 0), lessons(network, states[:64], 0))
    assert network.head._forward_pre_hooks == hooks
    assert not any(module._forward_hooks for module in network.modules())
