"""Criteria: how much each channel of the hidden layers matters to the agent.

Whatever the criterion, a score is at least 0, a higher score means more important, and a layer's scores add up to 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_compress.compression.attribution import gradient_batches, relevance_batches, to_differentiate, traced
from lrp_compress.compression.losses import default_temperature
from lrp_compress.config.schema import CriterionConfig
from lrp_compress.networks.graph import Network
from lrp_compress.support.errors import UserError
from lrp_compress.support.registry import Registry


@dataclass(frozen=True)
class ChannelScores:
    """Importance of every channel.

    Attributes
    ----------
    scores : dict of str to Tensor
        By ``network.channels``, in their order, float32 of shape (channels,) on the CPU; adds up to 1.
    criterion : str
        The criterion's name.
    states : int
        States the scores are a mean over; 0 for a criterion that looks at none.
    composite : str
        The rules relevance followed; empty where there is none.
    """

    scores: dict[str, Tensor]
    criterion: str
    states: int
    composite: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at.

    Attributes
    ----------
    network : Network
        The network whose channels are scored.
    observations : Tensor
        The states to score over, uint8 of shape (n, 4, 84, 84).
    outputs : Tensor
        The teacher's outputs in those states, shape (n, actions); they choose which outputs are explained.
    config : CriterionConfig
        The criterion's settings.
    seed : int
        Seed of whatever is drawn at random.
    """

    network: Network
    observations: Tensor
    outputs: Tensor
    config: CriterionConfig
    seed: int


@dataclass(frozen=True)
class Criterion:
    """A criterion.

    Attributes
    ----------
    score : callable
        Gives for each of ``network.channels`` a tensor of shape (width,), or for each layer that writes them, whose
        mean counts.
    uses_states : bool
        Whether it needs any states.
    """

    score: Callable[[Evidence], dict[str, Tensor]]
    uses_states: bool


CRITERIA: Registry[Criterion] = Registry("criterion.name")
Score = Callable[[Evidence], dict[str, Tensor]]


def register_criterion(name: str, *, uses_states: bool = True) -> Callable[[Score], Score]:
    """Return a decorator that registers a function from `Evidence` to raw scores under `name`.

    Parameters
    ----------
    name : str
        What the setting ``criterion.name`` calls it.
    uses_states : bool
        False for a criterion that looks at no states.
    """

    def store(score: Score) -> Score:
        CRITERIA.register(name)(Criterion(score, uses_states))
        return score

    return store


def score_channels(
    network: Network, observations: Tensor, outputs: Tensor, config: CriterionConfig, seed: int
) -> ChannelScores:
    """Score every channel of every hidden layer.

    Parameters
    ----------
    network : Network
        The network to score, with any head; left as it is.
    observations : Tensor
        States of play in order, uint8 of shape (N, 4, 84, 84). ``config.states`` of them, evenly spaced, are used, so
        that all episodes have their part; all of them if there are fewer.
    outputs : Tensor
        The teacher's outputs in those states, shape (N, actions). Their greedy action, or their softmax, decides which
        outputs of `network` are explained.
    config : CriterionConfig
        Criterion, composite, relevance seed, number of states and batch size. Scores do not depend on the batch size.
    seed : int
        For the criterion ``random``.

    Returns
    -------
    ChannelScores
        Scores divided by their layer's sum. Where all scores of a layer are 0 the criterion says nothing about it, so
        its channels share the sum equally: no division by 0, and no layer that looks worthless as a whole.

    Raises
    ------
    UserError
        If the criterion, composite or relevance seed is unknown, or a score is missing or not finite.
    ValueError
        If observations and outputs differ in number or there are none.
    """
    criterion = CRITERIA[config.name]
    if len(observations) != len(outputs) or not len(observations):
        raise ValueError(f"as many outputs as observations are needed: got {len(outputs)} and {len(observations)}")
    count = min(config.states, len(observations)) if criterion.uses_states else 0
    chosen = (torch.arange(count) * len(observations)).div(max(count, 1), rounding_mode="floor")
    evidence = Evidence(network, observations[chosen], outputs[chosen], config, seed)
    raw = _by_channels(network, criterion.score(evidence))
    for name, width in network.widths.items():
        if name not in raw or raw[name].shape != (width,):
            given = tuple(raw[name].shape) if name in raw else "none"
            raise UserError(f"criterion.name={config.name} has to give {width} scores of layer {name}, not {given}")
    scores = {name: _shares(raw[name], name, config.name) for name in network.widths}
    composite = config.composite if criterion.score is lrp else ""
    return ChannelScores(scores, config.name, count, composite)


def _by_channels(network: Network, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average the scores of all layers that write the same channels, where each is scored.

    Of a depthwise convolution with several filters for a channel, the sum of theirs counts.
    """
    scores = dict(raw)
    for name, group in network.channels.items():
        if len(group.writers) > 1 and raw.keys() >= set(group.writers):
            written = [raw[writer].double().view(group.width, -1).sum(1) for writer in group.writers]
            scores[name] = torch.stack(written).mean(0)
    return scores


def _shares(raw: Tensor, layer: str, criterion: str) -> Tensor:
    raw = raw.detach().double().cpu()
    if not raw.isfinite().all():
        bad = int((~raw.isfinite()).sum())
        raise UserError(
            f"criterion.name={criterion} gives {bad} of {len(raw)} scores of layer {layer} that are not finite; "
            "check the agent's weights for NaN and infinity"
        )
    total = raw.sum()
    return (raw / total if total > 0 else torch.full_like(raw, 1 / len(raw))).float()


@register_criterion("lrp")
@register_criterion("lrp_tuned")
def lrp(evidence: Evidence) -> dict[str, Tensor]:
    """Relevance: mean over the states of abs(sum over positions of R).

    Signs may cancel within a map but not between states: signed sums over states lose to random pruning. After Yeom
    et al. 2021, "Pruning by Explaining", seeded with the output's value. Under the name ``lrp_tuned`` the composite is
    the one that `lrp_compress.compression.tuning` has found.
    """
    config = evidence.config
    passes = relevance_batches(
        evidence.network,
        evidence.observations,
        config.composite,
        config.relevance_seed,
        config.batch_size,
        evidence.outputs,
    )
    return _mean_over_states(_unsigned(result.layers) for result in passes)


@register_criterion("taylor")
def taylor(evidence: Evidence) -> dict[str, Tensor]:
    """First-order Taylor: mean over the states of abs(sum over positions of activation times gradient).

    Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient Inference", equation 8, for
    the same seeded output as ``lrp``; what that output loses, to first order, when the channel is set to 0. It equals
    ``lrp`` with the epsilon composite and needs no zennit.
    """
    config = evidence.config
    passes = gradient_batches(
        evidence.network, evidence.observations, config.relevance_seed, config.batch_size, evidence.outputs
    )
    return _mean_over_states(_unsigned(result.layers) for result in passes)


@register_criterion("fisher")
def fisher(evidence: Evidence) -> dict[str, Tensor]:
    """Fisher information: mean over the states of the variance, over the policy's actions, of what a channel adds.

    What it adds to an output, to first order, is the sum over positions of activation times gradient. The policy is the
    softmax of the choosing outputs, Q-values divided by `default_temperature`. For a network that is its own teacher
    this is the second derivative at t = 0 of the KL divergence that scaling the channel by 1 - t costs: the divergence
    and its slope are 0 there, and its Hessian over the logits is their covariance. Half of it is the second-order
    estimate of what removing the channel costs, as in Theis et al. 2018, "Faster gaze prediction with dense networks
    and Fisher pruning"; they average squared gradients of the loss over the data, here the policy's mean is exact.
    """
    return _mean_over_states(_variances(evidence))


@register_criterion("activation")
def activation(evidence: Evidence) -> dict[str, Tensor]:
    """Mean size of the activation, over states and positions."""
    return _mean_over_states(
        {name: _positions(a.abs()).mean(2) for name, a in hidden.items()} for hidden in _hidden(evidence)
    )


@register_criterion("apoz")
def apoz(evidence: Evidence) -> dict[str, Tensor]:
    """One minus the average percentage of zeros: how often, over states and positions, the ReLU lets something through.

    Hu et al. 2016, "Network Trimming".
    """
    return _mean_over_states(
        {name: (_positions(a) > 0).double().mean(2) for name, a in hidden.items()} for hidden in _hidden(evidence)
    )


@register_criterion("weight_l1", uses_states=False)
def weight_l1(evidence: Evidence) -> dict[str, Tensor]:
    """L1 norm of a channel's incoming weights, without the bias (Li et al. 2017, "Pruning Filters")."""
    return _weight_norms(evidence.network, 1)


@register_criterion("weight_l2", uses_states=False)
def weight_l2(evidence: Evidence) -> dict[str, Tensor]:
    """L2 norm of a channel's incoming weights, without the bias."""
    return _weight_norms(evidence.network, 2)


@register_criterion("random", uses_states=False)
def random(evidence: Evidence) -> dict[str, Tensor]:
    """Independent uniform draws: the baseline that every criterion has to beat."""
    generator = torch.Generator().manual_seed(evidence.seed)
    return {name: torch.rand(width, generator=generator) for name, width in evidence.network.widths.items()}


def _positions(maps: Tensor) -> Tensor:
    """Reshape (N, channels, ...) to (N, channels, positions); a unit has one position."""
    return maps.flatten(2) if maps.dim() > 2 else maps.unsqueeze(2)


def _unsigned(layers: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: _positions(tensor).sum(2).abs() for name, tensor in layers.items()}


def _variances(evidence: Evidence) -> Iterator[dict[str, Tensor]]:
    # Double, as relevance is, so that the batch size leaves no trace in the scores.
    network = copy.deepcopy(evidence.network).double().eval()
    temperature = default_temperature(network.head_kind, evidence.outputs)
    policies = (evidence.outputs.double() / temperature).softmax(1).to(network.device)
    size = evidence.config.batch_size
    for observations, policy in zip(
        *(torch.split(part, size) for part in (evidence.observations, policies)), strict=True
    ):
        with torch.enable_grad(), traced(network) as hidden:
            pixels = to_differentiate(network, observations.to(network.device))
            totals = network(pixels).sum(0) / temperature
            by_action = [torch.autograd.grad(total, [*hidden.values()], retain_graph=True) for total in totals]
        yield {
            name: _variance(torch.stack([_positions(a.detach() * g).sum(2) for g in gradients], 1), policy)
            for (name, a), gradients in zip(hidden.items(), zip(*by_action, strict=True), strict=True)
        }


def _variance(values: Tensor, probabilities: Tensor) -> Tensor:
    """Variance of values (N, actions, channels) under probabilities (N, actions): (N, channels)."""
    weights = probabilities.unsqueeze(2)
    # What all actions share, a value stream's part, leaves exact zeros this way, and not rounding errors to rank by.
    differences = values - values[:, :1]
    return (weights * (differences - (weights * differences).sum(1, keepdim=True)).square()).sum(1)


def _hidden(evidence: Evidence) -> Iterator[dict[str, Tensor]]:
    size = evidence.config.batch_size
    for start in range(0, len(evidence.observations), size):
        with torch.no_grad(), traced(evidence.network) as activations:
            evidence.network(evidence.observations[start : start + size].to(evidence.network.device))
        yield activations


def _mean_over_states(passes: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average per-state scores of shape (n, channels) over all states of all batches."""
    totals: dict[str, Tensor] = {}
    states = 0
    for layers in passes:
        for name, per_state in layers.items():
            # Double, so that the batch size leaves no trace in the mean.
            totals[name] = totals.get(name, 0) + per_state.double().sum(0)
        states += len(per_state)
    return {name: total / states for name, total in totals.items()}


def _weight_norms(network: Network, order: int) -> dict[str, Tensor]:
    writers = [writer for group in network.channels.values() for writer in group.writers]
    weights = {name: network.get_parameter(f"{name}.weight").detach().double() for name in writers}
    return {name: weight.flatten(1).norm(p=order, dim=1) for name, weight in weights.items()}
