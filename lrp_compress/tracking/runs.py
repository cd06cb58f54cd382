"""Runs recorded in MLflow: one locked set-up, buffered metrics, end states that are true.

The store is a SQLite database or an MLflow server. A run is found again by the hash of its configuration: the same
command continues the run that did not finish. MLflow is imported inside functions, so that this module costs nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import shlex
import socket
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError
from lrp_compress.support.processes import git_state, owner, process_lives, sigterm_exits
from lrp_compress.tracking.connections import (
    MESSAGE_CHARS,
    connect,
    ensure_experiment,
    existing_experiment,
    refusals_in_one_line,
)
from lrp_compress.tracking.journal import Journal
from lrp_compress.tracking.stores import check_answers, check_database, database_file, locked, resolve_uri
from lrp_compress.tracking.tracker import MlflowTracker, Tracker, failures_of_stores, set_tags
from lrp_compress.tracking.views import VIEW

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

ERROR_CHARS = 500
MOST_RUNS = 50_000  # that MLflow gives at once
LOCAL_UI = "http://127.0.0.1:5000"
RUNS_VIEW = "?workflowType=machine_learning"  # without it MLflow opens a page for language-model traces
SHOWN_AS = f"viewStateShareKey={VIEW}"


def check_store(config: TrackingConfig) -> None:
    """Check before any work that the store can be used; nothing is written.

    Parameters
    ----------
    config : TrackingConfig
        A server has ``timeout_s`` seconds to answer. A null ``uri`` needs no check.

    Raises
    ------
    UserError
        If a server does not answer or refuses; if the database's folder is missing or not writable; if the file is
        not a SQLite database.
    """
    if config.uri is None:
        return
    uri = resolve_uri(config.uri)
    path = database_file(uri)
    if path is not None:
        check_database(path)
        return
    check_answers(uri, config.timeout_s)
    # The health page is open to all: a wrong password or a host name that the server does not allow shows only here.
    with refusals_in_one_line(uri):
        connect(uri, config.timeout_s).search_experiments(max_results=1)


@contextlib.contextmanager
def open_run(
    config: TrackingConfig,
    *,
    name: str,
    tags: Mapping[str, str],
    params: Mapping[str, object],
    again: bool = False,
    journal: Journal | None = None,
) -> Iterator[Tracker]:
    """Record what the block does as one run, continuing the run of the same configuration that did not finish.

    The run ends FINISHED when the block ends, FAILED with the tag ``error`` on an exception, KILLED on Ctrl-C,
    SIGTERM (which raises ``SystemExit(143)`` in the block; a second one ends the process at once) or ``sys.exit``.
    Runs that this host left RUNNING when their process died are set to KILLED first. A store that fails meanwhile does
    not fail the block.

    Parameters
    ----------
    config : TrackingConfig
        The store and the experiment; a null ``uri`` records nothing.
    name : str
        The run's name, for a new run.
    tags : mapping
        Its tags, with the run's identity as ``config_hash``; the state of the code's git repository is added to them.
    params : mapping
        The flattened configuration.
    again : bool
        Continue a finished run as well.
    journal : Journal, optional
        Where the records are kept, so that none is lost while the store fails, and none made twice.

    Yields
    ------
    Tracker
        Where to record.

    Raises
    ------
    UserError
        If a process of this host is recording the same configuration now; if MLflow refuses the store.
    """
    if config.uri is None:
        yield Tracker()
        return
    uri, kept = resolve_uri(config.uri), journal or Journal()
    git = git_state()
    identity = {**git, **_shown(git), **tags, **owner()}
    with sigterm_exits():
        with locked(uri), refusals_in_one_line(uri):
            client = connect(uri, config.timeout_s)
            experiment = ensure_experiment(client, uri, config.experiment)
            _close_dead(client, experiment)
            run_id = _claim(client, experiment, name, identity, kept.run_id if again else None)
        address = f"{_ui(config, uri)}/#/experiments/{experiment}/runs/{run_id}{RUNS_VIEW}"
        logger.info("recorded at %s", address)
        tracker = MlflowTracker(client, run_id, address, kept)
        try:
            tracker.params(params)
            yield tracker
        except Exception as error:
            _end_badly(client, tracker, "FAILED", {"error": f"{type(error).__name__}: {error}"[:ERROR_CHARS]})
            raise
        except BaseException:
            _end_badly(client, tracker, "KILLED", {})
            raise
        tracker.end()


def finished_runs(config: TrackingConfig, wanted: str) -> list[Run]:
    """Find the finished runs that MLflow's filter names.

    Parameters
    ----------
    config : TrackingConfig
        The store and the experiment.
    wanted : str
        E.g. ``tags.game = 'breakout' and params.`prune.ratio` = '0.5'``.

    Returns
    -------
    list of Run
        MLflow's, the newest first.

    Raises
    ------
    UserError
        If MLflow refuses the filter.
    """
    with existing_experiment(config) as found:
        if found is None:
            return []
        client, experiment = found
        runs = client.search_runs([experiment], wanted, max_results=MOST_RUNS)
    return [run for run in runs if run.info.status == "FINISHED"]


def training_view(config: TrackingConfig, sweep: str = "") -> str:
    """Say where the experiment's runs, or those of one sweep, can be looked at.

    Returns
    -------
    str
        For a SQLite store the command that starts the user interface and, on a second line, the address of the runs;
        for a server the address, its first page where it does not answer; empty if nothing is recorded.
    """
    if config.uri is None:
        return ""
    uri, page = resolve_uri(config.uri), ""
    with contextlib.suppress(UserError), existing_experiment(config) as found:
        page = f"/#/experiments/{found[1]}/runs{RUNS_VIEW}" if found else ""
    if page:  # MLflow takes a filter or a view
        page += f"&searchFilter={urllib.parse.quote(f'tags.sweep = {sweep!r}')}" if sweep else f"&{SHOWN_AS}"
    address = f"{_ui(config, uri)}{page}"
    if database_file(uri) is None:
        return address
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}\n{address}"


def run_page(config: TrackingConfig, run_id: str) -> str:
    """Say where a run can be looked at, without asking the store; empty if nothing is recorded."""
    return f"{_ui(config, resolve_uri(config.uri))}/#/runs/{run_id}{RUNS_VIEW}" if config.uri and run_id else ""


def _shown(git: Mapping[str, str]) -> dict[str, str]:
    """Tags that MLflow's columns for source, user and commit show."""
    shown = {"mlflow.source.name": "lrp_compress", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(KeyError, OSError):  # a container's user may have no name
        shown["mlflow.user"] = getpass.getuser()
    return shown | ({"mlflow.source.git.commit": git["git_sha"]} if git else {})


def _folder(tags: Mapping[str, str]) -> str:
    return tags.get("run_dir", "")


def _ui(config: TrackingConfig, uri: str) -> str:
    """Say where a person opens the store's pages; a server may have another address for them than for us."""
    return (config.ui or (uri if database_file(uri) is None else LOCAL_UI)).rstrip("/")


def _claim(client: MlflowClient, experiment: str, name: str, identity: Mapping[str, str], before: str | None) -> str:
    """Continue the newest run of the same configuration that did not finish, else create one; its id.

    A run that this process has left behind, because its store failed in the end, did not finish either. With `before`,
    the id that is known of it or "", one that did finish is continued if it is that one or of the same folder.
    """
    runs = [
        run
        for run in client.search_runs([experiment], f"tags.config_hash = '{identity['config_hash']}'")
        if run.info.status != "FINISHED"
        or (before is not None and (run.info.run_id == before or _folder(run.data.tags) == _folder(identity)))
    ]
    for run in runs:
        if run.info.status == "RUNNING" and not _is_own(run):
            host, pid = run.data.tags.get("host"), run.data.tags.get("pid")
            if host == identity["host"]:
                raise UserError(f"run {name} is already running (pid {pid}); wait for it or stop it")
            logger.warning("run %s is running on %s too, if its process %s still lives", name, host, pid)
    stopped = [run for run in runs if run.info.status != "RUNNING" or _is_own(run)]
    if not stopped:
        return str(client.create_run(experiment, tags=dict(identity), run_name=name).info.run_id)
    run_id = str(max(stopped, key=lambda run: run.info.start_time).info.run_id)
    set_tags(client, run_id, identity)
    if "error" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "error")
    client.update_run(run_id, status="RUNNING")
    return run_id


def _is_own(run: Run) -> bool:
    return owner().items() <= run.data.tags.items()


def _end_badly(client: MlflowClient, tracker: MlflowTracker, status: str, tags: Mapping[str, str]) -> None:
    """Write what is buffered and the end state; a store that fails now must not hide the error that came first."""
    try:
        client.set_terminated(tracker.run_id, status)
        if tags:
            set_tags(client, tracker.run_id, tags)
        tracker.flush()
    except failures_of_stores() as error:
        reason = " ".join(str(error).split())[:MESSAGE_CHARS]
        logger.warning("run %s could not be recorded as %s (%s)", tracker.run_id, status, reason)


def _close_dead(client: MlflowClient, experiment: str) -> int:
    host = socket.gethostname()
    dead = [
        run.info.run_id
        for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.host = '{host}'")
        if process_lives(run.data.tags) is False
    ]
    for run_id in dead:
        client.set_terminated(run_id, "KILLED")
    return len(dead)
