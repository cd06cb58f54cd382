"""A study from its first trial to its confirmed front."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.core.utils import JobReturn
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
from lrp_compress.config import Config, SearchConfig, TrackingConfig, flatten
from lrp_compress.errors import GivenUp, UserError
from lrp_compress.files import check_writable, write_json
from lrp_compress.pipeline import find_teacher, preflight
from lrp_compress.search.confirming import Candidate, confirm_front
from lrp_compress.search.objectives import RETURN_KEPT, check_objectives, objective_values
from lrp_compress.search.spaces import SPACES, Dimensions, Value, starting_points
from lrp_compress.search.studies import (
    ERROR,
    RUN_DIR,
    SAMPLERS,
    STUDY,
    alive,
    ask,
    close_dead,
    counts,
    open_study,
    requeue,
    without_password,
)
from lrp_compress.search.table import front_table
from lrp_compress.tracking.runs import training_view

logger = logging.getLogger(__name__)

OVERRIDES, GIVEN_UP, SPREAD = "overrides", "given_up", "speedup_spread"  # attributes of trials
ERROR_CHARS = 500
# A group that chooses a dimension's value: what the command line calls it, and the dimension.
GROUPS = {"prune": "prune.schedule"}

Compose = Callable[[Sequence[str]], Config]
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]


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

    run_trials(study, config, starts, overrides, launch)
    if left := sum(trial.state == TrialState.RUNNING for trial in study.get_trials(deepcopy=False)):
        console.print(f"study {config.study}: {left} trials still run elsewhere; their worker ends the study.")
        return
    _finish(study, config, compose, (teacher, digest), base.tracking, folder, console)


def _settings(config: SearchConfig, typed: Typed, digest: str) -> dict[str, Any]:
    """Collect what all trials of a study have in common."""
    plain = [
        override for override in typed.plain if not override.lstrip("+").startswith(("tracking", "cache_dir", "force"))
    ]
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


def run_trials(
    study: Study,
    config: SearchConfig,
    starts: Sequence[Mapping[str, Value]],
    overrides: Callable[[Trial], list[str]],
    launch: Launch,
) -> None:
    """Run trials, a batch at a time, until the study has all it should have.

    Parameters
    ----------
    study : Study
        The study.
    config : SearchConfig
        The checked settings.
    starts : sequence of mapping
        Values of the first trials.
    overrides : callable
        Asks a trial for its values and returns the job's overrides.
    launch : callable
        Runs a batch of jobs, given their overrides and the first one's number.
    """
    while True:
        close_dead(study, config.stale_minutes)
        trials: list[Trial] = []
        while len(trials) < config.n_jobs and (trial := ask(study, config, starts)) is not None:
            trials.append(trial)
        if not trials:
            return
        jobs = []
        for trial in trials:
            jobs.append(overrides(trial))
            trial.set_user_attr(OVERRIDES, jobs[-1])
        try:
            with alive(trials):
                ends: Sequence[JobReturn | Exception] = launch(jobs, trials[0].number)
        except Exception as error:  # a process of the launcher died, and with it what it knew of the batch
            ends = [error] * len(trials)
        except BaseException:  # interrupted
            for trial in trials:
                requeue(study, trial.number, trial.params, "interrupted")
            raise
        for trial, end in zip(trials, ends, strict=True):
            _tell(study, config, trial, end)


def _tell(study: Study, config: SearchConfig, trial: Trial, end: JobReturn | Exception) -> None:
    """Hand a trial's result to the study, whatever it is."""
    try:
        if isinstance(end, Exception):
            raise end
        trial.set_user_attr(RUN_DIR, str(end.hydra_cfg.hydra.runtime.output_dir))  # type: ignore[union-attr]
        with contextlib.redirect_stderr(io.StringIO()):  # Hydra announces here what has been said
            metrics: Mapping[str, float] = end.return_value
        values = objective_values(config.objectives, metrics)
        if config.floor is not None:
            trial.set_constraint("floor", config.floor - metrics[RETURN_KEPT])
        trial.set_user_attr(RETURN_KEPT, metrics[RETURN_KEPT])
        trial.set_user_attr(SPREAD, metrics["student/speedup_spread"])
    except GivenUp as reason:
        trial.set_user_attr(GIVEN_UP, str(reason))
        study.tell(trial, state=TrialState.PRUNED)
        logger.info("trial %d pruned: %s", trial.number, reason)
    except Exception as error:
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {error}"[:ERROR_CHARS])
        study.tell(trial, state=TrialState.FAIL)
        logger.error("trial %d failed: %s", trial.number, " ".join(str(error).split())[:ERROR_CHARS])
    else:
        study.tell(trial, values)
        told = ", ".join(f"{name} {value:.4g}" for name, value in zip(config.objectives, values, strict=True))
        logger.info("trial %d: %s", trial.number, told)


def _finish(
    study: Study,
    config: SearchConfig,
    compose: Compose,
    teacher: tuple[Agent, str],
    tracking: TrackingConfig,
    folder: Path,
    console: Console,
) -> None:
    """Confirm the front and show it."""
    candidates = [
        Candidate(
            trial.number, list(trial.values), compose(trial.user_attrs[OVERRIDES]), Path(trial.user_attrs[RUN_DIR])
        )
        for trial in study.best_trials
    ]
    confirmed = confirm_front(candidates, config, *teacher, folder)
    trials = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
    console.print(front_table(config, confirmed, trials))
    console.print(f"\nstudents  {folder}", soft_wrap=True)
    console.print(f"study     {config.study} in {config.storage}", soft_wrap=True)
    if view := training_view(tracking, folder.name):
        console.print(f"runs      {view}", soft_wrap=True)
