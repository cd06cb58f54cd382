"""Which channels stay, and that the smaller network computes what the masked one does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping

import pytest
import torch
import torch_pruning as tp
from torch import nn

from lrp_compress.agents.checkpoints import all_channels
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.pruning import PruningPlan, apply_pruning, plan_pruning, prunable_layers
from lrp_compress.compression.schedules import cumulative_ratios
from lrp_compress.config.schema import PruneConfig
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import NATURE_WIDTHS, nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import CONVS, NETWORKS, built

CONFIG = PruneConfig(
    ratio=0.5,
    layer_ratios={},
    layers="all",
    scope="layer",
    schedule="one_shot",
    steps=1,
    min_width=1,
    round_to="none",
    evaluate=True,
)


def configured(**changes: object) -> PruneConfig:
    return dataclasses.replace(CONFIG, **changes)  # type: ignore[arg-type]


def scored(widths: Mapping[str, int], seed: int = 0) -> ChannelScores:
    generator = torch.Generator().manual_seed(seed)
    raw = {name: torch.rand(width, generator=generator) for name, width in widths.items()}
    return ChannelScores({name: scores / scores.sum() for name, scores in raw.items()}, "random", 0)


def planned(scores: ChannelScores, network: Network, config: PruneConfig, ratio: float) -> PruningPlan:
    """Plan the first step of an unpruned network."""
    return plan_pruning(scores, network, network.widths, all_channels(network.widths), config, ratio)


def widths_of(plan: PruningPlan) -> dict[str, int]:
    return {name: len(indices) for name, indices in plan.keep.items()}


def masked(network: Network, kept: Mapping[str, list[int]]) -> Network:
    """Let every layer read zeros in place of the channels that are not kept."""
    result = copy.deepcopy(network)
    for name in network.weighted[1:]:
        value = network.value(network.layer(name).inputs[0])
        if value.channels is None:
            continue
        mask = torch.zeros(network.widths[value.channels], value.positions)
        mask[kept[value.channels]] = 1
        mask = mask.flatten() if network.layer(name).op == "dense" else mask.flatten()[:, None, None]
        result.get_submodule(name).register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,))
    return result


def assert_same_outputs(one: Network, other: Network) -> None:
    observations = one.observations.random(8, seed=1)
    with torch.no_grad():
        expected = one(observations)
        torch.testing.assert_close(other(observations), expected, rtol=0, atol=1e-5)
    assert expected.std() > 1e-3  # outputs that do not depend on the input would agree for nothing


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_pruned_equals_masked(kind: str, scope: str, ratio: float) -> None:
    network = built(kind)
    plan = planned(scored(network.widths), network, configured(scope=scope, ratio=ratio), ratio)
    pruned = apply_pruning(network, plan)
    assert pruned.widths == widths_of(plan) != network.widths
    assert_same_outputs(masked(network, plan.keep), pruned)


@pytest.mark.parametrize("kind", NETWORKS)
def test_two_steps_equal_one_mask_of_the_teacher(kind: str) -> None:
    teacher = built(kind)
    first = planned(scored(teacher.widths), teacher, CONFIG, 0.3)
    middle = apply_pruning(teacher, first)
    second = plan_pruning(scored(middle.widths, 1), middle, teacher.widths, first.kept_original, CONFIG, 0.5)
    student = apply_pruning(middle, second)
    assert {name: set(kept) for name, kept in second.kept_original.items()} != {
        name: set(range(width)) for name, width in student.widths.items()
    }
    assert_same_outputs(masked(teacher, second.kept_original), student)


def test_kept_original_finds_the_weights_back_in_the_teacher() -> None:
    teacher = built("q")
    network, kept = teacher, all_channels(teacher.widths)
    for step, ratio in enumerate([0.2, 0.4, 0.6]):
        plan = plan_pruning(scored(network.widths, step), network, teacher.widths, kept, CONFIG, ratio)
        network, kept = apply_pruning(network, plan), plan.kept_original
    conv1, conv2, conv3, fc1 = (kept[name] for name in teacher.widths)
    ours, theirs = network.state_dict(), teacher.state_dict()
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"][conv1])
    assert torch.equal(ours["conv2.weight"], theirs["conv2.weight"][conv2][:, conv1])
    assert torch.equal(ours["conv3.bias"], theirs["conv3.bias"][conv3])
    columns = [channel * 49 + position for channel in conv3 for position in range(49)]
    assert torch.equal(ours["fc1.weight"], theirs["fc1.weight"][fc1][:, columns])
    assert torch.equal(ours["head.weight"], theirs["head.weight"][:, fc1])
    assert torch.equal(ours["head.bias"], theirs["head.bias"])


def test_nature_network_at_half_the_channels() -> None:
    network = nature_cnn(NATURE_WIDTHS, "q", 6)
    pruned = apply_pruning(network, planned(scored(network.widths), network, CONFIG, 0.5))
    assert pruned.widths == {"conv1": 16, "conv2": 32, "conv3": 32, "fc1": 256}
    assert sum(parameter.numel() for parameter in pruned.parameters()) == 424_790


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_given_network_stays_and_the_new_one_is_its_own(context: Callable[[], object], frozen: bool) -> None:
    network = built("q").eval().requires_grad_(not frozen)
    before = copy.deepcopy(network.state_dict())
    plan = planned(scored(network.widths), network, CONFIG, 0.5)
    random_state = torch.get_rng_state()
    with context():  # type: ignore[attr-defined]
        pruned = apply_pruning(network, plan)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert pruned.widths == widths_of(plan)
    assert not pruned.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in pruned.parameters())
    pruned(torch.rand(1, 4, 84, 84)).sum().backward()
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter.fill_(7)
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    assert all(parameter.requires_grad is not frozen and parameter.grad is None for parameter in network.parameters())


def test_ratio_zero_keeps_everything() -> None:
    network = built("q")
    for scope in ("layer", "global"):
        plan = planned(scored(network.widths), network, configured(scope=scope, ratio=0.0, round_to="desktop"), 0.0)
        assert plan.keep == plan.kept_original == all_channels(network.widths)
        assert (plan.ratio_asked, plan.ratio_reached) == (0, 0)
        pruned = apply_pruning(network, plan)
        assert pruned is not network
        assert_same_outputs(network, pruned)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_ratios_of_four_steps_count_against_the_original(scope: str) -> None:
    teacher = nature_cnn({"conv1": 20, "conv2": 40, "conv3": 60, "fc1": 80}, "q", 6)
    config = configured(scope=scope, ratio=0.8, steps=4)
    network, kept = teacher, all_channels(teacher.widths)
    for step, ratio in enumerate(cumulative_ratios("linear", 0.8, 4)):
        plan = plan_pruning(scored(network.widths, step), network, teacher.widths, kept, config, ratio)
        network, kept = apply_pruning(network, plan), plan.kept_original
        assert plan.ratio_asked == ratio
        assert plan.ratio_reached == pytest.approx(ratio)
        if scope == "layer":
            assert network.widths == {name: round(width * (1 - ratio)) for name, width in teacher.widths.items()}
        else:
            assert sum(network.widths.values()) == round(200 * (1 - ratio))


def test_the_highest_scores_of_a_layer_stay() -> None:
    network = built("q")
    scores = scored(network.widths)
    plan = planned(scores, network, CONFIG, 0.25)
    for name, indices in plan.keep.items():
        gone = sorted(set(range(network.widths[name])) - set(indices))
        assert indices == sorted(indices)
        assert len(gone) == round(network.widths[name] * 0.25)
        assert scores.scores[name][indices].min() >= scores.scores[name][gone].max()


def test_global_scope_removes_the_lowest_shares_of_all_layers() -> None:
    network = built("q")
    scores = scored(network.widths)
    plan = planned(scores, network, configured(scope="global"), 0.4)
    kept = torch.cat([scores.scores[name][indices] for name, indices in plan.keep.items()])
    everything = torch.cat(list(scores.scores.values())).sort(descending=True).values
    assert len(kept) == 50 - 20
    assert torch.equal(kept.sort(descending=True).values, everything[:30])
    assert plan.ratio_reached == pytest.approx(0.4)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["all equal", "dead layer", "all dead", "many dead channels"])
def test_global_scope_is_exact_whatever_ties(ratio: float, kind: str) -> None:
    network = built("q")
    tensors = dict(scored(network.widths).scores)
    if kind == "dead layer":
        tensors["conv3"] = torch.zeros(10)
    elif kind == "many dead channels":
        tensors["fc1"][:15] = 0
        tensors["conv2"][3:9] = 0
    else:
        tensors = {name: torch.full((width,), float(kind == "all equal")) for name, width in network.widths.items()}
    scores = ChannelScores(tensors, "lrp", 64)
    plan = planned(scores, network, configured(scope="global"), ratio)
    assert sum(widths_of(plan).values()) == 50 - round(50 * ratio)
    assert min(widths_of(plan).values()) >= 1
    assert plan == planned(scores, network, configured(scope="global"), ratio)
    if kind == "dead layer" and ratio == 0.5:
        assert plan.keep["conv3"] == [0]


def test_equal_scores_keep_the_lower_index() -> None:
    network = built("q")
    scores = ChannelScores({name: torch.ones(width) for name, width in network.widths.items()}, "lrp", 64)
    plan = planned(scores, network, CONFIG, 0.5)
    assert plan.keep == {name: list(range(width // 2)) for name, width in network.widths.items()}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_min_width_holds_and_the_ratio_reached_tells(scope: str) -> None:
    network = built("q")
    plan = planned(scored(network.widths), network, configured(scope=scope, min_width=9), 0.9)
    assert widths_of(plan) == {"conv1": 8, "conv2": 9, "conv3": 9, "fc1": 9}
    assert plan.ratio_asked == 0.9
    assert plan.ratio_reached == pytest.approx(1 - 35 / 50)


def test_global_scope_takes_elsewhere_what_min_width_keeps() -> None:
    network = built("q")
    tensors = dict(scored(network.widths).scores)
    tensors["conv1"] = torch.zeros(8)
    plan = planned(ChannelScores(tensors, "lrp", 64), network, configured(scope="global", min_width=6), 0.3)
    assert len(plan.keep["conv1"]) == 6
    assert sum(widths_of(plan).values()) == 35


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_round_to_rounds_up_but_never_grows_a_layer(scope: str) -> None:
    teacher = built("q")
    config = configured(scope=scope, ratio=0.9, round_to="cortex_m")
    first = planned(scored(teacher.widths), teacher, config, 0.3)
    unrounded = planned(scored(teacher.widths), teacher, configured(scope=scope, ratio=0.9), 0.3)
    for name, width in widths_of(unrounded).items():
        assert widths_of(first)[name] == min(-(-width // 4) * 4, teacher.widths[name])
    middle = apply_pruning(teacher, first)
    second = plan_pruning(scored(middle.widths, 1), middle, teacher.widths, first.kept_original, config, 0.9)
    if scope == "layer":
        assert widths_of(second) == {"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 4}
    assert all(width % 4 == 0 and width <= middle.widths[name] for name, width in widths_of(second).items())


def test_the_desktop_profile_rounds_conv1_to_more() -> None:
    teacher = nature_cnn({"conv1": 32, "conv2": 64, "conv3": 64, "fc1": 512}, "q", 4)
    plan = planned(scored(teacher.widths), teacher, configured(round_to="desktop"), 0.7)
    assert widths_of(plan) == {"conv1": 16, "conv2": 20, "conv3": 20, "fc1": 156}


def test_conv_only_leaves_the_dense_layers_whole() -> None:
    network = built("q")
    for scope in ("layer", "global"):
        plan = planned(scored(network.widths), network, configured(scope=scope, layers="conv"), 0.5)
        widths = widths_of(plan)
        assert widths["fc1"] == 20
        assert widths["conv1"] + widths["conv2"] + widths["conv3"] == 15
        assert plan.ratio_reached == pytest.approx(0.5)  # of the convolutions' channels, the only prunable ones


def test_layer_ratios_take_the_place_of_the_ratio_and_follow_the_schedule() -> None:
    network = built("q")
    config = configured(ratio=0.5, layer_ratios={"fc1": 0.8, "conv1": 0.0})
    half_way = planned(scored(network.widths), network, config, 0.25)
    assert widths_of(half_way) == {"conv1": 8, "conv2": 9, "conv3": 8, "fc1": 12}
    end = planned(scored(network.widths), network, config, 0.5)
    assert widths_of(end) == {"conv1": 8, "conv2": 6, "conv3": 5, "fc1": 4}
    assert end.ratio_reached == pytest.approx(27 / 50)


def test_layer_ratios_work_alone() -> None:
    network = built("q")
    plan = planned(scored(network.widths), network, configured(ratio=0.0, layer_ratios={"fc1": 0.75}), 0.0)
    assert widths_of(plan) == {**CONVS, "fc1": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_ratios": {"conv9": 0.5}}, r"layer_ratios\.conv9.*did you mean conv\d.*choose from: conv1"),
        ({"layer_ratios": {"fc": 0.5}}, r"layer_ratios\.fc.*did you mean fc1"),
        ({"layer_ratios": {"fc1": 0.5}, "layers": "conv"}, r"layer_ratios\.fc1.*layers=conv"),
        ({"layer_ratios": {"fc1": 0.5}, "scope": "global"}, r"scope=layer"),
    ],
)
def test_settings_that_do_not_fit_are_named_in_one_line(changes: dict[str, object], message: str) -> None:
    network = built("q")
    with pytest.raises(UserError, match=message) as caught:
        prunable_layers(configured(**changes), network.widths)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=message):
        planned(scored(network.widths), network, configured(**changes), 0.5)


def test_a_network_without_such_layers_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"prune\.layers=conv: no layer of this network can lose channels.*layers=all"):
        prunable_layers(configured(layers="conv"), built("mlp").widths)


def test_what_a_sum_ties_goes_together_and_torch_pruning_finds_the_same() -> None:
    network = built("impala")
    assert network.channels["conv1"].writers == ("conv1", "conv3", "conv5")
    plan = planned(scored(network.widths), network, CONFIG, 0.5)
    theirs = copy.deepcopy(network)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=torch.zeros(1, 4, 84, 84))
    for name, group in network.channels.items():
        layer = theirs.get_submodule(name)
        gone = sorted(set(range(group.width)) - set(plan.keep[name]))
        prune = tp.prune_conv_out_channels if isinstance(layer, nn.Conv2d) else tp.prune_linear_out_channels
        graph.get_pruning_group(layer, prune, gone).prune()
    ours = apply_pruning(network, plan).state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours[name], value), name


def test_scores_and_numbering_of_another_network_are_refused() -> None:
    network, larger = built("q"), nature_cnn({**CONVS, "fc1": 21}, "q", 6)
    with pytest.raises(ValueError, match="fc1 has 20 channels, but its scores"):
        planned(scored(larger.widths), network, CONFIG, 0.5)
    with pytest.raises(ValueError, match="fc1 has 20 channels, but 21 original indices"):
        plan_pruning(scored(network.widths), network, larger.widths, all_channels(larger.widths), CONFIG, 0.5)


@pytest.mark.parametrize(
    "change", [{"head": [0, 1]}, {"fc1": []}, {"fc1": [0, 20]}, {"conv1": [-1, 0]}], ids=lambda change: str(change)
)
def test_plans_that_do_not_fit_are_refused(change: dict[str, list[int]]) -> None:
    network = built("q")
    keep = all_channels(network.widths) | change
    with pytest.raises(ValueError, match=f"layer {next(iter(change))} has"):
        apply_pruning(network, PruningPlan(keep, keep, 0.5, 0.5))
