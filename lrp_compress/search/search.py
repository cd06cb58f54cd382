"""A study from its first trial to its confirmed front."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.study import Study
from optuna.trial import Trial, TrialState
from rich.console import Console

from lrp_compress.agents.checkpoints import Agent
from lrp_compress.compression.pruning import prunable_layers
from lrp_compress.config.schema import INCIDENTAL, Config, SearchConfig, flatten
from lrp_compress.pipeline import find_teacher, preflight
from lrp_compress.search.confirming import Candidate, confirm_front
from lrp_compress.search.objectives import check_objectives
from lrp_compress.search.spaces import SPACES, Dimensions, Value, starting_points
from lrp_compress.search.studies import (
    RUN_DIR,
    SAMPLERS,
    STUDY,
    counts,
    open_study,
    storage_answers,
    without_password,
)
from lrp_compress.search.table import front_table
from lrp_compress.search.trials import OVERRIDES, Launch, run_trials
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import check_writable, write_json
from lrp_compress.tracking.runs import training_view

# A group that chooses a dimension's value: what the command line calls it, and the dimension.
GROUPS = {"prune": "prune.schedule"}

Compose = Callable[[Sequence[str]], Config]


@dataclass(frozen=True)
class Typed:
    """What the command line says about a search.

    Attributes
    ----------
    plain : list of str
        Overrides with one value, as typed.
    given : dict of str to BaseDistribution
        Those that are dimensions.
    """

    plain: list[str]
    given: dict[str, BaseDistribution]


def read_arguments(arguments: Sequence[str]) -> Typed:
    """Tell settings from dimensions, which are written ``interval(0.3,0.8)``, ``choice(a,b)`` or ``a,b``."""
    plain: list[str] = []
    given: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        value, name = override.value(), override.get_key_element().lstrip("+")
        if not override.is_sweep_override():
            plain.append(str(override.input_line))
        elif isinstance(value, IntervalSweep):
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            kind: Any = IntDistribution if whole else FloatDistribution
            given[name] = kind(value.start, value.end, log="log" in value.tags)
        else:
            given[name] = CategoricalDistribution([str(one) for one in override.sweep_string_iterator()])
    return Typed(plain, given)


def search(
    config: SearchConfig, arguments: Sequence[str], compose: Compose, launch: Launch, folder: Path, console: Console
) -> None:
    """Run a study, or go on with it, until it has all its trials; then confirm its front.

    Parameters
    ----------
    config : SearchConfig
        The checked settings.
    arguments : sequence of str
        Overrides of the command line.
    compose : callable
        Composes and checks a configuration from overrides.
    launch : callable
        Runs a batch of jobs, given their overrides and the first one's number.
    folder : Path
        The sweep's folder.
    console : Console
        Where the result goes.

    Raises
    ------
    UserError
        If a name is unknown, the storage cannot be used, or the study is another one.
    """
    space, _ = SPACES[config.space.name], SAMPLERS[config.sampler]
    check_objectives(config.objectives)
    typed = read_arguments(arguments)
    base = compose(typed.plain)
    if base.game.random_score is None:
        raise UserError(f"game={base.game.name} has no published score of random play, which return_kept needs")
    preflight(base)
    check_writable(folder, "hydra.sweep.dir")
    teacher, digest = find_teacher(base)
    layers = {name: teacher.network.widths[name] for name in prunable_layers(base.prune, teacher.network.widths)}
    study = open_study(config, _settings(config, typed, digest))
    starts = starting_points(base, layers, config.space)
    write_json(folder / STUDY, {"study": config.study, "storage": without_password(config.storage)})
    fixed = _fixed(typed, base)

    def overrides(trial: Trial) -> list[str]:
        ask_for = Dimensions(trial, typed.given, fixed)
        chosen = space(ask_for, layers, teacher.network.head_kind, config.space)
        chosen = {name: value for name, value in chosen.items() if name not in fixed} | ask_for.rest()
        return [*typed.plain, *(_override(name, value) for name, value in chosen.items())]

    with storage_answers(config):
        run_trials(study, config, starts, overrides, launch)
        if left := sum(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False)):
            console.print(f"study {config.study}: {left} trials still run elsewhere; their worker ends the study.")
            return
        _finish(study, config, compose, (teacher, digest), base, folder, console)


def _settings(config: SearchConfig, typed: Typed, digest: str) -> dict[str, Any]:
    """Collect what all trials of a study have in common."""
    plain = [override for override in typed.plain if re.split(r"[.=@]", override.lstrip("+"))[0] not in INCIDENTAL]
    return {
        "teacher": digest,
        "space": OmegaConf.to_container(OmegaConf.structured(config.space)),
        "floor": config.floor,
        "command": sorted(plain),
        "dimensions": {name: distribution_to_json(own) for name, own in sorted(typed.given.items())},
    }


def _fixed(typed: Typed, base: Config) -> dict[str, Value]:
    """Collect the settings that the command line has decided."""
    settings: dict[str, Any] = {**flatten(base), "criterion": base.criterion.name}
    names = [override.lstrip("+").partition("=")[0] for override in typed.plain]
    names = [GROUPS.get(name, name) for name in names]
    if "prune.layer_ratios" in names:
        names += [name for name in settings if name.startswith("prune.layer_ratios.")]
    return {name: settings[name] for name in names if name in settings}


def _override(name: str, value: Value) -> str:
    plus = "++" if name.startswith("prune.layer_ratios.") else ""
    return f"{plus}{name}={value}"


def _finish(
    study: Study,
    config: SearchConfig,
    compose: Compose,
    teacher: tuple[Agent, str],
    base: Config,
    folder: Path,
    console: Console,
) -> None:
    """Confirm the front and show it."""
    candidates = []
    for trial in study.best_trials:
        # the trial's settings, but this worker's places
        own = dataclasses.replace(
            compose(trial.user_attrs[OVERRIDES]), tracking=base.tracking, cache_dir=base.cache_dir
        )
        candidates.append(Candidate(trial.number, list(trial.values), own, Path(trial.user_attrs[RUN_DIR])))
    confirmed = confirm_front(candidates, config, *teacher, folder)
    trials = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
    console.print(front_table(config, confirmed, trials))
    console.print(f"\nstudents  {folder}", soft_wrap=True)
    console.print(f"study     {config.study} in {config.storage}", soft_wrap=True)
    if view := training_view(base.tracking, folder.name):
        console.print(f"runs      {view}", soft_wrap=True)
