"""Search spaces by name: functions that ask for the settings of a trial one after the other.

To add one, register a function that asks a `Dimensions` and returns settings, and name it in ``conf/search/``. What is
asked may depend on earlier answers: only an iterative schedule has a number of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from optuna import Trial
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lrp_compress.compression.composites import COMPOSITES
from lrp_compress.config.schema import Config, SpaceConfig, flatten
from lrp_compress.support.registry import Registry

Value = str | int | float
RATIO_STEP = 0.05  # of a layer's channels: finer ones often give the same widths
LAYER_RATIO = "prune.layer_ratios."

# What a trial may try. LRP in three ways, the best of the cheap criteria, and what all of them have to beat.
CRITERIA = ("lrp", "lrp_tuned", "taylor", "fisher", "weight_l1", "random")


class Dimensions:
    """Asks a trial for values, unless the command line has decided.

    Parameters
    ----------
    trial : Trial
        The trial.
    given : mapping of str to BaseDistribution
        Dimensions of the command line (``interval(0.3,0.8)``, ``choice(a,b)``); they replace the space's own.
    fixed : mapping of str to str, int or float
        Settings of the command line with a single value: no dimensions any more.
    """

    def __init__(self, trial: Trial, given: Mapping[str, BaseDistribution], fixed: Mapping[str, Value]) -> None:
        self._trial = trial
        self._given = given
        self._fixed = fixed

    def choice(self, name: str, options: Sequence[str]) -> str:
        """One of some names."""
        return str(self._ask(name, CategoricalDistribution(options)))

    def count(self, name: str, low: int, high: int, log: bool = False) -> int:
        """Take a whole number from `low` to `high`."""
        return int(self._ask(name, IntDistribution(low, high, log=log)))

    def number(self, name: str, low: float, high: float, step: float | None = None, log: bool = False) -> float:
        """Take a number from `low` to `high`, in steps or on a logarithmic scale."""
        return float(self._ask(name, FloatDistribution(low, high, step=step, log=log)))

    def rest(self) -> dict[str, Value]:
        """Ask for the command line's dimensions that the space does not know."""
        return {name: self._ask(name, own) for name, own in self._given.items() if name not in self._trial.params}

    def _ask(self, name: str, own: BaseDistribution) -> Value:
        if name in self._fixed:
            return self._fixed[name]
        value: Any
        match self._given.get(name, own):
            case CategoricalDistribution() as among:
                value = self._trial.suggest_categorical(name, among.choices)
            case IntDistribution() as whole:
                value = self._trial.suggest_int(name, whole.low, whole.high, step=whole.step, log=whole.log)
            case FloatDistribution() as real:
                value = self._trial.suggest_float(name, real.low, real.high, step=real.step, log=real.log)
        return cast(Value, value)


Space = Callable[[Dimensions, Mapping[str, int], str, SpaceConfig], dict[str, Value]]
SPACES: Registry[Space] = Registry("search.space.name")


@SPACES.register("pruning_schedule")
def pruning_schedule(ask: Dimensions, widths: Mapping[str, int], head: str, config: SpaceConfig) -> dict[str, Value]:
    """How to prune and distil: the schedule and its steps, a final ratio for every layer, the criterion, the dose.

    Parameters
    ----------
    ask : Dimensions
        Whom to ask.
    widths : mapping of str to int
        Channels of the teacher per layer that may be pruned.
    head : {"q", "policy"}
        The teacher's; the temperature of Q-values follows from their gaps and is not searched.
    config : SpaceConfig
        Limits.

    Returns
    -------
    dict of str to str, int or float
        Settings by their names on the command line.
    """
    chosen: dict[str, Value] = {}
    chosen["prune.schedule"] = schedule = ask.choice("prune.schedule", ["one_shot", "linear", "geometric", "cubic"])
    chosen["prune.steps"] = 1 if schedule == "one_shot" else ask.count("prune.steps", 2, config.max_steps)
    for layer in widths:
        name = f"{LAYER_RATIO}{layer}"
        chosen[name] = round(ask.number(name, 0.0, config.max_ratio, step=RATIO_STEP), 4)
    chosen["prune.ratio"] = removed(chosen, widths)
    chosen["criterion"] = criterion = ask.choice("criterion", CRITERIA)
    if criterion == "lrp":
        chosen["criterion.composite"] = ask.choice("criterion.composite", COMPOSITES.names())
    chosen["distill.samples"] = ask.count("distill.samples", config.min_samples, config.max_samples, log=True)
    chosen["distill.data"] = ask.choice("distill.data", ["mixed", "student", "teacher"])
    if head == "policy":
        chosen["distill.temperature"] = ask.number("distill.temperature", 0.5, 4.0, log=True)
    return chosen


def removed(chosen: Mapping[str, Value], widths: Mapping[str, int]) -> float:
    """Share of all prunable channels that go when each layer loses its ratio."""
    gone = sum(float(chosen[f"{LAYER_RATIO}{layer}"]) * width for layer, width in widths.items())
    return round(gone / sum(widths.values()), 2)


def starting_points(config: Config, widths: Mapping[str, int], space: SpaceConfig) -> list[dict[str, Value]]:
    """List trials worth making first: equal ratios for all layers, and the filters alone, as in the ISORC 2022 paper.

    Parameters
    ----------
    config : Config
        Gives the values of all other dimensions.
    widths : mapping of str to int
        Channels of the teacher per layer that may be pruned.
    space : SpaceConfig
        Limits.

    Returns
    -------
    list of dict of str to str, int or float
        Values of the dimensions.
    """
    settings = flatten(config)
    plain: dict[str, Value] = {
        "prune.schedule": "one_shot",
        "criterion": config.criterion.name,
        "criterion.composite": config.criterion.composite,
        "distill.samples": min(max(config.distill.samples, space.min_samples), space.max_samples),
        "distill.data": config.distill.data,
        "distill.temperature": float(settings["distill.temperature"] or 1.0),
    }
    uniform = [dict.fromkeys(widths, ratio) for ratio in (0.3, 0.5, 0.7, 0.9) if ratio <= space.max_ratio]
    conv_only = {layer: 0.5 if layer.startswith("conv") else 0.0 for layer in widths}
    return [
        plain | {f"{LAYER_RATIO}{layer}": ratio for layer, ratio in ratios.items()} for ratios in [*uniform, conv_only]
    ]
