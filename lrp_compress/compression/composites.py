"""Composites, which say what rule relevance follows through each layer, and seeds, which say where it starts.

Rules and where each suits: Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview". A composite is given
zennit's ``rules`` module and a layer's name (``conv1 ... fc1 ... head``) and returns the rule of that layer. It has a
name, or is spelled out, such as ``head epsilon, dense gamma 0.3``: by group of layers (`GROUPS`, or one convolution)
the name of a rule (`RULES`) and its parameter, if it has one; what is left out has the epsilon rule. Biases keep their
share of the relevance. A seed is given the outputs that choose and the outputs that are explained, both of shape
(N, actions), and returns the weight of each explained output.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor
from torch.nn import functional

from lrp_compress.support.errors import UserError, unknown_name
from lrp_compress.support.registry import Registry

GAMMA = 0.25
EPSILON = 1e-6  # only a stabiliser: rankings are the same from 1e-9 to 1e-3

Rule = Any  # a zennit.core.Hook
Composite = Callable[[ModuleType, str], Rule]
Seed = Callable[[Tensor, Tensor], Tensor]

COMPOSITES: Registry[Composite] = Registry("criterion.composite")
SEEDS: Registry[Seed] = Registry("criterion.relevance_seed")


# Groups of layers with a rule of their own. That of conv1 only decides which pixels the relevance goes to.
GROUPS = ("head", "dense", "conv", "conv3", "conv2", "conv1")
CONVOLUTION = re.compile(r"conv[1-9]\d{0,2}")  # one alone

RULES: Mapping[str, Callable[[ModuleType, float], Rule]] = {
    "epsilon": lambda rules, _: rules.Epsilon(EPSILON),
    "zplus": lambda rules, _: rules.ZPlus(EPSILON),
    "gamma": lambda rules, gamma: rules.Gamma(gamma, EPSILON),
    "alpha_beta": lambda rules, alpha: rules.AlphaBeta(alpha, alpha - 1, EPSILON),
}
LEAST = {"gamma": 0.0, "alpha_beta": 1.0}  # parameters of the rules that have one


def find_composite(name: str) -> Composite:
    """Look a composite up by its name, or read one that is spelled out.

    Raises
    ------
    UserError
        If there is no composite of that name, no such group or rule, or the rule takes no such parameter.
    """
    return _read(name) if " " in name else COMPOSITES[name]


def _read(spelled: str) -> Composite:
    rules_of: dict[str, tuple[str, float]] = {}
    for part in spelled.split(","):
        group, rule, parameter = ([*part.split(), "", "", ""])[:3]
        for kind, given, known in (("group", group, GROUPS), ("rule", rule, RULES)):
            if given not in known and not (kind == "group" and CONVOLUTION.fullmatch(given)):
                raise unknown_name(f"criterion.composite={spelled}: the {kind}", given, known)
        rules_of[group] = rule, _parameter(spelled, rule, parameter)

    def composite(rules: ModuleType, layer: str) -> Rule:
        group = "dense" if layer.startswith("fc") else "conv" if layer.startswith("conv") else layer
        rule, parameter = rules_of.get(layer) or rules_of.get(group, ("epsilon", 0.0))
        return RULES[rule](rules, parameter)

    return composite


def _parameter(spelled: str, rule: str, given: str) -> float:
    least = LEAST.get(rule)
    try:
        value = float(given) if given else None
    except ValueError:
        value = math.nan
    if least is None and value is None:
        return 0.0
    if least is None or value is None or not least <= value < math.inf:
        takes = "takes no number" if least is None else f"takes a number of at least {least:g}"
        raise UserError(f"criterion.composite={spelled}: the rule {rule} {takes}, got {given or 'none'}")
    return value


def pixel_box(rules: ModuleType) -> Rule:
    """Box rule (Montavon et al. 2017) for pixels in [0, 1]: dark pixels, too, can be relevant."""
    return rules.ZBox(0.0, 1.0, EPSILON)


@COMPOSITES.register("epsilon")
def epsilon(rules: ModuleType, layer: str) -> Rule:
    """Epsilon rule everywhere; with biases kept this is activation times gradient, exactly."""
    return rules.Epsilon(EPSILON)


@COMPOSITES.register("epsilon_plus")
def epsilon_plus(rules: ModuleType, layer: str) -> Rule:
    """z+ rule in convolutions, epsilon rule in dense layers and the head."""
    return rules.ZPlus(EPSILON) if layer.startswith("conv") else rules.Epsilon(EPSILON)


@COMPOSITES.register("gamma")
def gamma(rules: ModuleType, layer: str) -> Rule:
    """Generalised gamma rule (Andeol et al. 2021) everywhere, the head's weights included.

    The head has to be included, and by the generalised rule: an output may be negative, and the original gamma rule
    turns the sign of its denominator there.
    """
    return rules.Gamma(GAMMA, EPSILON)


@COMPOSITES.register("zplus")
def zplus(rules: ModuleType, layer: str) -> Rule:
    """z+ rule everywhere, as Yeom et al. 2021, "Pruning by Explaining", use it."""
    return rules.ZPlus(EPSILON)


@COMPOSITES.register("zplus_epsilon")
def zplus_epsilon(rules: ModuleType, layer: str) -> Rule:
    """z+ rule in all hidden layers, epsilon rule in the head, whose outputs' negative parts decide between actions."""
    return rules.Epsilon(EPSILON) if layer == "head" else rules.ZPlus(EPSILON)


@COMPOSITES.register("epsilon_gamma_box")
def epsilon_gamma_box(rules: ModuleType, layer: str) -> Rule:
    """Box rule for the pixels, gamma rule in the other convolutions, epsilon rule in dense layers and the head."""
    if layer == "conv1":
        return pixel_box(rules)
    return rules.Gamma(GAMMA, EPSILON) if layer.startswith("conv") else rules.Epsilon(EPSILON)


@COMPOSITES.register("alpha2_beta1")
def alpha2_beta1(rules: ModuleType, layer: str) -> Rule:
    """Alpha-beta rule (2, 1) in convolutions, epsilon rule in dense layers and the head."""
    return rules.AlphaBeta(2.0, 1.0, EPSILON) if layer.startswith("conv") else rules.Epsilon(EPSILON)


@SEEDS.register("greedy")
def greedy(chosen: Tensor, explained: Tensor) -> Tensor:
    """Explain the greedy action's output alone."""
    return functional.one_hot(chosen.argmax(1), chosen.shape[1]).to(explained)


@SEEDS.register("all")
def every_action(chosen: Tensor, explained: Tensor) -> Tensor:
    """Explain the outputs of all actions, each by its magnitude.

    With their signs, the logits of a policy head, which add up to 0, would leave nothing but rounding errors. Not for
    dueling heads: where all Q-values have the same sign, the advantages cancel and only the value stream is explained.
    """
    return explained.sign()


@SEEDS.register("softmax")
def softmax(chosen: Tensor, explained: Tensor) -> Tensor:
    """Explain all outputs, each weighted by the softmax (temperature 1) of the choosing outputs.

    For a policy head these are the action probabilities; for Q-values a soft choice of the greedy action.
    """
    return chosen.softmax(1).to(explained)
