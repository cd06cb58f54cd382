"""What ``docker/compose.yaml`` starts, run natively: PostgreSQL, an MLflow server on it, and workers; one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import optuna
import pgserver
import pytest
from optuna.trial import TrialState

from tests.commands.forks import PATIENCE_S, Fork, Forks
from tests.commands.running import environment
from tests.commands.test_search import TINY

WORKERS, TRIALS = 3, 2


@pytest.fixture
def databases() -> Iterator[str]:
    """Address of a PostgreSQL server with the two databases of the compose file; NAME stands for theirs."""
    with tempfile.TemporaryDirectory() as folder, pgserver.get_server(folder) as server:
        for name in ("runs", "studies"):
            server.psql(f"create database {name}")
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://").replace("/postgres?", "/NAME?")


@pytest.fixture
def mlflow_server(databases: str, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", databases.replace("NAME", "runs")),
        *("--artifacts-destination", str(tmp_path / "artifacts"), "--serve-artifacts"),
    ]
    uri = f"http://127.0.0.1:{port}"
    variables = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")  # seven more processes, each with its imports
    with subprocess.Popen(
        command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
    ) as server:
        try:
            deadline = time.monotonic() + 120
            while not answers(uri):
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1):
            return True
    except OSError:
        return False


def test_workers_share_a_study_and_one_is_killed(databases: str, mlflow_server: str, forks: Forks, tmp_path: Path):
    storage = databases.replace("NAME", "studies")
    command = [
        *(*TINY, f"search.storage='{storage}'", f"search.n_trials={TRIALS}"),
        *("tracking=server", f"tracking.uri={mlflow_server}", "tracking.timeout_s=60"),
    ]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(forks.start("lrp_compress", command, tmp_path)) for _ in range(WORKERS)]
        victim = first_begun(storage, workers)
        victim.send_signal(signal.SIGKILL)
        ends = [worker.wait() for worker in workers]
    assert [end.returncode for end in ends] == [-signal.SIGKILL * (worker is victim) for worker in workers], ends
    study = optuna.load_study(study_name="breakout-smoke", storage=storage)
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == TRIALS
    assert not {TrialState.RUNNING, TrialState.WAITING} & set(states)
    (retried,) = [trial for trial in study.trials if "retry_of" in trial.user_attrs]
    lost = study.trials[retried.user_attrs["retry_of"]]
    assert lost.state == TrialState.FAIL
    # it may have been killed before it had been asked for all values
    assert {**lost.system_attrs.get("fixed_params", {}), **lost.params}.items() <= retried.params.items()
    assert lost.user_attrs["owner"]["pid"] == str(victim.pid)
    client = mlflow.MlflowClient(mlflow_server)
    runs = client.search_runs([client.get_experiment_by_name("lrp_compress").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == TRIALS
    assert list(tmp_path.glob("multirun/*/front.json"))
    assert list(tmp_path.glob("multirun/*/report.html"))


def first_begun(storage: str, workers: Sequence[Fork]) -> Fork:
    """Wait for the first worker that runs a trial; with fewer trials than workers, nobody knows which."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := [worker for worker in workers if begun(storage, str(worker.pid))]):
        assert time.monotonic() < deadline, [worker.told() for worker in workers]
        time.sleep(0.01)
    return found[0]


def begun(storage: str, pid: str) -> bool:
    """Whether a worker is running a trial that has values, which can be queued again."""
    try:
        study = optuna.load_study(study_name="breakout-smoke", storage=storage)
    except Exception:  # the workers are still making the database
        return False
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    own = [trial for trial in running if trial.user_attrs.get("owner", {}).get("pid") == pid]
    return any(trial.params or "fixed_params" in trial.system_attrs for trial in own)
