"""Addresses of MLflow stores, and what can be said about a store without MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import logging
import os
import sqlite3
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from lrp_compress.support.errors import UserError

logger = logging.getLogger(__name__)

# Of several machines; a write-ahead log needs memory that all its readers share, which these do not give.
NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs", "lustre",
    "nfs", "nfs4", "orangefs", "panfs", "smb3", "wekafs",
}  # fmt: skip
MOUNTS = Path("/proc/self/mountinfo")


def resolve_uri(uri: str) -> str:
    """Make a store's address independent of the current folder.

    Parameters
    ----------
    uri : str
        ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``http(s)://host:port``.

    Returns
    -------
    str
        The same store with an absolute path; a server without a trailing slash.

    Raises
    ------
    UserError
        For a file store, a database in memory, a user name in the address, or any other scheme.
    """
    scheme, separator, rest = uri.partition("://")
    if uri.startswith("file:") or not separator:
        raise UserError(f"tracking.uri={uri} is a file store, which MLflow no longer takes; use sqlite:///mlflow.db")
    if scheme == "sqlite":
        path = rest.removeprefix("/")
        if path in ("", ":memory:"):
            raise UserError(f"tracking.uri={uri} names no database file; give one as in sqlite:///mlflow.db")
        return f"sqlite:///{Path(path).absolute()}"
    if scheme in ("http", "https"):
        parts = urllib.parse.urlsplit(uri)
        if parts.username is not None:
            remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            raise UserError(f"tracking.uri for {parts.hostname} holds a user name, which would be recorded; {remedy}")
        return uri.rstrip("/")
    raise UserError(
        f"tracking.uri={uri}: scheme {scheme} is unknown; use sqlite:///mlflow.db, or http://host:port of an "
        "`mlflow server`, which can keep its runs in other databases"
    )


def database_file(uri: str) -> Path | None:
    """Give the file of a resolved SQLite address, None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


def check_database(path: Path) -> None:
    """Check that a SQLite database can be opened or made at `path`, and write nothing.

    Raises
    ------
    UserError
        If the folder is missing or not writable, or the file is not a writable SQLite database.
    """
    if not path.parent.is_dir():
        raise UserError(f"tracking.uri: folder {path.parent} does not exist; make it or choose another")
    # A database is written together with its log and its lock beside it.
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"tracking.uri: folder {path.parent} is not writable; choose another")
    if (kind := _file_system(path.parent)) in NETWORK_FILE_SYSTEMS:
        logger.warning(
            "%s lies on a network file system (%s): SQLite loses what several machines write; use tracking=server",
            path,
            kind,
        )
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"tracking.uri: {path} is not a file; name the database file, as in sqlite:///mlflow.db")
    if not os.access(path, os.R_OK | os.W_OK):
        raise UserError(f"tracking.uri: {path} is not writable; choose another")
    # Not by reading the file: its closing would drop the locks that connections of this process hold on it (POSIX), and
    # another process could take their write-ahead log away.
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database:
            database.execute("pragma schema_version")
    except sqlite3.DatabaseError as error:
        reason = "is not a SQLite database" if "not a database" in str(error) else f"cannot be used ({error})"
        raise UserError(f"tracking.uri: {path} {reason}; choose another file") from error


def _file_system(folder: Path) -> str:
    """Name the kind of file system that a folder lies on, as Linux does; empty where that is not known."""
    try:
        mounts = [line.split() for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    # the mount point is the fifth field, with spaces as \\040; the kind follows a hyphen (proc_pid_mountinfo(5))
    kinds = {fields[4].replace("\\040", " "): fields[fields.index("-") + 1] for fields in mounts}
    place = folder.resolve()
    return next((kinds[str(parent)] for parent in (place, *place.parents) if str(parent) in kinds), "")


def check_answers(uri: str, timeout_s: float) -> None:
    """Check that a server answers as an MLflow server does.

    Parameters
    ----------
    uri : str
        A resolved address of a server.
    timeout_s : float
        How long to wait, in seconds.

    Raises
    ------
    UserError
        If it does not answer in time, or answers like something else.
    """
    remedy = "start it with `mlflow server` or use tracking=sqlite"
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=timeout_s):
            pass
    except urllib.error.HTTPError as error:
        raise UserError(f"tracking.uri={uri} answers HTTP {error.code}, unlike an MLflow server; {remedy}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = f"waited {timeout_s:g} s" if isinstance(reason, TimeoutError) else str(reason)
        raise UserError(f"tracking.uri={uri} does not answer ({why}); {remedy}") from error


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Hold the store for one process of this host at a time (for a server: of this user).

    Two processes that set up a new store at the same moment would both die of it.
    """
    path = database_file(uri)
    if path is None:
        name = f"lrp-compress-{os.getuid()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
        lock = Path(tempfile.gettempdir()) / name
    else:
        lock = path.with_name(f"{path.name}.lock")
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
