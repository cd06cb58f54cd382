"""Tuning: rules per layer that are spelled out, the same for the same seed, and never worse than the default."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from lrp_compress.compression import tuning
from lrp_compress.compression.attribution import relevance
from lrp_compress.compression.composites import GROUPS, RULES, find_composite
from lrp_compress.compression.tuning import Effort, Exam, tune, tuned_groups
from lrp_compress.config.schema import CriterionConfig, PruneConfig
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import built

pytestmark = pytest.mark.slow

WIDTHS = {
    "policy": {"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16},
    "q": {"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16, "fc2": 8},
}
CRITERION = CriterionConfig("lrp_tuned", "epsilon", "greedy", states=32, batch_size=16, trials=9)
PRUNE = PruneConfig(0.5, {}, "all", "layer", "one_shot", 1, 1, "none", True)


def small_network(head: str) -> Network:
    torch.manual_seed(3)
    network = nature_cnn(WIDTHS[head], head, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.eval()


def played(network: Network) -> Rollouts:
    """72 states of six games of noise, which changes slowly enough that states differ in more than noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (75, 1, 7, 7), generator=generator, dtype=torch.uint8)
    frames = coarse.repeat_interleave(12, 2).repeat_interleave(12, 3)[:, 0].contiguous()
    rollouts = Rollouts(frames, torch.arange(72), torch.empty(0), torch.arange(72) // 12, "noop", 0)
    with torch.inference_mode():
        return dataclasses.replace(rollouts, outputs=network(rollouts.observations(torch.arange(72))))


@pytest.fixture(autouse=True)
def little_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "TRIAL", Effort((0.5,), 16, 32, 12))
    monkeypatch.setattr(tuning, "FINAL", Effort((0.3, 0.6), 32, 60, 12))


@pytest.mark.parametrize("head", WIDTHS)
def test_the_rules_found_are_the_same_again_and_no_worse_than_the_default(head: str) -> None:
    network = small_network(head)
    rollouts = played(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, again = (tune(network, rollouts, CRITERION, PRUNE, seed=1) for _ in range(2))
    assert first == again
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    default = "head epsilon, dense epsilon, conv3 epsilon, conv2 epsilon"
    assert next(iter(first.trials)) == next(iter(first.finals)) == default
    assert len(first.trials) > len(tuning.STARTS)  # the study went on from what it was told to start with
    assert first.finals[first.composite] == min(first.finals.values()) <= first.finals[default]
    find_composite(first.composite)


def test_many_convolutions_share_a_rule_and_networks_without_have_none() -> None:
    assert tuned_groups(built("impala")) == ("head", "dense", "conv")
    assert tuned_groups(built("mlp")) == ("head", "dense")
    network = built("impala")
    found = tune(network, played(network), dataclasses.replace(CRITERION, trials=6), PRUNE, seed=1)
    assert next(iter(found.trials)) == "head epsilon, dense epsilon, conv epsilon"
    states = played(network).observations(torch.arange(8))
    one, other = (relevance(network, states, how, "greedy") for how in ("conv zplus", "epsilon_plus"))
    assert all(torch.equal(one.layers[layer], other.layers[layer]) for layer in one.layers)


def test_another_seed_tries_other_rules() -> None:
    network = small_network("policy")
    one, other = (tune(network, played(network), CRITERION, PRUNE, seed) for seed in (1, 2))
    assert one.trials.keys() != other.trials.keys()


def test_networks_are_repaired_before_they_are_judged() -> None:
    network = small_network("policy")
    efforts = (Effort((0.3,), 16, 60, 12, repaired) for repaired in (True, False))
    left, lost = (Exam(network, played(network), CRITERION, PRUNE, 0, effort) for effort in efforts)
    assert left("conv2 epsilon") < 0.8 * lost("conv2 epsilon")


def test_only_the_layers_that_may_lose_channels_are_judged() -> None:
    network = small_network("policy")
    effort = Effort((0.5,), 16, 60, 12, repaired=False)
    every, conv = (
        Exam(network, played(network), CRITERION, dataclasses.replace(PRUNE, layers=layers), 0, effort)
        for layers in ("all", "conv")
    )
    assert every("conv2 epsilon") != conv("conv2 epsilon")


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("head gamma 0.25, dense gamma 0.25, conv3 gamma 0.25, conv2 gamma 0.25, conv1 gamma 0.25", "gamma"),
        ("conv1 alpha_beta 2, conv2 alpha_beta 2, conv3 alpha_beta 2", "alpha2_beta1"),
        ("dense zplus, conv1 zplus, conv2 zplus, conv3 zplus", "zplus_epsilon"),
        ("head epsilon", "epsilon"),
    ],
)
@pytest.mark.parametrize("head", WIDTHS)
def test_spelled_composites_are_those_of_a_name(spelled: str, name: str, head: str) -> None:
    network = small_network(head)
    states = played(network).observations(torch.arange(8))
    one, other = (relevance(network, states, composite, "greedy") for composite in (spelled, name))
    assert torch.equal(one.inputs, other.inputs)
    assert all(torch.equal(one.layers[layer], other.layers[layer]) for layer in network.widths)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_tuned_matters_below_its_layer_and_conv1s_to_no_channel(rule: str) -> None:
    network = small_network("policy")
    states = played(network).observations(torch.arange(8))
    parameter = {"gamma": " 0.7", "alpha_beta": " 2"}.get(rule, "")
    plain = relevance(network, states, "epsilon", "greedy").layers
    read_by = {"head": "fc1", "dense": "conv3", "conv": "conv2", "conv3": "conv2", "conv2": "conv1"}
    for group in GROUPS:
        changed = relevance(network, states, f"{group} {rule}{parameter}", "greedy").layers
        below = [*network.widths][: [*network.widths].index(read_by[group]) + 1] if group in read_by else []
        for layer in network.widths:
            assert torch.equal(changed[layer], plain[layer]) == (layer not in below or rule == "epsilon")


@pytest.mark.parametrize(
    ("spelled", "message"),
    [
        ("hed epsilon", r"group=hed is unknown .did you mean head"),
        ("head gama 0.3", r"rule=gama is unknown .did you mean gamma"),
        ("head gamma", r"gamma takes a number of at least 0, got none"),
        ("head gamma -1", r"gamma takes a number of at least 0, got -1"),
        ("conv2 alpha_beta 0.5", r"alpha_beta takes a number of at least 1, got 0.5"),
        ("head epsilon 0.3", r"epsilon takes no number, got 0.3"),
        ("head gamma x", r"gamma takes a number of at least 0, got x"),
        ("gama", r"criterion.composite=gama is unknown .did you mean gamma"),
        ("head epsilon,", r"group= is unknown"),
    ],
)
def test_rules_that_do_not_exist_are_named_in_one_line(spelled: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_composite(spelled)
    assert "\n" not in str(caught.value)
