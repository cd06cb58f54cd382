"""Optuna's studies: opened by any number of workers, continued after any of them has died."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy.exc
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import Study as Study  # for the modules that draw studies
from optuna.trial import FrozenTrial, Trial, TrialState

from lrp_compress.config.schema import SearchConfig
from lrp_compress.search.objectives import OBJECTIVES
from lrp_compress.support.errors import UserError, unknown_name
from lrp_compress.support.processes import owner, process_lives
from lrp_compress.support.registry import Registry
from lrp_compress.tracking.stores import locked

T = TypeVar("T")
logger = logging.getLogger(__name__)

STUDY, FRONT = "study.json", "front.json"  # in the sweep's folder: which study it belongs to, and its result
SETTINGS = "settings"  # attributes of studies and trials
RUN_DIR = "run_dir"
OWNER, BEAT, ERROR, RETRY_OF = "owner", "beat", "error", "retry_of"
ATTEMPTS = 8  # of workers that make the same database at the same moment
BEAT_SECONDS = 30.0
# What a database says when it is busy or half made, and when another worker was faster.
CONTENTION = (
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.ProgrammingError,
    optuna.exceptions.StorageInternalError,
)

SAMPLERS: Registry[Callable[[int], BaseSampler]] = Registry("search.sampler")
# constant_liar: workers that ask at the same time are not sent to the same place
SAMPLERS.register("tpe")(lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True))
SAMPLERS.register("gp")(lambda seed: GPSampler(seed=seed))
SAMPLERS.register("nsgaii")(lambda seed: NSGAIISampler(seed=seed))
SAMPLERS.register("random")(lambda seed: RandomSampler(seed=seed))


def open_study(config: SearchConfig, settings: Mapping[str, Any]) -> Study:
    """Make a study, or open the one of that name.

    Parameters
    ----------
    config : SearchConfig
        Name, storage, sampler, objectives.
    settings : mapping
        What the trials have in common, as JSON values. A study is not continued with other ones.

    Raises
    ------
    UserError
        If the storage cannot be used, or the study was made with other settings.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    directions = [OBJECTIVES[name].direction for name in config.objectives]

    def make() -> Study:
        storage = optuna.storages.RDBStorage(config.storage, engine_kwargs=_engine(config.storage))
        study = optuna.create_study(
            study_name=config.study, storage=storage, directions=directions, load_if_exists=True
        )
        if study.metric_names is None:
            study.set_metric_names(config.objectives)
        if SETTINGS not in study.user_attrs:
            study.set_user_attr(SETTINGS, dict(settings))
        return study

    study = _insisting(make, config)
    _check_same(study, config, directions, settings)
    # other draws after every restart, and in every worker
    study.sampler = SAMPLERS[config.sampler](config.seed + len(study.get_trials(deepcopy=False)))
    return study


def load_study(name: str, storage: str) -> Study:
    """Open a study that exists, to read it.

    Raises
    ------
    UserError
        If the storage cannot be used, or has no study of that name.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    shown = without_password(storage)
    try:
        if (path := _sqlite_file(storage)) is not None and not path.exists():
            raise UserError(f"there is no database {path}; name the one that the study is in")
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise unknown_name("study", name, names)
        return optuna.load_study(study_name=name, storage=storage)
    except (ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise UserError(f"{shown}: {_said(error)}") from error


def close_dead(study: Study, config: SearchConfig) -> None:
    """End the trials whose worker is gone, or on another host silent for too long, and queue their values again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        lives = process_lives(trial.user_attrs.get(OWNER, {}))
        beat = trial.user_attrs.get(BEAT) or (trial.datetime_start.timestamp() if trial.datetime_start else 0)
        if lives is False or (lives is None and time.time() - beat > 60 * config.stale_minutes):
            requeue(study, config, trial.number, "its worker is gone")


def requeue(study: Study, config: SearchConfig, number: int, reason: str) -> None:
    """End a trial that was cut off, and queue its values again, also those that it was not asked for yet."""
    with _alone(config):
        trial = study.get_trials(deepcopy=False)[number]
        if trial.state != TrialState.RUNNING:  # another worker has been faster
            return
        study.tell(number, state=TrialState.FAIL)
        if values := (_queued(trial) or {}) | trial.params:
            study.enqueue_trial(values, user_attrs={RETRY_OF: number})
    logger.warning("trial %d is queued again: %s", number, reason)


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of the study's total: not if it only waits or was cut off."""
    if trial.state == TrialState.FAIL:
        return ERROR in trial.user_attrs
    return trial.state != TrialState.WAITING


def ask(study: Study, config: SearchConfig, starts: Sequence[Mapping[str, Any]]) -> Trial | None:
    """Begin a trial, unless the study has all it should have.

    Parameters
    ----------
    study : Study
        The study.
    config : SearchConfig
        Number of trials.
    starts : sequence of mapping
        Values of the first trials. What was cut off comes before them.

    Returns
    -------
    Trial or None
    """
    with _alone(config):
        trials = study.get_trials(deepcopy=False)
        if sum(map(counts, trials)) >= config.n_trials:
            return None
        if not any(trial.state == TrialState.WAITING for trial in trials):
            begun = [_queued(trial) for trial in trials]
            for values in [values for values in starts if values not in begun][:1]:
                study.enqueue_trial(dict(values))
        trial = study.ask()
        trial.set_user_attr(OWNER, owner())
        return trial


@contextlib.contextmanager
def _alone(config: SearchConfig) -> Iterator[None]:
    """Let one worker at a time see what there is to do and take it, or they would do the same twice."""
    if path := _sqlite_file(config.storage):
        with locked(f"sqlite:///{path.absolute()}"):
            yield
        return
    with sqlalchemy.create_engine(config.storage, poolclass=sqlalchemy.NullPool).connect() as server:
        if server.dialect.name == "postgresql":  # held until the connection ends, however it does
            server.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(zlib.crc32(config.study.encode()))))
        yield


def _sqlite_file(storage: str) -> Path | None:
    url = sqlalchemy.engine.make_url(storage)
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _queued(trial: FrozenTrial) -> dict[str, Any] | None:
    """Values that a trial was queued with."""
    values: dict[str, Any] | None = trial.system_attrs.get("fixed_params")
    return values


@contextlib.contextmanager
def alive(trials: Sequence[Trial]) -> Iterator[None]:
    """Tell the other hosts every half minute that this worker lives."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT_SECONDS):
            for trial in trials:
                with contextlib.suppress(Exception):  # a storage that is busy for a moment
                    trial.set_user_attr(BEAT, time.time())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _engine(storage: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {"pool_pre_ping": True}


def _insisting(make: Callable[[], T], config: SearchConfig) -> T:
    """Try again while other workers make the same database."""
    for attempt in range(ATTEMPTS):
        try:
            return make()
        except CONTENTION as error:
            if attempt == ATTEMPTS - 1 or not _passes(error):
                raise UserError(f"search.storage={without_password(config.storage)}: {_said(error)}") from error
            time.sleep(0.2 * (attempt + 1) * (0.5 + random.random()))
        except (ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"search.storage={without_password(config.storage)}: {_said(error)}") from error
    raise AssertionError


def _passes(error: BaseException) -> bool:
    """Whether an error may be gone in a moment; a missing folder or a server that does not answer is not."""
    text = _said(error)
    return not any(
        word in text for word in ("unable to open", "readonly", "refused", "could not translate", "password")
    )


@contextlib.contextmanager
def storage_answers(config: SearchConfig) -> Iterator[None]:
    """Say in one line, with the remedy, that the storage of an open study has gone away.

    Raises
    ------
    UserError
        In place of what the database raised.
    """
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        shown = without_password(config.storage)
        raise UserError(
            f"search.storage={shown} stopped answering: {_said(error)}; the same command goes on once it answers again"
        ) from error


def _said(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).splitlines()[0].split())[:200]


def without_password(storage: str) -> str:
    """Leave the password out of a database's address."""
    try:
        return sqlalchemy.engine.make_url(storage)._replace(password=None).render_as_string()
    except sqlalchemy.exc.ArgumentError:
        return storage


def _check_same(study: Study, config: SearchConfig, directions: Sequence[str], settings: Mapping[str, Any]) -> None:
    remedy = "choose another search.study"
    if [direction.name.lower() for direction in study.directions] != directions or (
        study.metric_names != config.objectives
    ):
        raise UserError(f"study {config.study} optimises {', '.join(study.metric_names or ['?'])}; {remedy}")
    before = study.user_attrs[SETTINGS]
    changed = [name for name in settings if settings[name] != before.get(name)]
    if changed:
        raise UserError(f"study {config.study} was made with another {', '.join(changed)}; {remedy}")
