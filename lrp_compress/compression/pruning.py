"""Pruning: which channels go (the plan), and the smaller network without them.

What depends on a channel is known from the network's list of layers (`lrp_compress.networks.channels`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.config.schema import PruneConfig
from lrp_compress.networks.graph import Network
from lrp_compress.support.errors import UserError

KINDS = ("weight", "bias")
# Multiples that widths are rounded up to, by profile and layer; a layer that is not named takes the last.
ROUNDING: dict[str, dict[str, int]] = {
    "none": {"": 1},
    "desktop": {"conv1": 16, "": 4},  # AVX-512: benchmarks/rounding.py
    "cortex_m": {"": 4},  # four int8 values are one word
}


def rounding(profile: str, layer: str) -> int:
    """Look up the multiple that a layer's width is rounded up to."""
    multiples = ROUNDING[profile]
    return multiples.get(layer, multiples[""])


@dataclass(frozen=True)
class PruningPlan:
    """Which channels stay.

    Attributes
    ----------
    keep : dict of str to list of int
        Per hidden layer the kept channels' indices in the current network, ascending.
    kept_original : dict of str to list of int
        The same channels in the original teacher's numbering.
    ratio_asked : float
        Fraction of the original teacher's prunable channels that should be gone after this step.
    ratio_reached : float
        Fraction of them that is gone; less than asked where `min_width` or `round_to` kept channels, and another where
        `layer_ratios` asked for it.
    """

    keep: dict[str, list[int]]
    kept_original: dict[str, list[int]]
    ratio_asked: float
    ratio_reached: float


def prunable_layers(config: PruneConfig, widths: Mapping[str, int]) -> list[str]:
    """Name the layers that may lose channels, and check that the configuration fits them.

    Parameters
    ----------
    config : PruneConfig
        The pruning settings.
    widths : mapping of str to int
        Channels per hidden layer of the network to be pruned.

    Returns
    -------
    list of str
        In the network's order; never an output layer.

    Raises
    ------
    UserError
        If no layer is prunable, `layer_ratios` names one that is not, or is given along with the scope ``global``.
    """
    layers = [name for name in widths if config.layers == "all" or name.startswith("conv")]
    if not layers:
        raise UserError(
            f"prune.layers={config.layers}: no layer of this network can lose channels; those that convolutions in "
            "groups read or write stay" + ("" if config.layers == "all" else ", set prune.layers=all")
        )
    for name in config.layer_ratios:
        if name not in layers:
            close = difflib.get_close_matches(name, layers, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(
                f"prune.layer_ratios.{name}: no such layer is pruned with prune.layers={config.layers}{hint}; "
                f"choose from: {', '.join(layers)}"
            )
    if config.layer_ratios and config.scope == "global":
        raise UserError(
            "prune.layer_ratios fixes each layer's share, prune.scope=global lets the scores decide it; "
            "set prune.scope=layer or leave prune.layer_ratios out"
        )
    return layers


def plan_pruning(
    scores: ChannelScores,
    network: Network,
    original_widths: Mapping[str, int],
    kept_original: Mapping[str, list[int]],
    config: PruneConfig,
    ratio: float,
) -> PruningPlan:
    """Choose the channels that stay after a pruning step.

    With the scope ``layer`` each layer keeps its best channels: of the original width, less the ratio, at least
    `min_width`. With the scope ``global`` all prunable channels compete by their share of their layer's scores, which
    add up to 1 (as in Yeom et al. 2021, "Pruning by Explaining"; a conserving relevance has the same sum in every
    layer anyway), and exactly the number asked for goes, unless `min_width` stops it. Widths are then rounded up to
    the multiples of the profile `round_to`, but no layer ever grows. Of equal scores the lower index stays.

    Parameters
    ----------
    scores : ChannelScores
        Scores of the current network's channels; the highest stay.
    network : Network
        The current network, already pruned by earlier steps.
    original_widths : mapping of str to int
        Widths of the original teacher, against which every ratio counts.
    kept_original : mapping of str to list of int
        The current network's channels in the original teacher's numbering.
    config : PruneConfig
        The pruning settings; its ``ratio`` is that of the last step.
    ratio : float
        Fraction of the original teacher's prunable channels to be gone after this step, in [0, 1).

    Returns
    -------
    PruningPlan
        What stays. Layers that are not prunable stay whole.

    Raises
    ------
    UserError
        If `layer_ratios` does not fit; see `prunable_layers`.
    ValueError
        If scores or the numbering do not belong to this network.
    """
    layers = prunable_layers(config, network.widths)
    _check_fit(scores, network, kept_original, layers)
    ranked = {name: scores.scores[name] for name in layers}
    if config.scope == "global":
        target_widths = _global_widths(ranked, original_widths, config.min_width, ratio)
    else:
        target_widths = {name: _kept(original_widths[name], _layer_ratio(name, config, ratio)) for name in layers}
    keep = {name: list(range(width)) for name, width in network.widths.items()}
    for name in layers:
        multiple = rounding(config.round_to, name)
        width = math.ceil(max(target_widths[name], config.min_width) / multiple) * multiple
        keep[name] = sorted(_best_first(ranked[name])[:width])
    prunable = sum(original_widths[name] for name in layers)
    return PruningPlan(
        keep=keep,
        kept_original={name: [kept_original[name][i] for i in indices] for name, indices in keep.items()},
        ratio_asked=ratio,
        ratio_reached=1 - sum(len(keep[name]) for name in layers) / prunable,
    )


def apply_pruning(network: Network, plan: PruningPlan) -> Network:
    """Build the network that lacks the channels a plan leaves out.

    It computes what the given network computes with those channels' outputs set to zero.

    Parameters
    ----------
    network : Network
        Left untouched.
    plan : PruningPlan
        Made for this network.

    Returns
    -------
    Network
        A new network with parameters of its own, all trainable, on the same device and in the same mode.

    Raises
    ------
    ValueError
        If the plan does not list the hidden layers of this network, names a channel that it lacks, or empties a layer.
    """
    for name in network.widths.keys() | plan.keep.keys():
        channels = set(range(network.widths.get(name, 0)))
        if not plan.keep.get(name) or not channels.issuperset(plan.keep[name]):
            raise ValueError(f"the plan does not fit the network: layer {name} has {len(channels)} channels")
    with torch.device("meta"):  # no initial weights are drawn, so the random state stays as it is
        pruned = network.resized({name: len(plan.keep[name]) for name in network.widths})
    with torch.inference_mode(False), torch.no_grad():  # the new weights can learn, whatever the caller's mode
        remaining = {name: _remaining(network, name, plan.keep) for name in network.weighted}
    state = {f"{n}.{kind}": part for n, parts in remaining.items() for kind, part in zip(KINDS, parts, strict=True)}
    pruned.load_state_dict(state, assign=True)
    return pruned.requires_grad_().train(network.training)


def _remaining(network: Network, name: str, keep: Mapping[str, list[int]]) -> tuple[Tensor, Tensor]:
    """Give the weight and the bias that stay of a layer, as copies."""
    weight, bias = (network.get_parameter(f"{name}.{kind}").clone() for kind in KINDS)
    own, read = network.value(name), network.value(network.layer(name).inputs[0])
    if own.channels is not None:
        kept = own.spread(keep[own.channels])
        weight, bias = weight[kept], bias[kept]
    if read.channels is not None and not network.is_depthwise(name):
        weight = weight[:, read.spread(keep[read.channels])]
    return weight.contiguous(), bias


def _check_fit(
    scores: ChannelScores, network: Network, kept_original: Mapping[str, list[int]], layers: list[str]
) -> None:
    for name, width in network.widths.items():
        if len(kept_original[name]) != width:
            raise ValueError(f"{name} has {width} channels, but {len(kept_original[name])} original indices are given")
    for name in layers:
        shape = tuple(scores.scores[name].shape)
        if shape != (network.widths[name],):
            raise ValueError(f"{name} has {network.widths[name]} channels, but its scores have the shape {shape}")


def _kept(channels: int, ratio: float) -> int:
    return channels - round(channels * ratio)


def _layer_ratio(name: str, config: PruneConfig, ratio: float) -> float:
    if name not in config.layer_ratios:
        return ratio
    progress = ratio / config.ratio if config.ratio > 0 else 1.0
    return config.layer_ratios[name] * progress


def _best_first(scores: Tensor) -> list[int]:
    order: list[int] = torch.argsort(scores, descending=True, stable=True).tolist()
    return order


def _global_widths(
    ranked: Mapping[str, Tensor], original_widths: Mapping[str, int], min_width: int, ratio: float
) -> dict[str, int]:
    widths = {name: min(min_width, len(scores)) for name, scores in ranked.items()}
    competing = {name: scores[_best_first(scores)[widths[name] :]] for name, scores in ranked.items()}
    layer_of = [name for name, scores in competing.items() for _ in scores]
    places = _kept(sum(original_widths[name] for name in ranked), ratio) - sum(widths.values())
    for winner in _best_first(torch.cat(list(competing.values())))[: max(places, 0)]:
        widths[layer_of[winner]] += 1
    return widths
