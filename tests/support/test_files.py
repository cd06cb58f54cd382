"""Files appear whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lrp_compress.support.errors import UserError
from lrp_compress.support.files import (
    SUMS,
    atomic_path,
    check_folder_signed,
    check_writable,
    file_digest,
    read_json,
    sign,
    stored,
    value_digest,
    write_json,
)


def test_the_file_appears_when_the_block_ends(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "value.json"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # a rename across file systems would not be atomic
        assert temporary.suffix == path.suffix
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "value.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_file_alone(tmp_path: Path):
    path = tmp_path / "value.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys, pathlib\n"
        "from lrp_compress.support.files import atomic_path\n"
        "with atomic_path(pathlib.Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half of the n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    write_json(path, "new")  # what the dead writer has left does not hinder the next one
    assert read_json(path) == "new"


def test_json_round_trip_and_unserialisable_values(tmp_path: Path):
    path = tmp_path / "value.json"
    value = {"b": [1, 2.5, None], "a": {"umlaut": "ä"}}
    write_json(path, value)
    assert read_json(path) == value
    with pytest.raises(TypeError):
        write_json(path, {"set": {1}})
    assert read_json(path) == value


def test_digests(tmp_path: Path):
    path = tmp_path / "data"
    path.write_bytes(b"abc" * 100_000)
    assert file_digest(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    assert value_digest({"a": 1, "b": [2]}) == value_digest({"b": [2], "a": 1})
    assert value_digest({"a": 1}) != value_digest({"a": 1.5})
    assert value_digest([1, 2]) != value_digest([2, 1])


def test_stored_makes_a_value_once(tmp_path: Path):
    path = tmp_path / "stage.json"
    made: list[int] = []

    def make() -> dict[str, int]:
        made.append(1)
        return {"answer": 42}

    for _ in range(2):
        assert stored(path, make, write_json, read_json) == {"answer": 42}
    assert len(made) == 1


def test_a_stage_that_was_cut_off_is_made_again(tmp_path: Path):
    path = tmp_path / "stage.json"

    def fail() -> None:
        raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        stored(path, fail, write_json, read_json)
    assert stored(path, lambda: 7, write_json, read_json) == 7


@pytest.mark.parametrize("content", ["", "{", '{"answer": 4', "\0"])
def test_a_damaged_stage_is_said_and_made_again(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "stage.json"
    path.write_text(content)
    for _ in range(2):
        assert stored(path, lambda: {"answer": 42}, write_json, read_json) == {"answer": 42}
    assert [record.getMessage().count(str(path)) for record in caplog.records if "damaged" in record.message] == [1]
    assert "it is made again" in caplog.text


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_of_the_umask_whoever_writes_them(tmp_path: Path, umask: int):
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "agent.safetensors") as temporary:
            save_file({"weight": torch.zeros(3)}, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "agent.safetensors").stat().st_mode & 0o777 == 0o666 & ~umask


def test_two_processes_of_one_pid_write_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As the first processes of two containers that share a volume."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "value.txt"
    with atomic_path(path) as one, atomic_path(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() in ("one", "other")


def fill_by_system() -> None:
    Path("/dev/full").write_bytes(b"x")


def fill_by_library() -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [fill_by_system, fill_by_library])
def test_a_full_disk_names_the_file_and_leaves_the_old_one_alone(tmp_path: Path, write: Callable[[], None]):
    path = tmp_path / "stage.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_path(path):
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable_writes_nothing(tmp_path: Path):
    check_writable(tmp_path / "new" / "folder", "cache_dir")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache_dir=.*file is not a folder"):
        check_writable(tmp_path / "file" / "below", "cache_dir")


def test_a_result_that_reads_well_and_is_another_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "value.json"
    for expected in (1, 1):
        assert stored(path, lambda: 1, write_json, read_json) == expected
    path.write_text("2\n")
    assert stored(path, lambda: 3, write_json, read_json) == 3
    assert "the content of value.json is not what was written" in caplog.text
    assert stored(path, lambda: 4, write_json, read_json) == 3
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=tmp_path, check=True)
    (tmp_path / SUMS).write_bytes(b"\xff\x00")  # no digest that can be read is none
    assert stored(path, lambda: 5, write_json, read_json) == 3


def test_a_folder_that_lacks_a_signed_file_is_damaged(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    sign(tmp_path / "a")
    (tmp_path / "b").write_text("b")
    check_folder_signed(tmp_path)
    (tmp_path / "a").unlink()
    with pytest.raises(FileNotFoundError):
        check_folder_signed(tmp_path)
    (tmp_path / SUMS).unlink()
    with pytest.raises(ValueError, match="is lost"):
        check_folder_signed(tmp_path)


def test_digests_that_are_damaged_are_said_once_and_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("one", "two")]
    for path in paths:
        stored(path, lambda: 1, write_json, read_json)
    whole = (tmp_path / SUMS).read_text()
    (tmp_path / SUMS).write_text(whole[:-20])
    for _ in range(2):
        for path in paths:
            assert stored(path, lambda: 2, write_json, read_json) == 1
    assert caplog.text.count(f"{tmp_path / SUMS} is damaged; what it says of 1 files is believed") == 1
    assert (tmp_path / SUMS).read_text() == whole
    paths[1].write_text("3")
    assert stored(paths[1], lambda: 2, write_json, read_json) == 2
