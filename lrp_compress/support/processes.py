"""Whether a process still lives, how this one ends and keeps its memory, and which code it runs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # exit codes, as a shell's
# Parameters of glibc's mallopt(3), and the largest values it takes.
M_TRIM_THRESHOLD, MOST_TRIM = -1, 2**31 - 1
M_MMAP_THRESHOLD, MOST_MMAP = -3, 2**25


def process_start(pid: int) -> str | None:
    """Say when a process of this host started, in the system's own words.

    Together with the pid it names one process for good, since pids are used again.

    Returns
    -------
    str or None
        None if no such process lives.
    """
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    try:
        # The command's name, in brackets, may hold spaces; after it come the state and, 19 fields on, the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # A process that was killed and that its parent has not asked after yet is a zombie.
    return None if fields[0] in "ZX" else fields[19]


def owner() -> dict[str, str]:
    """Name this process for other processes: its ``host``, ``pid`` and ``process_start``."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": str(pid), "process_start": str(process_start(pid))}


def process_lives(named: Mapping[str, str]) -> bool | None:
    """Say whether a process named by `owner` still lives; None if it is another host's, or has no name."""
    if named.get("host") != socket.gethostname() or "process_start" not in named:
        return None
    return process_start(int(named["pid"])) == named["process_start"]


@contextlib.contextmanager
def sigterm_exits() -> Iterator[None]:
    """Turn the first SIGTERM in the block into ``SystemExit(143)``, so that what is open gets closed.

    A second one does what it did before the block. Only the main thread may set a handler; in others nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, previous)
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def printing_never_fails() -> None:
    """Let no error of the terminal end the work: no encoding that lacks a sign, and no reader that has gone away.

    What can no longer be printed is lost, as is what the log's file has no room for.
    """
    logging.raiseExceptions = False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            for name in ("write", "flush"):
                setattr(stream, name, _unfailing(getattr(stream, name), stream))


def _unfailing(method: Callable[..., Any], stream: io.TextIOWrapper) -> Callable[..., Any]:
    """Give a method of a stream that after an error of the system goes on, to nowhere."""

    @functools.wraps(method)
    def unfailing(*given: Any) -> Any:
        try:
            return method(*given)
        except OSError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
            return method(*given)

    return unfailing


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees for its next use, where the C library is glibc.

    It gives large blocks back to the system otherwise, and a gradient step that takes as much again has to wait for
    each page to be cleared. The process holds what it once needed until `give_back_memory`.
    """
    if platform.libc_ver()[0] == "glibc":
        c_library = ctypes.CDLL(None)
        c_library.mallopt(M_MMAP_THRESHOLD, MOST_MMAP)
        c_library.mallopt(M_TRIM_THRESHOLD, MOST_TRIM)


def give_back_memory() -> None:
    """Give the memory that this process keeps for nothing back to the system, where the C library is glibc.

    What is kept falls to pieces, so that a process that does many runs would grow by some megabytes with each.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def git_state() -> dict[str, str]:
    """Say which commit of the package is running.

    Returns
    -------
    dict
        ``git_sha`` and ``git_dirty`` (``true`` or ``false``) of the repository that tracks this file; empty if none
        does, as for an installed wheel.
    """
    source = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # A wheel in a virtual environment may lie inside the repository of another project.
        git("ls-files", "--error-unmatch", source.name)
        return {"git_sha": git("rev-parse", "HEAD"), "git_dirty": str(git("status", "--porcelain") != "").lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
