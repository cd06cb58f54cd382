"""Connections to an MLflow store: its database made, its refusals worded, its experiment found.

MLflow is imported inside functions, so that this module costs nothing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError
from lrp_compress.support.files import atomic_path
from lrp_compress.tracking.stores import database_file, locked, resolve_uri
from lrp_compress.tracking.tracker import failures_of_stores
from lrp_compress.tracking.views import VIEW_TAG, runs_view

if TYPE_CHECKING:
    from mlflow import MlflowClient

MESSAGE_CHARS = 300


@contextlib.contextmanager
def refusals_in_one_line(uri: str) -> Iterator[None]:
    """Word what MLflow, the database or the system raises in the block in one line that names the store.

    Raises
    ------
    UserError
    """
    import_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UserError(f"tracking.uri={uri}: {' '.join(str(error).split())[:MESSAGE_CHARS]}") from error
    except failures_of_stores() as error:
        said = " ".join(str(error.__cause__ or error).split())[:MESSAGE_CHARS]
        raise UserError(f"tracking.uri={uri} cannot be used ({said}); mend it, or choose another") from error


def import_mlflow() -> None:
    """Import MLflow without telemetry, migration logs and printed addresses."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it raises what it logs


def connect(uri: str, timeout_s: float) -> MlflowClient:
    """Connect to a store, whose database is made if it is a file that is not there yet.

    Parameters
    ----------
    uri : str
        As `stores.resolve_uri` gives it.
    timeout_s : float
        Seconds that a server has to answer.
    """
    import_mlflow()
    # MLflow's own patience is 120 s a request and eight requests, so that a server that hangs would hold a run up.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(timeout_s)))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow import MlflowClient

    path = database_file(uri)
    if path is not None:
        if not path.exists() or not path.stat().st_size:
            _make_database(path)
        # With a write-ahead log parallel jobs write about three times as fast; the setting stays in the file.
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
            database.execute("pragma journal_mode=wal")
    return MlflowClient(tracking_uri=uri)


def _make_database(path: Path) -> None:
    """Make a store beside its place and move it there: MLflow never again opens one whose making was cut off."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with atomic_path(path) as temporary:
        artifacts = (path.parent / "mlartifacts").as_uri()
        store = SqlAlchemyStore(f"sqlite:///{temporary}", artifacts)  # type: ignore[no-untyped-call]
        store.engine.dispose()


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Find an experiment, or create it; give its id.

    Raises
    ------
    UserError
        If it was deleted.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        path = database_file(uri)
        # MLflow's own choice hangs on the folder of the process that happens to come first.
        location = (path.parent / "mlartifacts").as_uri() if path else None
        try:
            return str(client.create_experiment(name, artifact_location=location, tags={VIEW_TAG: runs_view()}))
        except MlflowException:  # a process of another machine or container may have come first
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment={name} was deleted; choose another name or run "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}` with MLFLOW_TRACKING_URI={uri}"
        )
    if experiment.tags.get(VIEW_TAG) != runs_view():
        client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, runs_view())
    return str(experiment.experiment_id)


@contextlib.contextmanager
def existing_experiment(config: TrackingConfig) -> Iterator[tuple[MlflowClient, str] | None]:
    """Client and experiment id under the store's lock; None if there is no such store or experiment yet."""
    uri = config.uri and resolve_uri(config.uri)
    path = database_file(uri) if uri else None
    if not uri or (path is not None and not path.exists()):
        yield None
        return
    with locked(uri), refusals_in_one_line(uri):
        client = connect(uri, config.timeout_s)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None or experiment.lifecycle_stage != "active":
            yield None
        else:
            yield client, str(experiment.experiment_id)
