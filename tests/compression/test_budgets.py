"""Budgets: widths that meet a share to within a channel, and go where they cost least."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping

import pytest
import torch

from lrp_compress.agents.checkpoints import all_channels
from lrp_compress.compression.budgets import (
    Costs,
    check_budget,
    choose_widths,
    measure_curves,
    with_widths,
)
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.compression.schedules import cumulative_ratios
from lrp_compress.config.schema import PruneConfig
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import CONVS, NETWORKS, built
from tests.compression.test_tuning import played, small_network

PRUNE = PruneConfig(0.5, {}, "all", "layer", "one_shot", 1, 1, "none", True, "params", 0.3)


def scored(widths: Mapping[str, int]) -> ChannelScores:
    generator = torch.Generator().manual_seed(0)
    return ChannelScores({name: torch.rand(width, generator=generator) for name, width in widths.items()}, "random", 0)


def bent(widths: Mapping[str, int]) -> dict[str, dict[int, float]]:
    """Curves that rise the faster the less is left, some with a dent, as noise makes them."""
    curves = {}
    for place, (name, width) in enumerate(widths.items(), start=1):
        kept = sorted({1, width // 4, width // 2, 3 * width // 4, width})
        curves[name] = {one: place * (1 - one / width) ** 2 for one in kept}
        curves[name][width // 2] *= 1.5
    return curves


def cost(widths: Mapping[str, int], network: Network, budget: str) -> int:
    profile = profile_network(network.resized(widths))
    return profile.params if budget == "params" else profile.macs


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("budget", ["params", "macs"])
def test_costs_are_those_of_the_profile(kind: str, budget: str) -> None:
    network = built(kind)
    costs = Costs(network, budget)
    for keep in (1, 3, 7):
        widths = {name: min(keep + place, width) for place, (name, width) in enumerate(network.widths.items())}
        assert costs(widths) == cost(widths, network, budget)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_the_plan_meets_the_budget_to_within_a_channel(kind: str, budget: str, share: float) -> None:
    network = built(kind)
    config = dataclasses.replace(PRUNE, budget=budget, share=share)
    widths = choose_widths(network, bent(network.widths), config)
    settled = with_widths(config, network.widths, widths)
    plan = plan_pruning(
        scored(network.widths), network, network.widths, all_channels(network.widths), settled, settled.ratio
    )
    pruned = apply_pruning(network, plan)
    assert pruned.widths == widths
    assert plan.ratio_reached == pytest.approx(settled.ratio)
    allowed = share * cost(network.widths, network, budget)
    assert cost(pruned.widths, network, budget) <= allowed
    for name, width in widths.items():
        if width < network.widths[name]:
            assert cost(widths | {name: width + 1}, network, budget) > allowed


@pytest.mark.parametrize("schedule", ["linear", "cubic"])
def test_several_steps_end_at_the_budget(schedule: str) -> None:
    teacher = built("q")
    config = dataclasses.replace(PRUNE, schedule=schedule, steps=3, share=0.2)
    settled = with_widths(config, teacher.widths, choose_widths(teacher, bent(teacher.widths), config))
    network, kept = teacher, all_channels(teacher.widths)
    for ratio in cumulative_ratios(schedule, settled.ratio, settled.steps):
        plan = plan_pruning(scored(network.widths), network, teacher.widths, kept, settled, ratio)
        network, kept = apply_pruning(network, plan), plan.kept_original
    assert cost(network.widths, teacher, "params") <= 0.2 * cost(teacher.widths, teacher, "params")


@pytest.mark.parametrize("budget", ["params", "macs"])
def test_greedy_steps_are_near_the_best_of_all_widths(budget: str) -> None:
    network = nature_cnn({"conv1": 6, "conv2": 6, "conv3": 6, "fc1": 12}, "policy", 4)
    curves = {
        name: {one: place * (width / one - 1) for one in range(1, width + 1)}
        for place, (name, width) in enumerate(network.widths.items(), start=1)
    }
    config = dataclasses.replace(PRUNE, budget=budget, share=0.35)
    allowed = 0.35 * cost(network.widths, network, budget)

    def divergence(widths: Mapping[str, int]) -> float:
        return sum(curves[name][width] for name, width in widths.items())

    costs = Costs(network, budget)
    every = itertools.product(*(range(1, width + 1) for width in network.widths.values()))
    possible = (dict(zip(network.widths, widths, strict=True)) for widths in every)
    best = min(divergence(widths) for widths in possible if costs(widths) <= allowed)
    assert divergence(choose_widths(network, curves, config)) <= 1.1 * best


def test_min_width_and_round_to_hold() -> None:
    network = nature_cnn(NATURE_WIDTHS, "policy", 6)
    config = dataclasses.replace(PRUNE, share=0.1, min_width=10, round_to="cortex_m")
    widths = choose_widths(network, bent(network.widths), config)
    assert all(width % 4 == 0 and width >= 12 for width in widths.values())
    assert cost(widths, network, "params") <= 0.1 * cost(network.widths, network, "params")


def test_only_prunable_layers_pay() -> None:
    network = built("q")
    config = dataclasses.replace(PRUNE, layers="conv", share=0.6)
    widths = choose_widths(network, bent(network.widths), config)
    assert list(widths) == ["conv1", "conv2", "conv3"]
    assert cost(network.widths | widths, network, "params") <= 0.6 * cost(network.widths, network, "params")


@pytest.mark.parametrize(
    "changes",
    [{"share": 1e-6}, {"share": 0.5, "min_width": 500}, {"share": 0.05, "layers": "conv"}, {"round_to": "cortex_m"}],
    ids=str,
)
def test_shares_that_cannot_be_met_are_refused_in_one_line(changes: dict[str, object]) -> None:
    network, config = built("q"), dataclasses.replace(PRUNE, **{"share": 0.01, **changes})  # type: ignore[arg-type]
    for refused in (lambda: check_budget(network, config), lambda: choose_widths(network, bent(CONVS), config)):
        with pytest.raises(UserError, match=r"prune.share=.* cannot be met: .* of the params remain") as caught:
            refused()
        assert "\n" not in str(caught.value)
    check_budget(network, dataclasses.replace(config, budget="none"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["q", "policy"])
def test_curves_are_those_of_one_layer_alone(head: str) -> None:
    network = small_network(head)
    curves = measure_curves(network, scored(network.widths), played(network), PRUNE, seed=0)
    assert list(curves) == list(network.widths)
    for name, curve in curves.items():
        assert curve[network.widths[name]] == 0
        assert min(curve) == 1
        assert all(value >= 0 for value in curve.values())
    assert curves == measure_curves(network, scored(network.widths), played(network), PRUNE, seed=0)
    assert max(curves["conv3"].values()) > 0
