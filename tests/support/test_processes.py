"""Which processes live, how SIGTERM ends one, which commit runs."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import lrp_compress
from lrp_compress.support.processes import process_start, sigterm_exits

REPOSITORY = Path(lrp_compress.__file__).parent.parent


def test_process_start_names_a_living_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = process_start(process.pid)
        assert started is not None
        assert started == process_start(process.pid)
        assert started != process_start(os.getpid())
    assert process_start(process.pid) is None


def test_first_sigterm_exits_and_the_second_does_what_it_did_before() -> None:
    got: list[int] = []
    outer = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        with pytest.raises(SystemExit) as caught, sigterm_exits():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
        assert got == [signal.SIGTERM]
        with sigterm_exits():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert len(got) == 2
    finally:
        signal.signal(signal.SIGTERM, outer)


def test_git_state_is_that_of_the_package(tmp_path: Path) -> None:
    package = tmp_path / "lrp_compress"
    shutil.copytree(REPOSITORY / "lrp_compress", package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".gitignore").write_text("__pycache__\n")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    def state() -> str:
        code = "from lrp_compress.support.processes import git_state; print(git_state())"
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "before the package")
    assert state() == "{}"
    git("add", ".")
    git("commit", "-m", "the package")
    sha = git("rev-parse", "HEAD")
    assert state() == str({"git_sha": sha, "git_dirty": "false"})
    changed = package / "support" / "errors.py"
    changed.write_text(changed.read_text() + "\n")
    assert state() == str({"git_sha": sha, "git_dirty": "true"})


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep their own counsel")
def test_freed_memory_is_kept() -> None:
    """Blocks of a gradient step are paged in once, not at every step."""
    steps = """
import resource, sys, numpy as np
from lrp_compress.support.processes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    return [np.ones(20_000_000, np.uint8) for _ in range(4)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, usual = (
        int(subprocess.run([sys.executable, "-c", steps, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "usual")
    )
    assert kept < 100
    assert usual > 10 * kept


def test_memory_that_is_kept_for_nothing_is_given_back() -> None:
    steps = """
from pathlib import Path
from lrp_compress.support.processes import give_back_memory, keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
keep_freed_memory()
blocks = [bytearray(100_000) for _ in range(2000)]
last = blocks[-1]
full = resident()
del blocks
kept = resident()
give_back_memory()
print(full - kept, kept - resident())
"""
    done = subprocess.run([sys.executable, "-c", steps], capture_output=True, text=True, check=True)
    freed, given_back = map(int, done.stdout.split())
    assert freed < 20_000_000
    assert given_back > 180_000_000


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_ends_no_job(encoding: str) -> None:
    code = (
        "from lrp_compress.support.processes import printing_never_fails\nfrom rich.console import Console\n"
        "printing_never_fails()\nConsole(width=40).rule('95 % ±')\nprint('─ ± …')"
    )
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert b"95 %" in done.stdout


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_goes_away_ends_no_job(stream: str) -> None:
    code = (
        "import logging, sys\nfrom rich.console import Console\n"
        "from lrp_compress.support.processes import printing_never_fails\n"
        f"printing_never_fails()\nstream = sys.{stream}\nlogging.basicConfig(stream=stream)\n"
        "for _ in range(2000):\n"
        "    logging.warning('a line')\n    Console(file=stream).print('a line')\n    print('a line', file=stream)\n"
        "print('the end', file=sys.stdout if stream is sys.stderr else sys.stderr)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as job:
        closed, other = (job.stdout, job.stderr) if stream == "stdout" else (job.stderr, job.stdout)
        assert closed is not None
        assert other is not None
        closed.readline()
        closed.close()
        assert other.read() == "the end\n"
    assert job.returncode == 0
