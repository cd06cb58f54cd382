"""Which LRP rule each group of layers has, tuned on the agent itself.

After Hatefi et al. 2024, "Pruning By Explaining Revisited", who tune rules by group of layers for classifiers against
the area under their accuracy-ratio curve. Here a composite is worth the area under the curve of the logarithm of the
divergence from the teacher over the ratio, on held-out games and after repair, which every run does. An Optuna study (a
tree-structured Parzen estimator, Bergstra et al. 2011) looks for good ones, a second or two a trial; the best of them
and the default are then compared in more states, since the differences are small.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean

import optuna
import torch
from optuna import Trial
from tqdm import tqdm

from lrp_compress.agents.checkpoints import all_channels
from lrp_compress.compression.composites import RULES
from lrp_compress.compression.criteria import ChannelScores, score_channels
from lrp_compress.compression.losses import default_temperature, kl
from lrp_compress.compression.pruning import apply_pruning, plan_pruning
from lrp_compress.compression.repair import lessons, repair
from lrp_compress.config.schema import CriterionConfig, PruneConfig
from lrp_compress.environments.rollouts import Rollouts
from lrp_compress.networks.fast import batched_outputs
from lrp_compress.networks.graph import Network

TUNED = "lrp_tuned"
FEW = 3  # convolutions that have a rule each; more of them share one
STARTS = (  # tried first, by group: the default, then other known composites
    ("epsilon", "epsilon", "epsilon", "epsilon"),
    ("epsilon", "epsilon", "gamma", "gamma"),
    ("epsilon", "epsilon", "alpha_beta", "alpha_beta"),
    ("epsilon", "epsilon", "zplus", "zplus"),
    ("epsilon", "zplus", "zplus", "zplus"),
    ("gamma", "gamma", "gamma", "gamma"),
)
STRENGTH = 0.01  # of the repair's ridge
BATCH = 32  # states per backward pass: the fastest


@dataclass(frozen=True)
class Effort:
    """How a composite is judged: at what ratios, from how many states at most, and whether after repair."""

    ratios: tuple[float, ...]
    scored: int
    repaired_from: int
    judged: int
    repaired: bool = True


TRIAL = Effort((0.4, 0.7), scored=64, repaired_from=256, judged=256)
FINAL = Effort((0.3, 0.5, 0.7), scored=256, repaired_from=1536, judged=1024)
FINALISTS = 2  # beside the default


@dataclass(frozen=True)
class Tuned:
    """The best composite found.

    Attributes
    ----------
    composite : str
        Spelled out, as `lrp_compress.compression.composites.find_composite` reads it.
    finals : dict of str to float
        By finalist, the default first, the geometric mean over the ratios of the KL divergence from the teacher on the
        held-out states, in nats.
    trials : dict of str to float
        The same from fewer states for every composite that was tried.
    """

    composite: str
    finals: dict[str, float]
    trials: dict[str, float]


class Exam:
    """Says how far a network moves from its teacher that loses the channels which a composite finds worthless.

    Parameters
    ----------
    network : Network
        The network to be scored, with any head, on the CPU; left as it is.
    rollouts : Rollouts
        The teacher's play: states to score and to repair from, and held-out games to judge by.
    config : CriterionConfig
        Where relevance starts.
    prune : PruneConfig
        Which layers lose channels, and whether they compete.
    seed : int
        Of the repair.
    effort : Effort
        How carefully, and whether networks are repaired before they are judged.
    """

    def __init__(
        self,
        network: Network,
        rollouts: Rollouts,
        config: CriterionConfig,
        prune: PruneConfig,
        seed: int,
        effort: Effort,
    ) -> None:
        held_out = rollouts.held_out()
        self._network, self._effort = network, effort
        self._seen = rollouts.part(~held_out, effort.repaired_from)
        self._judged = rollouts.part(held_out, effort.judged)
        self._lessons = lessons(network, self._seen.observations, seed) if effort.repaired else []
        self._temperature = default_temperature(network.head_kind, self._judged.outputs)
        self._how = replace(config, name="lrp", states=effort.scored, batch_size=BATCH)
        self._prune = replace(prune, layer_ratios={})

    def __call__(self, composite: str) -> float:
        """Compute the geometric mean over the ratios of the KL divergence on the held-out states, in nats."""
        network, judged = self._network, self._judged
        how = replace(self._how, composite=composite)
        scores = score_channels(network, self._seen.observations, self._seen.outputs, how, seed=0)
        found = []
        for ratio in self._effort.ratios:
            plan = plan_pruning(scores, network, network.widths, all_channels(network.widths), self._prune, ratio)
            pruned = apply_pruning(network, plan)
            if self._effort.repaired:
                pruned = repair(pruned, plan.keep, self._lessons, (), STRENGTH).network
            found.append(kl(batched_outputs(pruned, judged.observations), judged.outputs, self._temperature).item())
        return geometric_mean(max(divergence, 1e-12) for divergence in found)


def tune(
    network: Network,
    rollouts: Rollouts,
    config: CriterionConfig,
    prune: PruneConfig,
    seed: int,
    repaired: bool = True,
) -> Tuned:
    """Look for the composite whose relevance says best which channels can go.

    Parameters are those of `Exam`; ``config.trials`` composites are tried. Unless `repaired`, networks are judged as
    they come out of pruning.

    Returns
    -------
    Tuned
        The same for the same seed. Never worse than the epsilon rule by its last judgement, in which that takes part.
    """
    groups = tuned_groups(network)
    quick = functools.cache(Exam(network, rollouts, config, prune, seed, replace(TRIAL, repaired=repaired)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    starts = dict.fromkeys(rules[: len(groups)] for rules in STARTS)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(n_startup_trials=len(starts), seed=seed))
    for rules in starts:
        study.enqueue_trial(_answers(groups, rules))
    trials: dict[str, float] = {}
    finals: dict[str, float] = {}

    def judge(trial: Trial) -> float:
        composite = ", ".join(_ask(trial, group) for group in groups)
        trials[composite] = quick(composite)
        progress.update()
        return trials[composite]

    with tqdm(total=config.trials + 1 + FINALISTS, desc="tune", unit="trial", leave=False, disable=None) as progress:
        study.optimize(judge, n_trials=config.trials)
        default, *others = trials
        careful = Exam(network, rollouts, config, prune, seed, replace(FINAL, repaired=repaired))
        for composite in [default, *sorted(others, key=lambda name: trials[name])[:FINALISTS]]:
            finals[composite] = careful(composite)
            progress.update()
    return Tuned(min(finals, key=lambda name: finals[name]), finals, trials)


def tuned_groups(network: Network) -> tuple[str, ...]:
    """Name the groups of layers whose rules say something of channels: the first layer's does not."""
    convolutions = [name for name in network.weighted if name.startswith("conv")]
    few = reversed(convolutions[1:]) if len(convolutions) <= FEW else ("conv",)
    return ("head", "dense", *few)


def score_by_play(
    network: Network, rollouts: Rollouts, config: CriterionConfig, prune: PruneConfig, seed: int
) -> tuple[ChannelScores, Tuned | None]:
    """Score the channels of a network on states of play, by tuned rules where the criterion is `TUNED`.

    Parameters
    ----------
    network, rollouts, prune, seed
        As `Exam` takes them; of the rollouts ``config.states`` states of all games are scored on.
    config : CriterionConfig
        Criterion, composite and numbers of states and trials.

    Returns
    -------
    scores : ChannelScores
    tuned : Tuned or None
        What the tuning found; None if there was none.
    """
    tuned = tune(network, rollouts, config, prune, seed) if config.name == TUNED else None
    how = replace(config, composite=tuned.composite) if tuned else config
    states = rollouts.part(torch.ones(len(rollouts), dtype=torch.bool), config.states)
    return score_channels(network, states.observations, states.outputs, how, seed), tuned


def _ask(trial: Trial, group: str) -> str:
    rule = trial.suggest_categorical(f"{group} rule", list(RULES))
    if rule == "gamma":
        return f"{group} gamma {trial.suggest_float(f'{group} gamma', 0.02, 2, log=True):.2g}"
    if rule == "alpha_beta":
        return f"{group} alpha_beta {trial.suggest_float(f'{group} alpha', 1.1, 3):.2g}"
    return f"{group} {rule}"


def _answers(groups: Sequence[str], rules: Sequence[str]) -> dict[str, str | float]:
    answers: dict[str, str | float] = {}
    for group, rule in zip(groups, rules, strict=True):
        answers[f"{group} rule"] = rule
        if rule == "gamma":
            answers[f"{group} gamma"] = 0.25
        if rule == "alpha_beta":
            answers[f"{group} alpha"] = 2.0
    return answers
