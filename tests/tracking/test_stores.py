"""Addresses of stores, and the checks that need no MLflow."""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import lrp_compress
from lrp_compress.support.errors import UserError
from lrp_compress.tracking.stores import check_answers, check_database, resolve_uri

REPOSITORY = Path(lrp_compress.__file__).parent.parent


def test_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert resolve_uri("http://tracking:5000/") == "http://tracking:5000"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("file:///data/mlruns", "use sqlite:///mlflow.db"),
        ("./mlruns", "use sqlite:///mlflow.db"),
        ("mlruns", "use sqlite:///mlflow.db"),
        ("postgresql://db/mlflow", "scheme postgresql is unknown"),
        ("sqlite://", "names no database file"),
        ("sqlite:///:memory:", "names no database file"),
        ("http://me:secret@tracking:5000", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_other_stores_are_refused_in_one_line(uri: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_uri(uri)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert "secret" not in message


def test_check_refuses_what_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("This is a page of text and not a database.")
    for name, said in [
        ("missing/mlflow.db", "missing does not exist"),
        ("text.db", "text.db is not a SQLite database"),
        ("text.db/mlflow.db", "text.db does not exist"),
        (".", "is not a file"),
    ]:
        with pytest.raises(UserError, match=said):
            check_database(tmp_path / name)


def test_check_refuses_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    code = (
        "import os, sys\n"
        "from lrp_compress.tracking.stores import check_database\n"
        "from lrp_compress.support.errors import UserError\n"
        "from pathlib import Path\n"
        "folder = os.open(sys.argv[1], os.O_RDONLY)\n"
        "os.fchdir(folder)\n"
        # To the superuser every folder is writable.
        "os.getuid() or os.setuid(65534)\n"
        "try:\n"
        "    check_database(Path('mlflow.db'))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    tmp_path.chmod(0o755)
    assert done.stdout == "tracking.uri: folder . is not writable; choose another\n"


def test_closed_port_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UserError, match=r"does not answer \(.*refused\); start it with `mlflow server`"):
        check_answers(f"http://127.0.0.1:{port}", timeout_s=30)
    assert time.monotonic() - started < 5


def test_silent_server_is_refused_after_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError) as caught:
            check_answers(uri, timeout_s=1)
        assert 0.9 < time.monotonic() - started < 4
    assert str(caught.value).startswith(f"tracking.uri={uri} does not answer (waited 1 s); ")


def test_another_kind_of_server_is_refused() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.handle_request, daemon=True).start()
        uri = f"http://127.0.0.1:{other.server_port}"
        with pytest.raises(UserError, match="answers HTTP 501, unlike an MLflow server"):
            check_answers(uri, timeout_s=5)


def test_a_database_on_a_network_file_system_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared folder"
    shared.mkdir()
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"
        f"90 27 0:50 / {str(shared).replace(' ', chr(92) + '040')} rw shared:5 - nfs4 host:/export rw\n"
    )
    monkeypatch.setattr("lrp_compress.tracking.stores.MOUNTS", mounts)
    check_database(tmp_path / "mlflow.db")
    assert caplog.text == ""
    check_database(shared / "mlflow.db")
    assert "lies on a network file system (nfs4)" in caplog.text
