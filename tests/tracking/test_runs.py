"""Runs in real MLflow stores: end states, resuming, parallel set-up, refused stores."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import lrp_compress
from lrp_compress.agents.checkpoints import Agent, AgentInfo, all_channels, save_agent
from lrp_compress.agents.sources import local_file
from lrp_compress.config.schema import TrackingConfig
from lrp_compress.deployment.files.onnx_models import save_float
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.networks.nature import nature_cnn
from lrp_compress.support.errors import UserError
from lrp_compress.support.processes import process_start
from lrp_compress.tracking import runs as tracking
from lrp_compress.tracking.journal import JOURNAL, Journal
from lrp_compress.tracking.tracker import BUFFER_METRICS, MlflowTracker
from tests.commands.forks import Fork, Forks

REPOSITORY = Path(lrp_compress.__file__).parent.parent

# What a process of its own does: open the run, buffer a metric, say so, and do what the last argument says.
CHILD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and what they start, ignore it
from pathlib import Path
from lrp_compress.tracking import runs as tracking
from lrp_compress.config.schema import TrackingConfig

uri, config_hash, action = sys.argv[1:]
while action == "end" and not Path("begin").exists():
    time.sleep(0.001)
config = TrackingConfig(uri=uri, experiment="test", timeout_s=5)
with tracking.open_run(config, name="child", tags={"config_hash": config_hash}, params={"a": 1}) as tracker:
    tracker.metrics({"loss": 0.5}, step=7)
    if action == "flush":
        tracker.flush()
    print(tracker.run_id, flush=True)
    if action != "end":
        time.sleep(60)
"""


@pytest.fixture
def config(new_store: Callable[[Path], Path], tmp_path: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{new_store(tmp_path / 'mlflow.db')}", experiment="test", timeout_s=5)


def client_of(config: TrackingConfig) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=config.uri)


def get(config: TrackingConfig, run_id: str | None) -> Any:
    return client_of(config).get_run(run_id)


def open_run(config: TrackingConfig, config_hash: str = "abc", tags: dict[str, str] | None = None, **more: Any) -> Any:
    tags = {"config_hash": config_hash, **(tags or {})}
    return tracking.open_run(config, name="pong-lrp-r0.50-s0", tags=tags, **({"params": {}} | more))


@pytest.fixture
def child(forks: Forks, tmp_path: Path) -> Callable[[str, str, str], Fork]:
    """Return a function that starts a process with a run of its own."""

    def start(uri: str, config_hash: str, action: str) -> Fork:
        return forks.start("-c", [CHILD, uri, config_hash, action], tmp_path)

    return start


# --- the check before the work ---------------------------------------------------------------------------------------


def test_check_of_a_database_writes_nothing(tmp_path: Path, config: TrackingConfig) -> None:
    tracking.check_store(TrackingConfig(uri=f"sqlite:///{tmp_path}/new.db", experiment="test", timeout_s=5))
    tracking.check_store(config)
    tracking.check_store(TrackingConfig(uri=None, experiment="test", timeout_s=5))
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_check_refuses_what_cannot_be_used(tmp_path: Path) -> None:
    for uri in (f"sqlite:///{tmp_path}/missing/mlflow.db", "http://127.0.0.1:9", "./mlruns"):
        with pytest.raises(UserError, match=r"tracking.uri"):
            tracking.check_store(TrackingConfig(uri=uri, experiment="test", timeout_s=2))


# --- what a run holds ------------------------------------------------------------------------------------------------


def test_finished_run_holds_everything(config: TrackingConfig, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    (tmp_path / "plan.json").write_text("{}")
    (tmp_path / "maps" / "conv1").mkdir(parents=True)
    (tmp_path / "maps" / "conv1" / "map.txt").write_text("x")
    PIL.Image.new("P", (8, 8)).save(tmp_path / "map.png")
    with open_run(config, tags={"game": "pong"}, params={"prune.ratio": 0.5, "teacher.card": None}) as tracker:
        tracker.metrics({"student/return_mean": 20.5})
        tracker.artifact(tmp_path / "plan.json", "plan")
        tracker.artifact(tmp_path / "maps")
        tracker.image(tmp_path / "map.png", "relevance/student")
        tracker.image(tmp_path / "map.png", "relevance/teacher", step=2)
        assert get(config, tracker.run_id).info.status == "RUNNING"
    run = get(config, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pong-lrp-r0.50-s0"
    assert run.data.params == {"prune.ratio": "0.5", "teacher.card": "null"}
    assert run.data.metrics == {"student/return_mean": 20.5}
    assert run.data.tags.items() >= {"game": "pong", "config_hash": "abc", "host": socket.gethostname()}.items()
    # MLflow shows the image panel only with this tag.
    assert run.data.tags["mlflow.loggedImages"] == "True"
    folder = tmp_path / "mlartifacts" / tracker.run_id / "artifacts"
    assert run.info.artifact_uri == folder.as_uri()
    assert (folder / "plan" / "plan.json").read_text() == "{}"
    assert (folder / "maps" / "conv1" / "map.txt").read_text() == "x"
    series = [path.name.split("+")[:3] for path in (folder / "images").glob("*.png")]
    assert sorted(series) == [["relevance~student", "step", "0"], ["relevance~teacher", "step", "2"]]
    assert (
        tracker.address
        == f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{tracker.run_id}{tracking.RUNS_VIEW}"
    )
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_model_is_loaded_by_its_address_as_the_file_decides(
    config: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    network = nature_cnn({"conv1": 4, "conv2": 4, "conv3": 4, "fc1": 8}, "q", 6).eval()
    agent = Agent(network, AgentInfo("pong", "minimal", False, {}, all_channels(network.widths)))
    file, example, own = (tmp_path / name for name in ("student.onnx", "example.npy", "student.safetensors"))
    save_agent(own, agent)
    save_float(file, agent)
    observations = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    np.save(example, observations[:1])
    for _ in range(2):  # what a run records once more takes the place of what it had
        with open_run(config, again=True) as tracker:
            tracker.model(file, "student", example, own)
    (model,) = client_of(config).search_logged_models([get(config, tracker.run_id).info.experiment_id])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(config.uri))
    for address in (f"models:/{model.model_id}", f"runs:/{tracker.run_id}/student"):
        loaded = mlflow.pyfunc.load_model(address)
        np.testing.assert_array_equal(loaded.predict(observations)["outputs"], OnnxPolicy(file).run(observations))
    (taken,) = loaded.metadata.signature.inputs.inputs
    assert (taken.type, taken.shape) == (np.dtype("uint8"), (-1, 4, 84, 84))
    np.testing.assert_array_equal(loaded.input_example, observations[:1])
    for wrong in (observations[:, :3], observations / 255):
        with pytest.raises(mlflow.exceptions.MlflowException):
            loaded.predict(wrong)
    source = local_file(f"models:/{model.model_id}", tmp_path / "cache", config)
    assert source.read_bytes() == own.read_bytes()  # a student is a teacher, too


def test_store_has_a_write_ahead_log(config: TrackingConfig, tmp_path: Path) -> None:
    with open_run(config):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)


def test_finished_run_is_not_continued(config: TrackingConfig) -> None:
    with open_run(config) as first:
        pass
    with open_run(config) as again:
        pass
    assert again.run_id != first.run_id
    assert get(config, first.run_id).info.status == "FINISHED"


def test_many_and_long_values(config: TrackingConfig) -> None:
    params = {f"p{index}": index for index in range(250)} | {"long": "x" * 7000}
    with open_run(config, params=params) as tracker:
        tracker.metrics({f"m{index}": index for index in range(2300)})
    run = get(config, tracker.run_id)
    assert len(run.data.params) == 251
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["long"].endswith("x... [cut, 7000 characters]")
    assert len(run.data.metrics) == 2300


def test_metrics_that_are_not_finite_become_tags(config: TrackingConfig, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(config) as tracker:
        for step, value in enumerate([1.0, float("nan"), float("inf"), 2.0]):
            tracker.metrics({"distill/loss": value}, step)
    run = get(config, tracker.run_id)
    history = client_of(config).get_metric_history(tracker.run_id, "distill/loss")
    assert [(point.step, point.value) for point in history] == [(0, 1.0), (3, 2.0)]
    assert run.data.tags["not_finite.distill/loss"] == "nan at step 1"
    assert "distill/loss is nan at step 1" in caplog.text


def test_buffer_is_written_when_full_or_old(config: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{MlflowTracker.__module__}.BUFFER_SECONDS", 600.0)
    with open_run(config) as tracker:
        for step in range(BUFFER_METRICS - 1):
            tracker.metrics({"loss": step}, step)
        assert get(config, tracker.run_id).data.metrics == {}
        tracker.metrics({"loss": 1e3}, BUFFER_METRICS)
        assert get(config, tracker.run_id).data.metrics == {"loss": 1e3}
        monkeypatch.setattr(f"{MlflowTracker.__module__}.BUFFER_SECONDS", 0.01)
        time.sleep(0.02)
        tracker.metrics({"loss": 2e3}, BUFFER_METRICS + 1)
        assert get(config, tracker.run_id).data.metrics == {"loss": 2e3}


def test_null_store_keeps_nothing_and_costs_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path\n"
        "from lrp_compress.tracking import runs as tracking\n"
        "from lrp_compress.config.schema import TrackingConfig\n"
        "config = TrackingConfig(uri=None, experiment='test', timeout_s=5)\n"
        "with tracking.open_run(config, name='n', tags={'config_hash': 'abc'}, params={'a': 1}) as tracker:\n"
        "    tracker.metrics({'loss': 1.0})\n"
        "    tracker.params({'b': 1})\n"
        "    tracker.tags({'c': 'd'})\n"
        "    tracker.artifact(Path('absent'))\n"
        "    tracker.image(Path('absent'), 'relevance/teacher')\n"
        "    tracker.flush()\n"
        "assert tracker.run_id is None and tracker.address is None\n"
        "assert tracking.training_view(config) == ''\n"
        "assert 'mlflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []


# --- how a run ends and goes on --------------------------------------------------------------------------------------


def test_failed_run_is_continued(config: TrackingConfig) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        open_run(config, params={"a": 1, "cache_dir": "one"}) as failed,
    ):
        failed.metrics({"loss": 0.5}, step=1)
        raise ZeroDivisionError("no channels left")
    run = get(config, failed.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ZeroDivisionError: no channels left"
    assert run.data.metrics == {"loss": 0.5}

    with open_run(config, tags={"sweep": "s1"}, params={"a": 1, "cache_dir": "two", "b": 2}) as continued:
        assert continued.run_id == failed.run_id
        run = get(config, continued.run_id)
        assert run.info.status == "RUNNING"
        assert "error" not in run.data.tags
        continued.metrics({"loss": 0.25}, step=2)
    run = get(config, continued.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "cache_dir": "one", "b": "2"}
    assert run.data.tags["sweep"] == "s1"
    history = client_of(config).get_metric_history(continued.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_run_is_killed(config: TrackingConfig, error: type[BaseException]) -> None:
    with pytest.raises(error), open_run(config) as tracker:
        tracker.metrics({"loss": 0.5})
        raise error
    run = get(config, tracker.run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 0.5}


def test_store_that_fails_does_not_hide_the_error(config: TrackingConfig, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError), open_run(config) as tracker:
        tracker.metrics({"loss": 0.5})
        client_of(config).delete_run(tracker.run_id)
        raise ZeroDivisionError
    assert f"run {tracker.run_id} could not be recorded as FAILED" in caplog.text


def test_a_store_that_refuses_is_told_in_a_line(
    config: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    with open_run(config) as tracker:
        with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
            database.execute("drop table metrics")
        tracker.metrics({"loss": 0.5})
    assert "the run goes on, though its store fails" in caplog.text
    assert "Traceback" not in caplog.text


def test_sigterm_ends_a_run_as_killed(config: TrackingConfig, child: Callable[..., Fork]) -> None:
    with child(config.uri, "abc", "sleep") as process:
        run_id = process.first_line()
        process.send_signal(signal.SIGTERM)
        assert process.wait().returncode == 143
    run = get(config, run_id)
    assert run.info.status == "KILLED"
    assert run.data.metrics == {"loss": 0.5}


def test_run_of_a_dead_process_is_closed_and_continued(config: TrackingConfig, child: Callable[..., Fork]) -> None:
    with child(config.uri, "abc", "flush") as process:
        run_id = process.first_line()
        with pytest.raises(UserError, match=rf"is already running \(pid {process.pid}\)"), open_run(config):
            pass
        process.send_signal(signal.SIGKILL)
        # Not waited for: its entry in the process table stays, as under a parent that never asks.
        deadline = time.monotonic() + 10
        while process_start(process.pid) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert get(config, run_id).info.status == "RUNNING"
        with open_run(config, "another"):
            assert get(config, run_id).info.status == "KILLED"
        with open_run(config) as continued:
            assert continued.run_id == run_id
    run = get(config, run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.5}
    assert run.data.tags["pid"] == str(os.getpid())


def test_pid_used_again_does_not_keep_a_run_alive(config: TrackingConfig) -> None:
    with open_run(config) as tracker:
        tracker.tags({"process_start": "1"})
        with open_run(config, "another"):
            assert get(config, tracker.run_id).info.status == "KILLED"


def test_run_of_another_host_is_left_alone(config: TrackingConfig, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(config) as elsewhere:
        elsewhere.tags({"host": "elsewhere"})
        with open_run(config) as here:
            assert here.run_id != elsewhere.run_id
            assert get(config, elsewhere.run_id).info.status == "RUNNING"
    assert "is running on elsewhere too" in caplog.text


def test_run_in_a_thread(config: TrackingConfig) -> None:
    """Only the main thread may set a signal handler."""
    ids: list[str | None] = []

    def work() -> None:
        with open_run(config) as tracker:
            ids.append(tracker.run_id)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert get(config, ids[0]).info.status == "FINISHED"


def test_deleted_experiment_is_refused(config: TrackingConfig) -> None:
    with open_run(config):
        pass
    client = client_of(config)
    client.delete_experiment(client.get_experiment_by_name("test").experiment_id)
    with pytest.raises(UserError, match=r"experiment=test was deleted.*mlflow experiments restore"), open_run(config):
        pass
    assert "/experiments/" not in tracking.training_view(config)


def test_store_of_another_mlflow_is_refused_in_one_line(new_store: Callable[[Path], Path], tmp_path: Path) -> None:
    path = new_store(tmp_path / "old.db")
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("update alembic_version set version_num = 'older'")
    old = TrackingConfig(uri=f"sqlite:///{path}", experiment="test", timeout_s=5)
    with pytest.raises(UserError, match="mlflow db upgrade") as caught, open_run(old):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "later"), [(signal.SIGKILL, 0.0), (signal.SIGTERM, 0.6), (signal.SIGINT, 0.3)])
def test_a_store_whose_making_is_cut_off_does_no_harm(
    tmp_path: Path, child: Callable[..., Fork], number: signal.Signals, later: float
) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="test", timeout_s=5)
    with child(config.uri, "abc", "flush") as process:
        process.until(lambda: any(part.stat().st_size for part in tmp_path.glob(".mlflow.*.part.db")))
        time.sleep(later)
        process.send_signal(number)
        process.wait()
    with open_run(config) as tracker:
        tracker.metrics({"loss": 1.0})
    assert get(config, tracker.run_id).info.status == "FINISHED"


def test_a_damaged_store_is_said_in_one_line(config: TrackingConfig, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = os.urandom(len(content) - 4096 * 3)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tracking\.uri=") as raised, open_run(config):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("seed", range(8))
def test_overwritten_pages_of_a_store_never_end_in_a_traceback(
    config: TrackingConfig, tmp_path: Path, seed: int
) -> None:
    path, draw = tmp_path / "mlflow.db", random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 2, 5, 20])):
        start = 4096 * draw.randrange(len(content) // 4096)
        other = 4096 * draw.randrange(len(content) // 4096)
        content[start : start + 4096] = draw.choice([draw.randbytes(4096), bytes(4096), content[other : other + 4096]])
    path.write_bytes(content)

    def record() -> None:
        with open_run(config) as tracker:
            tracker.metrics({"m": 1.0})

    for use in (
        record,
        lambda: tracking.finished_runs(config, "tags.game = 'x'"),
        lambda: tracking.training_view(config),
    ):
        with contextlib.suppress(UserError):
            use()


def test_four_processes_set_up_one_new_store(tmp_path: Path, child: Callable[..., Fork]) -> None:
    uri = f"sqlite:///{tmp_path}/new.db"
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(child(uri, str(index), "end")) for index in range(4)]
        (tmp_path / "begin").touch()
        ends = [process.wait() for process in processes]
    assert [(end.returncode, end.stderr) for end in ends] == [(0, "")] * 4
    config = TrackingConfig(uri=uri, experiment="test", timeout_s=5)
    client = client_of(config)
    runs = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert sorted(run.data.tags["config_hash"] for run in runs) == ["0", "1", "2", "3"]
    assert {run.info.status for run in runs} == {"FINISHED"}


# --- looking at runs -------------------------------------------------------------------------------------------------


def test_training_view_of_a_database(config: TrackingConfig) -> None:
    command = f"mlflow ui --backend-store-uri {config.uri}"
    assert tracking.training_view(config).splitlines() == [command, "http://127.0.0.1:5000"]
    with open_run(config) as tracker:
        pass
    experiment = get(config, tracker.run_id).info.experiment_id
    page = f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning"
    page += "&viewStateShareKey=at_a_glance"
    view = json.loads(client_of(config).get_experiment(experiment).tags["mlflow.sharedViewState.at_a_glance"])
    assert view["selectedColumns"][0] == "metrics.`at_a_glance/return_kept`"
    assert tracking.training_view(config).splitlines() == [command, page]


@dataclass(frozen=True)
class Server:
    """An MLflow server in a process group of its own."""

    uri: str
    files: Path
    group: int


@pytest.fixture(scope="module")
def server(new_store: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [
        "--backend-store-uri",
        f"sqlite:///{new_store(folder / 'served.db')}",
        "--artifacts-destination",
        str(folder / "files"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments, *store],
        cwd=folder,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while not _answers(uri):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield Server(uri, folder / "files", process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1):
            return True
    except OSError:
        return False


def test_server_round_trip(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = TrackingConfig(uri=server.uri, experiment="test", timeout_s=10)
    tracking.check_store(config)
    assert client_of(config).get_experiment_by_name("test") is None
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), open_run(config, params={"a": 1}) as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        tracker.artifact(tmp_path / "plan.json")
        raise KeyboardInterrupt
    assert get(config, tracker.run_id).info.status == "KILLED"
    PIL.Image.new("L", (8, 8)).save(tmp_path / "map.png")
    with open_run(config, params={"a": 2}) as continued:
        continued.image(tmp_path / "map.png", "relevance/teacher")
    assert continued.run_id == tracker.run_id
    run = get(config, tracker.run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params, run.data.metrics) == ({"a": "1"}, {"loss": 0.5})
    files = sorted(path.suffix for path in server.files.rglob(f"{tracker.run_id}/artifacts/**/*.*"))
    assert files == [".json", ".png", ".webp"]
    page = f"{server.uri}/#/experiments/{run.info.experiment_id}"
    view = "?workflowType=machine_learning&viewStateShareKey=at_a_glance"
    assert tracking.training_view(config) == f"{page}/runs{view}"
    seen = f"http://localhost:8080/#/experiments/{run.info.experiment_id}"
    from_outside = dataclasses.replace(config, ui="http://localhost:8080/")
    assert tracking.training_view(from_outside) == f"{seen}/runs{view}"
    with open_run(from_outside, params={"a": 3}) as other:
        assert other.address == f"{seen}/runs/{other.run_id}{tracking.RUNS_VIEW}"
    assert continued.address == f"{page}/runs/{tracker.run_id}{tracking.RUNS_VIEW}"
    assert capfd.readouterr() == ("", "")


def test_a_server_that_hangs_does_not_hold_the_run_up_and_is_told_later(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = TrackingConfig(uri=server.uri, experiment="hanging", timeout_s=5)
    (tmp_path / "plan.json").write_text("{}")
    path = tmp_path / "run" / JOURNAL
    tracking.check_store(config)
    with open_run(config, journal=Journal(path)) as tracker:
        tracker.metrics({"loss": 0.5}, step=1)
        tracker.flush()
        os.killpg(server.group, signal.SIGSTOP)
        begun = time.monotonic()
        for step in range(2, 20):
            tracker.metrics({"loss": 1 / step}, step)
            tracker.artifact(tmp_path / "plan.json")
    assert time.monotonic() - begun < 30
    assert "the run goes on, though its store fails" in caplog.text
    assert f"what is left of run {tracker.run_id} waits in {path}; the same command hands it over" in caplog.text
    assert tracking.training_view(config) == server.uri  # and no error that would end the run
    assert not Journal(path).ended

    os.killpg(server.group, signal.SIGCONT)
    with open_run(config, again=True, journal=Journal(path)) as later:
        assert later.run_id == tracker.run_id
    run, points = get(config, later.run_id), client_of(config).get_metric_history(later.run_id, "loss")
    assert run.info.status == "FINISHED"
    assert sorted(point.step for point in points) == list(range(1, 20))
    assert [file.path for file in client_of(config).list_artifacts(later.run_id)] == ["plan.json"]
    assert Journal(path).ended


def test_what_is_recorded_again_is_recorded_once(config: TrackingConfig, tmp_path: Path) -> None:
    PIL.Image.new("L", (8, 8)).save(tmp_path / "map.png")
    (tmp_path / "plan.json").write_text("{}")
    path, client = tmp_path / "run" / JOURNAL, client_of(config)
    for number in range(4):
        with contextlib.suppress(KeyboardInterrupt), open_run(config, journal=Journal(path)) as tracker:
            tracker.metrics({"loss": 0.5}, step=1)
            tracker.metrics({"loss": 0.1 * number}, step=2)
            tracker.artifact(tmp_path / "plan.json")
            tracker.image(tmp_path / "map.png", "relevance/maps")
            if number < 3:
                raise KeyboardInterrupt
    points = client.get_metric_history(tracker.run_id, "loss")
    assert sorted((point.step, round(point.value, 1)) for point in points) == [
        (1, 0.5), (2, 0.0), (2, 0.1), (2, 0.2), (2, 0.3)
    ]  # fmt: skip
    assert len(client.list_artifacts(tracker.run_id, "images")) == 2  # a picture and its thumbnail


def test_a_run_that_is_gone_from_the_store_is_recorded_anew(config: TrackingConfig, tmp_path: Path) -> None:
    path = tmp_path / "run" / JOURNAL
    with pytest.raises(KeyboardInterrupt), open_run(config, journal=Journal(path)) as first:
        first.metrics({"loss": 0.5}, step=1)
        raise KeyboardInterrupt
    client_of(config).delete_run(first.run_id)
    with open_run(config, journal=Journal(path)) as second:
        pass
    assert second.run_id != first.run_id
    assert get(config, second.run_id).data.metrics == {"loss": 0.5}


def test_a_journal_that_was_cut_off_or_damaged_is_gone_on_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / JOURNAL
    journal = Journal(path)
    assert journal.add("tag", "a", "1")
    assert journal.add("tag", "b", "2")
    journal.hand_over("run", 1)
    path.write_text(path.read_text() + '{"kind": "tag", "na')
    cut = Journal(path)
    assert (cut.records, cut.run_id, cut.handed) == (journal.records, "run", 1)
    assert not cut.add("tag", "b", "2")
    assert cut.add("tag", "b", "3")
    assert len(Journal(path).records) == 3
    unknown = '{"kind": "note", "name": "a", "value": 1}\n'
    for damaged in ("\x00\n", "[]\n", '{"other": 1}\n', unknown, unknown.replace("note", "metric")):
        path.write_text(damaged)
        assert Journal(path).records == []
        assert not path.exists()
    assert caplog.text.count("is damaged") == 5


def test_check_beside_an_open_run_does_not_cost_its_lock(config: TrackingConfig) -> None:
    """A plain open and close of the file would drop the lock, and the next process take the write-ahead log away."""
    path = config.uri.removeprefix("sqlite:///") if config.uri else ""
    visit = (
        f"import sqlite3; d = sqlite3.connect({path!r}); d.execute('select count(*) from runs').fetchone(); d.close()"
    )
    with open_run(config) as tracker:
        tracker.metrics({"before": 1.0})
        tracker.flush()
        tracking.check_store(config)
        subprocess.run([sys.executable, "-c", visit], check=True)
        tracker.metrics({"after": 2.0})
        tracker.flush()
    code = f"import sqlite3; print(sqlite3.connect({path!r}).execute('select key, value from metrics').fetchall())"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == "[('before', 1.0), ('after', 2.0)]"
    assert get(config, tracker.run_id).info.status == "FINISHED"
