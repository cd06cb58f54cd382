"""The image and the compose file, built and run for real, with the figures that matter: ``make image-test``.

It needs a Docker engine with compose and BuildKit, some 5 GB and about ten minutes. Where the images that the files
name cannot be pulled, ``PYTHON_IMAGE`` and ``POSTGRES_IMAGE`` name others, and ``TORCH_INDEX`` another index for torch.
Containers, volumes, networks and the image have names of their own and are removed in the end, so that a search that
runs here is left alone; the layers stay in the engine's build cache.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.commands.test_search import TINY

REPOSITORY = Path(__file__).parents[1]
PROJECT, IMAGE, CHANGED = "lrp_compress_test", "lrp_compress:test", "lrp_compress:test-changed"
WORKERS, TRIALS = 2, 4
OF_THE_PACKAGE = 2  # the last layers: its code and its installation
CONFINED = ("--cap-drop", "ALL", "--security-opt", "no-new-privileges")

# What each of two containers runs, with a letter of its own.
WRITER = """
import os, sys, time
from pathlib import Path
from lrp_compress.support.files import atomic_path

own, path = sys.argv[1], Path("shared.txt")
assert os.getpid() == 1
Path(f"ready-{own}").touch()
while len(list(Path().glob("ready-*"))) < 2:
    time.sleep(0.01)
mixed = 0
for _ in range(400):
    with atomic_path(path) as temporary, open(temporary, "w") as file:
        for _ in range(2):
            file.write(own * 50_000)
            file.flush()
    text = path.read_text()
    mixed += len(text) != 100_000 or len(set(text)) != 1
print(mixed)
"""
FONTS = """
import pathlib, time
start = time.time()
import matplotlib.font_manager
(fonts,) = pathlib.Path(matplotlib.get_cachedir()).glob("fontlist*")
print("made now" if fonts.stat().st_mtime > start else "found")
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


SETTINGS = {
    "IMAGE": IMAGE,
    "POSTGRES_PASSWORD": "of-a-test",
    "MLFLOW_PORT": free_port(),
    "POSTGRES_PORT": free_port(),
    "STUDY": " ".join((*TINY, f"search.n_trials={TRIALS}")),
}
SERVER = f"http://127.0.0.1:{SETTINGS['MLFLOW_PORT']}"


def docker(*arguments: str, fails: bool = False, **settings: str) -> str:
    """Run a command of Docker that must succeed, or fail; what it printed, of a failure the errors too."""
    environment = {**os.environ, **SETTINGS, **settings}
    done = subprocess.run(["docker", *arguments], env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, f"docker {' '.join(arguments)}: {said[-4000:]}"
    return said if fails else done.stdout


def compose(*arguments: str, folder: Path = REPOSITORY, fails: bool = False, **settings: str) -> str:
    file = str(folder / "docker" / "compose.yaml")
    return docker("compose", "--project-name", PROJECT, "--file", file, *arguments, fails=fails, **settings)


def run(*arguments: str, options: tuple[str, ...] = (), code: str = "") -> str:
    """Run a container without a network that is confined as those of the compose file; with code Python runs that."""
    python = ("--entrypoint", "python") if code else ()
    command = ("-c", code) if code else ()
    return docker("run", "--rm", "--network", "none", *CONFINED, *options, *python, IMAGE, *command, *arguments)


def inspected(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(docker("inspect", name))[0]
    return found


def containers(service: str) -> list[str]:
    return compose("ps", "--all", "--quiet", service).split()


def state(container: str) -> tuple[str, int, int]:
    """Status, exit code, and how often it was started again."""
    found = inspected(container)
    return found["State"]["Status"], found["State"]["ExitCode"], found["RestartCount"]


def until(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until something holds; how many seconds it took."""
    start = time.monotonic()
    while not holds():
        assert time.monotonic() - start < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - start


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, str]]:
    """What was measured; printed in the end."""
    measured: dict[str, str] = {}
    yield measured
    print("\n\n" + "\n".join(f"{name:<44} {value}" for name, value in measured.items()))


@pytest.fixture(scope="module")
def image(figures: dict[str, str]) -> Iterator[str]:
    start = time.monotonic()
    try:
        compose("build", "worker")
        figures["build, but for what is in the cache"] = f"{time.monotonic() - start:.0f} s"
        figures["size of the image"] = f"{inspected(IMAGE)['Size'] / 1e9:.2f} GB"
        yield IMAGE
    finally:
        docker("image", "rm", "--force", IMAGE, CHANGED)


@pytest.fixture(scope="module")
def volume(image: str) -> Iterator[tuple[str, str]]:
    """Option that mounts a volume at the containers' folder."""
    name = f"{PROJECT}_alone"
    docker("volume", "create", name)
    yield "--volume", f"{name}:/work"
    docker("volume", "rm", name)


@pytest.fixture(scope="module")
def stack(image: str, figures: dict[str, str]) -> Iterator[None]:
    start = time.monotonic()
    try:
        compose("up", "--detach", "--no-build", "--wait", "mlflow")
        figures["PostgreSQL and MLflow until healthy"] = f"{time.monotonic() - start:.0f} s"
        yield
    finally:
        compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="module")
def searched(stack: None, figures: dict[str, str]) -> str:
    """Let workers share a study until all have ended; what they printed."""
    start = time.monotonic()
    compose("up", "--detach", "--no-build", "--scale", f"worker={WORKERS}", "worker")
    workers = containers("worker")
    until(lambda: all(state(worker)[0] == "exited" for worker in workers), 900)
    said = compose("logs", "--no-log-prefix", "worker")
    assert [state(worker) for worker in workers] == [("exited", 0, 0)] * WORKERS, said[-4000:]
    figures[f"{WORKERS} workers, a study of {TRIALS} trials"] = f"{time.monotonic() - start:.0f} s"
    return said


def test_a_changed_line_installs_no_dependency_again(image: str, figures: dict[str, str], tmp_path: Path):
    sent = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")]
    for name in (*sent, "docker", ".dockerignore"):
        source = REPOSITORY / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    with open(tmp_path / "lrp_compress" / "files.py", "a") as file:
        file.write("# changed\n")
    start = time.monotonic()
    compose("build", "worker", folder=tmp_path, IMAGE=CHANGED)
    figures["build after a changed line"] = f"{time.monotonic() - start:.0f} s"
    before, after = (inspected(name)["RootFS"]["Layers"] for name in (IMAGE, CHANGED))
    assert before != after
    assert before[:-OF_THE_PACKAGE] == after[:-OF_THE_PACKAGE]


def test_the_image_is_whole_and_its_user_is_not_root(image: str):
    assert "No broken requirements" in run("check", options=("--entrypoint", "pip"))
    assert run("-u", options=("--entrypoint", "id")).strip() == "10001"
    assert not inspected(image)["Config"].get("Volumes")  # each run would leave some without a name


@pytest.mark.parametrize(
    ("verb", "says"),
    [
        ("", "Makes a trained Atari agent small"),
        ("train", "Trains an Atari agent"),
        ("play", "Records an Atari agent at play"),
        ("firmware", "on an emulated microcontroller"),
        ("report", "--storage"),
    ],
)
def test_each_command_is_there_by_name(image: str, verb: str, says: str):
    assert says in run(*verb.split(), "--help")


def test_any_user_finds_the_list_of_fonts_and_lets_an_agent_play(image: str):
    anyone = ("--user", "12345", "--tmpfs", "/work:mode=1777")
    assert run(code=FONTS, options=anyone).strip() == "found"
    assert "play.gif" in run("play", "game=pong", "seconds=1", options=anyone)


def test_a_run_is_found_again(volume: tuple[str, str], figures: dict[str, str]):
    for name, says in (("a smoke run", "watch it"), ("the same again", "has finished before")):
        start = time.monotonic()
        assert says in run("game=pong", "experiment=smoke", options=volume)
        figures[name] = f"{time.monotonic() - start:.0f} s"


def test_two_containers_write_one_file_at_once(volume: tuple[str, str], figures: dict[str, str]):
    command = ["docker", "run", "--rm", *CONFINED, *volume, "--entrypoint", "python", IMAGE, "-c", WRITER]
    writers = [subprocess.Popen([*command, own], stdout=subprocess.PIPE, text=True) for own in "ab"]
    ends = [(writer.communicate(timeout=300)[0], writer.returncode) for writer in writers]
    assert ends == [("0\n", 0)] * 2
    listed = run(code="import os; print(*[name for name in os.listdir() if 'shared' in name])", options=volume)
    assert listed.split() == ["shared.txt"]  # and no temporary file
    figures["2 containers, 400 writes each to one file"] = "none failed, none mixed"


def test_the_compose_file_wants_a_password():
    assert "set it to a password of your choice" in compose("config", "--quiet", fails=True, POSTGRES_PASSWORD="")


def test_all_that_the_workers_recorded_can_be_read(
    searched: str, figures: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    assert f"recorded at {SERVER}/#/experiments/" in searched
    assert "mlflow:5000/#" not in searched  # an address that nobody can open from outside
    client = mlflow.MlflowClient(SERVER)
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert len(runs) >= TRIALS
    for one in runs:
        folder = tmp_path / one.info.run_id
        folder.mkdir()
        client.download_artifacts(one.info.run_id, "", str(folder))
        assert any(folder.iterdir())
    read = [path for path in tmp_path.rglob("*") if path.is_file()]
    figures["read through the server"] = f"{len(read)} artifacts of {len(runs)} runs"


def test_the_server_is_small_and_answers_only_this_machine(stack: None, figures: dict[str, str]):
    (server,) = containers("mlflow")
    memory, threads = docker("stats", "--no-stream", "--format", "{{.MemUsage}};{{.PIDs}}", server).split(";")
    figures["MLflow server"] = f"{memory.partition(' /')[0]}, {threads.strip()} threads"
    assert int(threads) < 50  # 110 with the runner of jobs
    request = urllib.request.Request(SERVER, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(request, timeout=60)
    for service in ("mlflow", "postgres"):
        ports = inspected(*containers(service))["NetworkSettings"]["Ports"]
        assert {place["HostIp"] for places in ports.values() for place in places or ()} == {"127.0.0.1"}


def test_containers_may_do_nothing_special(searched: str):
    for container in compose("ps", "--all", "--quiet").split():
        given = inspected(container)["HostConfig"]
        assert (given["CapDrop"], given["SecurityOpt"]) == (["ALL"], ["no-new-privileges:true"])
        assert given["Memory"] > 0
    for service in ("mlflow", "postgres"):
        status = docker("exec", *containers(service), "cat", "/proc/1/status").split("\n")
        assert {"NoNewPrivs:\t1", "CapBnd:\t0000000000000000"} <= set(status)


def test_a_mistake_in_the_study_is_not_tried_for_ever(searched: str, figures: dict[str, str]):
    compose("up", "--detach", "--no-build", "--no-deps", "worker", STUDY="game=pongg search=pareto")
    (worker,) = containers("worker")
    took = until(lambda: state(worker) == ("exited", 2, 5), 300)
    assert compose("logs", "worker").count("game=pongg is unknown") == 6
    figures["a mistyped STUDY is given up after"] = f"5 restarts, {took:.0f} s"


def test_a_killed_database_comes_back_and_so_does_the_server(searched: str, figures: dict[str, str]):
    (database,), (server,) = containers("postgres"), containers("mlflow")
    kill = f"import os; os.kill({inspected(database)['State']['Pid']}, 9)"
    docker("run", "--rm", "--pid", "host", "--user", "0", "--entrypoint", "python", IMAGE, "-c", kill)

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{SERVER}/api/2.0/mlflow/experiments/search?max_results=1", timeout=10):
                return state(database)[2] == 1
        except OSError:
            return False

    figures["a killed database is back after"] = f"{until(answers, 120):.1f} s"
    until(lambda: bool(inspected(server)["State"]["Health"]["Status"] == "healthy"), 60)


def test_each_stops_when_it_is_asked_to(searched: str, figures: dict[str, str]):
    compose("up", "--detach", "--no-build", "--no-deps", "worker", STUDY="game=pong search=smoke")
    (worker,) = containers("worker")
    until(lambda: "recorded at" in compose("logs", "worker"), 120)
    for service in ("worker", "mlflow", "postgres"):
        (container,) = containers(service)
        start = time.monotonic()
        docker("stop", container)
        took = time.monotonic() - start
        figures[f"docker stop of {service}"] = f"{took:.1f} s, exit code {state(container)[1]}"
        assert took < 10
    assert state(worker) == ("exited", 143, 0)  # it saw the signal
