"""Agents on servers: a real MLflow store, and the hub's own client against a server that speaks its protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from lrp_compress.agents.sources import local_file
from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError
from tests.commands.forks import Forks

CONTENT = b"an agent's file" * 1000


class Hub(BaseHTTPRequestHandler):
    """One repository with one file, as https://huggingface.co answers for it."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        if self.answer():
            self.wfile.write(CONTENT)

    def answer(self) -> bool:
        found = self.path in [f"/org/repo/resolve/{revision}/folder/agent.zip" for revision in ("main", "v1")]
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return found

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(forks: Forks, tmp_path: Path) -> Callable[[str, str], str]:
    """Fetch a source in a process of its own: the hub's client reads its address when it is imported."""
    code = (
        "import sys, pathlib; from lrp_compress.agents.sources import local_file; "
        "from lrp_compress.config.schema import TrackingConfig; from lrp_compress.support.errors import UserError\n"
        "try: print(local_file(sys.argv[1], pathlib.Path('cache'), TrackingConfig(None, 'e', 2.0)))\n"
        "except UserError as error: print('refused:', error)"
    )

    def answer(source: str, endpoint: str) -> str:
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1"}
        return forks.run("-c", [code, source], tmp_path, **variables).stdout

    return answer


@pytest.mark.parametrize("source", ["hf://org/repo/folder/agent.zip", "hf://org/repo@v1/folder/agent.zip"])
def test_the_hubs_file(ask: Callable[[str, str], str], hub: str, source: str):
    path = Path(ask(source, hub).strip())
    assert path.name == "agent.zip"
    assert path.read_bytes() == CONTENT
    unreachable = "http://127.0.0.1:9"
    assert ask(source, unreachable).strip() == str(path)  # from its cache


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://org/repo/other.zip", "teacher.source=hf://org/repo/other.zip: "),
        ("hf://org/repo", "incomplete; write hf://ORG/REPO/FILE"),
        ("hf://org", "incomplete; write hf://ORG/REPO/FILE"),
    ],
)
def test_what_the_hub_does_not_have(ask: Callable[[str, str], str], hub: str, source: str, expected: str):
    answer = ask(source, hub)
    assert answer.startswith("refused: ")
    assert expected in answer
    assert answer.count("\n") == 1


def test_a_hub_that_does_not_answer(ask: Callable[[str, str], str]):
    answer = ask("hf://org/repo/agent.zip", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 does not answer within 2 s" in answer
    assert "give its path" in answer
    assert answer.count("\n") == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], Path]) -> tuple[TrackingConfig, str]:
    """A store with one run that has an agent, a folder of two agents, and a registered version of the agent."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "student.safetensors").write_bytes(CONTENT)
    (folder / "other.zip").write_bytes(CONTENT)
    uri = f"sqlite:///{new_store(folder / 'mlflow.db')}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("e", artifact_location=(folder / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_artifact(run, str(folder / "student.safetensors"))
    client.log_artifact(run, str(folder / "student.safetensors"), "both")
    client.log_artifact(run, str(folder / "other.zip"), "both")
    client.log_artifact(run, str(folder / "student.safetensors"), "one")
    client.create_registered_model("agent")
    client.create_model_version("agent", f"{folder}/artifacts/{run}/artifacts/one", run_id=run)
    client.set_registered_model_alias("agent", "best", "1")
    return TrackingConfig(uri, "e", 1.0), run


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["runs:/{run}/student.safetensors", "runs:/{run}/one", "models:/agent/1", "models:/agent@best"]
)
def test_an_agent_in_mlflow(tmp_path: Path, store: tuple[TrackingConfig, str], source: str):
    config, run = store
    path = local_file(source.format(run=run), tmp_path, config)
    assert path.is_relative_to(tmp_path)
    assert path.name == "student.safetensors"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("runs:/{run}/both", r"one agent file, but there are 2 \(.*other\.zip.*student\.safetensors\)"),
        ("runs:/{run}/none.safetensors", r"none\.safetensors is not in sqlite"),
        ("runs:/00000000000000000000000000000000/a", "is not in sqlite"),
        ("models:/agent/2", "models:/agent/2 is not in sqlite"),
    ],
)
def test_what_mlflow_does_not_have(tmp_path: Path, store: tuple[TrackingConfig, str], source: str, expected: str):
    config, run = store
    with pytest.raises(UserError, match=expected) as raised:
        local_file(source.format(run=run), tmp_path, config)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "downloads").exists() == ("both" in source)


def test_mlflow_without_a_store(tmp_path: Path):
    with pytest.raises(UserError, match=r"needs an MLflow store.*tracking=sqlite"):
        local_file("runs:/1/a", tmp_path, TrackingConfig(None, "e", 1.0))


def test_paths_stay_as_they_are(tmp_path: Path):
    assert local_file("some/agent.zip", tmp_path, TrackingConfig(None, "e", 1.0)) == Path("some/agent.zip")
