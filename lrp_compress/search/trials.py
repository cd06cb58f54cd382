"""The trials of a study: asked for, launched as Hydra's jobs, and told, however they end."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from optuna.study import Study
from optuna.trial import Trial, TrialState

from lrp_compress.config.schema import SearchConfig
from lrp_compress.search.objectives import RETURN_KEPT, objective_values
from lrp_compress.search.studies import ERROR, RUN_DIR, alive, ask, close_dead, requeue
from lrp_compress.support.errors import GivenUp

logger = logging.getLogger(__name__)

OVERRIDES, GIVEN_UP, SPREAD = "overrides", "given_up", "speedup_spread"  # attributes of trials
ERROR_CHARS = 500

Launch = Callable[[Sequence[Sequence[str]], int], Sequence[JobReturn]]


def run_trials(
    study: Study,
    config: SearchConfig,
    starts: Sequence[Mapping[str, Any]],
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
        close_dead(study, config)
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
                requeue(study, config, trial.number, "interrupted")
            raise
        for trial, end in zip(trials, ends, strict=True):
            tell(study, config, trial, end)


def tell(study: Study, config: SearchConfig, trial: Trial, end: JobReturn | Exception) -> None:
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
