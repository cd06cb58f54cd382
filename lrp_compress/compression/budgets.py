"""How wide each layer becomes when a share of the parameters or multiply-accumulates may remain (``prune=auto``).

Layer by layer the divergence from the teacher is measured over the width of that layer alone, after repair and on
held-out games. Of a network narrower in several layers the sum of their divergences is predicted. From the whole
network on, the channel goes that adds least to it for what it saves, until the budget is met. Greedy steps on convex
curves are optimal where costs add up (Shoham and Gersho 1988, "Efficient bit allocation for an arbitrary set of
quantizers"); here the widths of neighbouring layers multiply, so channels are then exchanged between layers as long as
that helps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from lrp_compress.agents.checkpoints import all_channels
from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.compression.pruning import apply_pruning, plan_pruning, prunable_layers, rounding
from lrp_compress.compression.repair import lessons, repair
from lrp_compress.compression.tuning import STRENGTH
from lrp_compress.config.schema import PruneConfig
from lrp_compress.deployment.measuring.profiling import profile_network
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.support.errors import UserError

KEPT = (7 / 8, 3 / 4, 5 / 8, 1 / 2, 3 / 8, 1 / 4, 1 / 8, 1 / 16)  # of a layer's channels, where curves are measured
REPAIRED_FROM = 512  # states
JUDGED = 512

Curve = Mapping[int, float]  # divergence from the teacher by width


class Costs:
    """What a network of given widths costs, computed from the teacher's layers.

    Parameters
    ----------
    network : Network
        The teacher.
    budget : {"params", "macs"}
        What counts; see `lrp_compress.deployment.measuring.profiling.Profile`.
    """

    def __init__(self, network: Network, budget: str) -> None:
        self._terms: list[tuple[str, str, int, int]] = []  # channels, those read, cost of a pair of them, bias
        for layer in profile_network(network).layers:
            source = network.value(network.layer(layer.name).inputs[0]).channels or ""
            if network.is_depthwise(layer.name):  # its cost grows with its channels alone
                source = ""
            own = network.value(layer.name).channels or ""
            bias = layer.outputs if budget == "params" else 0
            cost = layer.params if budget == "params" else layer.macs
            pairs = network.widths.get(source, 1) * network.widths.get(own, 1)
            self._terms.append((own, source, (cost - bias) // pairs, bias // network.widths.get(own, 1)))

    def __call__(self, widths: Mapping[str, int]) -> int:
        """Add the layers up."""
        return sum(
            widths.get(name, 1) * (widths.get(source, 1) * pair + bias) for name, source, pair, bias in self._terms
        )


def check_budget(network: Network, config: PruneConfig) -> None:
    """Check that the share of a budget can be met.

    Raises
    ------
    UserError
        If more remains even of the narrowest layers.
    """
    if config.budget == "none":
        return
    costs = Costs(network, config.budget)
    narrowest = network.widths | {name: choices[0] for name, choices in _choices(network, config).items()}
    least = costs(narrowest) / costs(network.widths)
    if least > config.share:
        raise UserError(
            f"prune.share={config.share:g} cannot be met: {least:.2g} of the {config.budget} remain at the least with "
            f"prune.layers={config.layers}, prune.min_width={config.min_width} and prune.round_to={config.round_to}"
        )


def measure_curves(
    teacher: Network, scores: ChannelScores, rollouts: Rollouts, config: PruneConfig, seed: int
) -> dict[str, dict[int, float]]:
    """Measure how far a network moves from its teacher when one layer alone becomes narrower.

    Parameters
    ----------
    teacher : Network
        On the CPU; left as it is.
    scores : ChannelScores
        Of its channels; the highest stay.
    rollouts : Rollouts
        Its play: states to repair from, and held-out games to judge by.
    config : PruneConfig
        Which layers may lose channels, and how far.
    seed : int
        Of the repair.

    Returns
    -------
    dict of str to dict of int to float
        By prunable layer and width the KL divergence after repair, in nats.
    """
    held_out = rollouts.held_out()
    judged = rollouts.part(held_out, JUDGED)
    taught = lessons(teacher, rollouts.part(~held_out, REPAIRED_FROM).observations, seed)
    temperature = default_temperature(teacher.head_kind, judged.outputs)
    whole = all_channels(teacher.widths)
    points = {
        name: sorted({choices[0], *(max(choices[0], round(teacher.widths[name] * kept)) for kept in KEPT)})
        for name, choices in _choices(teacher, config).items()
    }
    curves = {name: {teacher.widths[name]: 0.0} for name in points}
    alone = dataclasses.replace(config, ratio=0.0, scope="layer", min_width=1, round_to="none")
    with tqdm(total=sum(map(len, points.values())), desc="curves", leave=False, disable=None) as progress:
        for name, widths in points.items():
            for width in widths:
                how = dataclasses.replace(alone, layer_ratios={name: 1 - width / teacher.widths[name]})
                plan = plan_pruning(scores, teacher, teacher.widths, whole, how, 0.0)
                network = repair(apply_pruning(teacher, plan), plan.keep, taught, (), STRENGTH).network
                outputs = batched_outputs(network, judged.observations)
                curves[name].setdefault(width, max(kl(outputs, judged.outputs, temperature).item(), 0.0))
                progress.update()
    return curves


def choose_widths(teacher: Network, curves: Mapping[str, Curve], config: PruneConfig) -> dict[str, int]:
    """Choose the widths of least predicted divergence whose cost is within the budget.

    Parameters
    ----------
    teacher : Network
        The network to be pruned.
    curves : mapping of str to mapping of int to float
        By prunable layer; see `measure_curves`.
    config : PruneConfig
        The budget and its share, which layers may lose channels, and how far.

    Returns
    -------
    dict of str to int
        By prunable layer, multiples as `round_to` wants them. Not one layer can have its next width within the budget.

    Raises
    ------
    UserError
        If the share cannot be met.
    """
    check_budget(teacher, config)
    costs, choices = Costs(teacher, config.budget), _choices(teacher, config)
    predicted = {name: _predicted(curves[name], choices[name]) for name in choices}
    allowed = config.share * costs(teacher.widths)

    def neighbours(widths: Mapping[str, int], by: int) -> dict[str, dict[str, int]]:
        """By layer the widths with its own one place further, or back."""
        places = {name: choices[name].index(widths[name]) + by for name in choices}
        inside = {name: place for name, place in places.items() if 0 <= place < len(choices[name])}
        return {name: {**widths, name: choices[name][place]} for name, place in inside.items()}

    def price(widths: Mapping[str, int], other: Mapping[str, int]) -> float:
        """Divergence for a unit of the budget between two widths of a layer."""
        return (divergence(other) - divergence(widths)) / (costs(widths) - costs(other))

    def divergence(widths: Mapping[str, int]) -> float:
        return sum(predicted[name][widths[name]] for name in choices)

    def fitted(widths: dict[str, int], left_alone: str = "") -> dict[str, int]:
        """Shrink layers until the budget is met, then let them grow while it is."""
        while costs(widths) > allowed:
            steps = [step for name, step in neighbours(widths, -1).items() if name != left_alone]
            widths = min(steps or [*neighbours(widths, -1).values()], key=lambda step: price(widths, step))
        while steps := [step for step in neighbours(widths, +1).values() if costs(step) <= allowed]:
            widths = max(steps, key=lambda step: price(widths, step))
        return widths

    widths = fitted(dict(teacher.widths))
    while others := [fitted(step, name) for by in (1, -1) for name, step in neighbours(widths, by).items()]:
        best = min(others, key=divergence)
        if divergence(best) >= divergence(widths):
            break
        widths = best
    return {name: widths[name] for name in choices}


def with_widths(config: PruneConfig, whole: Mapping[str, int], widths: Mapping[str, int]) -> PruneConfig:
    """Write chosen widths into the settings of pruning, as each layer's ratio and the ratio of them all."""
    ratios = {name: 1 - width / whole[name] for name, width in widths.items()}
    removed = 1 - sum(widths.values()) / sum(whole[name] for name in widths)
    return dataclasses.replace(config, layer_ratios=ratios, ratio=removed)


def _choices(network: Network, config: PruneConfig) -> dict[str, list[int]]:
    """By prunable layer the widths it may have, ascending, its own the last."""
    choices = {}
    for name in prunable_layers(config, network.widths):
        multiple, width = rounding(config.round_to, name), network.widths[name]
        least = -(-config.min_width // multiple) * multiple
        choices[name] = [*range(least, width, multiple), width]
    return choices


def _predicted(curve: Curve, choices: Sequence[int]) -> dict[int, float]:
    """Give the divergence of every width, on the convex curve below what was measured."""
    hull: list[tuple[int, float]] = []
    for point in sorted(curve.items()):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    values = np.interp(choices, [x for x, _ in hull], [y for _, y in hull])
    return dict(zip(choices, values.tolist(), strict=True))


def _slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
