"""Criteria: scores that add up, do not depend on the batch size, and put dead channels last."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from lrp_compress.compression.attribution import relevance
from lrp_compress.compression.criteria import CRITERIA, Criterion, score_channels
from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.config.schema import CriterionConfig
from lrp_compress.environments.atari import AtariEnvs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from tests.compression.networks import built

WIDTHS = {"conv1": 4, "conv2": 6, "conv3": 6, "fc1": 16}
WITH_STATES = ["activation", "apoz", "fisher", "lrp", "lrp_tuned", "taylor"]


def small_network(head: str = "q", seed: int = 3) -> Network:
    torch.manual_seed(seed)
    network = nature_cnn(WIDTHS, head, 4)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.eval()


def settings(name: str, **changes) -> CriterionConfig:
    values = {"composite": "gamma", "relevance_seed": "greedy", "states": 1024, "batch_size": 64, **changes}
    return CriterionConfig(name=name, **values)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """80 states of a random player's Breakout."""
    envs = AtariEnvs("breakout", 4, "noop", seed=0, threads=1)
    draws = np.random.default_rng(0)
    envs.reset()
    steps = [envs.step(draws.integers(0, envs.actions, 4)).observations for _ in range(60)]
    envs.close()
    return torch.from_numpy(np.concatenate(steps[::3]))


def score(network, frames, config, seed=0):
    with torch.no_grad():
        return score_channels(network, frames, network(frames), config, seed)


@pytest.mark.parametrize("head", ["q", "policy"])
@pytest.mark.parametrize("name", CRITERIA.names())
def test_scores_are_shares_of_each_layer(frames, name, head):
    network = small_network(head)
    result = score(network, frames, settings(name))
    assert list(result.scores) == list(network.widths)
    for layer, scores in result.scores.items():
        assert scores.dtype == torch.float32
        assert scores.shape == (network.widths[layer],)
        assert scores.min() >= 0
        assert scores.sum() == pytest.approx(1, abs=1e-5)
    assert result.criterion == name
    assert result.states == (80 if name in WITH_STATES else 0)


@pytest.mark.parametrize("kind", ["impala", "mlp", "other", "depthwise"])
@pytest.mark.parametrize("name", CRITERIA.names())
def test_scores_of_other_networks(name, kind):
    network = built(kind, bias=0.1)
    result = score(network, network.observations.random(12, seed=0), settings(name))
    for layer, scores in result.scores.items():
        assert scores.shape == (network.widths[layer],)
        assert scores.min() >= 0
        assert scores.sum() == pytest.approx(1, abs=1e-5)


def test_channels_that_are_added_have_the_mean_score_of_their_writers():
    network = built("impala", bias=0.1)
    states = network.observations.random(8, seed=0)
    found = relevance(network, states, "epsilon", "greedy").layers
    means = [found[writer].flatten(2).sum(2).abs().mean(0) for writer in ("conv1", "conv3", "conv5")]
    expected = torch.stack(means).mean(0)
    scores = score(network, states, settings("lrp", composite="epsilon")).scores["conv1"]
    torch.testing.assert_close(scores, (expected / expected.sum()).float())


def test_lrp_is_the_mean_of_unsigned_sums(frames):
    network = small_network()
    result = relevance(network, frames, "gamma", "greedy")
    scores = score(network, frames, settings("lrp")).scores
    for name, layer in result.layers.items():
        expected = layer.flatten(2).sum(2).abs().mean(0) if layer.dim() == 4 else layer.abs().mean(0)
        torch.testing.assert_close(scores[name], (expected / expected.sum()).float())


@pytest.mark.parametrize("seed", ["greedy", "all", "softmax"])
def test_taylor_is_lrp_by_the_epsilon_rule(frames, seed):
    network = small_network()
    by_rule = score(network, frames, settings("lrp", composite="epsilon", relevance_seed=seed)).scores
    by_gradient = score(network, frames, settings("taylor", relevance_seed=seed)).scores
    for name in WIDTHS:
        torch.testing.assert_close(by_rule[name], by_gradient[name], rtol=1e-3, atol=1e-5)


def test_taylor_by_hand_on_the_last_layer(frames):
    network = small_network()
    with torch.no_grad():
        images = frames.float() / 255
        maps = network.conv3(network.conv2(network.conv1(images).relu()).relu()).relu()
        units = network.fc1(maps.flatten(1)).relu()
        chosen = network.head.weight[network.head(units).argmax(1)]
        expected = (units * chosen).abs().mean(0)
    scores = score(network, frames, settings("taylor")).scores["fc1"]
    torch.testing.assert_close(scores, expected / expected.sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["q", "policy"])
def test_fisher_is_the_curvature_of_the_divergence(frames, head):
    """By finite differences: what the KL divergence from the policy is after each channel was scaled by 1 + t."""
    network, states = small_network(head).double(), frames[::10]
    images = states.double() / 255
    with torch.no_grad():
        outputs = network(images)
        temperature = default_temperature(head, outputs)

        def divergence(layer, channel, factor):
            def scale(module, inputs, maps):
                return maps.index_copy(1, torch.tensor([channel]), factor * maps[:, [channel]])

            hook = getattr(network, f"{layer}_relu").register_forward_hook(scale)
            result = kl(network(images), outputs, temperature)
            hook.remove()
            return result

        scores = score_channels(network, states, outputs, settings("fisher"), 0).scores
        for layer, width in network.widths.items():
            curvature = torch.stack([sum(divergence(layer, i, 1 + t) for t in (1e-4, -1e-4)) for i in range(width)])
            torch.testing.assert_close(scores[layer], (curvature / curvature.sum()).float(), rtol=1e-2, atol=1e-5)


def test_activation_and_apoz_by_hand(frames):
    network = small_network()
    with torch.no_grad():
        maps = network.conv1(frames.float() / 255).relu()
    mean, alive = maps.mean((0, 2, 3)), (maps > 0).double().mean((0, 2, 3)).float()
    torch.testing.assert_close(score(network, frames, settings("activation")).scores["conv1"], mean / mean.sum())
    torch.testing.assert_close(score(network, frames, settings("apoz")).scores["conv1"], alive / alive.sum())


@pytest.mark.parametrize(("name", "order"), [("weight_l1", 1), ("weight_l2", 2)])
def test_weight_norms(frames, name, order):
    network = small_network()
    norms = torch.stack([torch.linalg.vector_norm(channel, order) for channel in network.conv2.weight.detach()])
    torch.testing.assert_close(score(network, frames, settings(name)).scores["conv2"], norms / norms.sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_STATES)
def test_the_batch_size_does_not_matter(frames, name):
    network = small_network()
    first, *others = (score(network, frames, settings(name, batch_size=size)).scores for size in (7, 64, 1000))
    for scores in others:
        for layer in WIDTHS:
            torch.testing.assert_close(scores[layer], first[layer], rtol=1e-6, atol=1e-9)


def test_states_are_spread_evenly(frames):
    network = small_network()
    few = score(network, frames, settings("lrp", states=8))
    same = score(network, frames[::10], settings("lrp"))
    assert few.states == 8
    for layer in WIDTHS:
        assert torch.equal(few.scores[layer], same.scores[layer])


@pytest.mark.parametrize("name", ["lrp", "taylor", "fisher", "activation", "apoz", "weight_l1", "weight_l2"])
@pytest.mark.parametrize("composite", ["gamma", "epsilon_gamma_box"])
def test_a_dead_channel_comes_last(frames, name, composite):
    network = small_network()
    with torch.no_grad():
        for layer in WIDTHS:
            getattr(network, layer).weight[2] = 0
            getattr(network, layer).bias[2] = 0
    for scores in score(network, frames, settings(name, composite=composite)).scores.values():
        assert scores[2] == 0
        assert (scores > 0).sum() >= len(scores) // 2


def test_a_layer_without_information_is_shared_equally(frames):
    network = small_network()
    with torch.no_grad():
        network.fc1.weight.zero_()
        network.fc1.bias.fill_(-1)
    scores = score(network, frames, settings("activation")).scores
    assert torch.equal(scores["fc1"], torch.full((16,), 1 / 16))
    assert scores["conv1"].unique().numel() > 1


def test_random_follows_its_seed(frames):
    network = small_network()
    first, again, other = (score(network, frames, settings("random"), seed).scores for seed in (5, 5, 6))
    for layer in WIDTHS:
        assert torch.equal(first[layer], again[layer])
        assert not torch.equal(first[layer], other[layer])


def test_the_teacher_chooses_what_is_explained(frames):
    network = small_network()
    outputs = network(frames).detach()
    own = score_channels(network, frames, outputs, settings("lrp"), 0).scores
    opposite = score_channels(network, frames, -outputs, settings("lrp"), 0).scores
    assert not torch.allclose(own["fc1"], opposite["fc1"], rtol=1e-2)


@pytest.mark.parametrize("name", ["lrp", "taylor", "fisher", "activation", "weight_l1"])
def test_not_a_number_is_reported_with_its_layer(frames, name):
    network = small_network()
    with torch.no_grad():
        network.fc1.weight[3] = float("nan")
    layer = "conv1" if name in ("lrp", "taylor", "fisher") else "fc1"
    with pytest.raises(
        UserError, match=rf"criterion.name={name} gives \d+ of \d+ scores of layer {layer} that are not"
    ):
        score(network, frames, settings(name))


def test_unknown_criterion_gives_the_closest_match(frames):
    with pytest.raises(UserError, match=r"criterion.name=tailor is unknown .did you mean taylor"):
        score(small_network(), frames, settings("tailor"))


def test_states_and_outputs_must_match(frames):
    network = small_network()
    with pytest.raises(ValueError, match="got 79 and 80"):
        score_channels(network, frames, network(frames).detach()[1:], settings("lrp"), 0)
    with pytest.raises(ValueError, match="got 0 and 0"):
        score_channels(network, frames[:0], torch.zeros(0, 4), settings("lrp"), 0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "give 4 scores of layer conv1, not none"),
        ({"conv1": torch.ones(5)}, "give 4 scores of layer conv1, not (5,)"),
    ],
)
def test_a_criterion_that_leaves_channels_out_is_refused_by_name(frames, monkeypatch, given, told):
    monkeypatch.setitem(CRITERIA._entries, "poor", Criterion(lambda evidence: given, True))
    with pytest.raises(UserError, match=re.escape(f"criterion.name=poor has to {told}")):
        score(small_network(), frames, settings("poor"))
