"""Files that are never seen half-written, and digests of their content."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lrp_compress.support.errors import UserError, printable
from lrp_compress.support.progress import announced, no_figure, skipped

logger = logging.getLogger(__name__)

T = TypeVar("T")
FULL = os.strerror(errno.ENOSPC)
SUMS = "SHA256SUMS"  # digests of the files in its folder
SUM = re.compile(r"([0-9a-f]{64})  (.+)\n")  # a line of it


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` and rename it into place when the block ends well.

    Parameters
    ----------
    path : Path
        The final path; missing parent folders are made.

    Yields
    ------
    Path
        A path with the same suffix, to be written by the caller. It is removed if the block raises. Its name is no
        other's, since process ids are the same in several containers, and its mode is what the umask makes of it,
        whatever the caller writes it with.

    Raises
    ------
    OSError
        If the file cannot be written; also where a library raises an error of its own because the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.part{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if FULL in str(error) and not isinstance(error, OSError):  # libraries wrap the system's error in one of theirs
            raise OSError(errno.ENOSPC, FULL, str(path)) from error
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):  # none where a write fails
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: Path, key: str) -> None:
    """Check, without writing anything, that files can be made in a folder that need not exist yet.

    Parameters
    ----------
    folder : Path
        The folder.
    key : str
        The setting that names it, for the message.

    Raises
    ------
    UserError
        If its nearest existing parent is no folder, or may not be written to.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder}: {existing} is not a folder that can be written to; choose another one")


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal characters."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of a JSON-serialisable value, independent of key order, 64 hexadecimal characters."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sign(path: Path) -> None:
    """Keep the digest of a file's content in ``SHA256SUMS`` beside it, in the form that ``sha256sum -c`` reads."""
    _write_sums(path.parent / SUMS, _sums(path.parent) | {path.name: file_digest(path)})


def check_signed(path: Path) -> None:
    """Check that a file's content is what `sign` saw; one that it has not seen is believed.

    Raises
    ------
    ValueError
        If it is another.
    OSError
        If the file cannot be read.
    """
    digest = file_digest(path)
    if _sums(path.parent).get(path.name, digest) != digest:
        raise ValueError(f"the content of {path.name} is not what was written")


def is_whole(path: Path, read: Callable[[Path], object]) -> bool:
    """Tell whether a file is there, has the content that `sign` saw, and can be read; if it is damaged, say so."""
    if not path.exists():
        return False
    try:
        check_signed(path)
        read(path)
    except Exception as error:  # there is no end of what a reader says of a damaged file
        told_damaged(path, error)
        return False
    return True


def check_folder_signed(folder: Path) -> None:
    """Check all files of a folder that `sign` has seen, one at least; errors as of `check_signed`."""
    names = _sums(folder)
    if not names:
        raise ValueError(f"{folder / SUMS} is lost")
    for name in names:
        check_signed(folder / name)


def check_all_signed(folder: Path) -> None:
    """Check all files that `sign` has seen in a folder and below; errors as of `check_signed`."""
    for sums in folder.rglob(SUMS):
        for name in _sums(sums.parent):
            check_signed(sums.parent / name)


def _sums(folder: Path) -> dict[str, str]:
    """Read the digests of a folder's files; lines that are damaged are taken out of the file and said."""
    path = folder / SUMS
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return {}
    lines = [SUM.fullmatch(line) for line in text.splitlines(keepends=True)]
    sums = {line[2]: line[1] for line in lines if line}
    if not all(lines):
        logger.warning("%s is damaged; what it says of %d files is believed", path, len(sums))
        _write_sums(path, sums)
    return sums


def _write_sums(path: Path, sums: Mapping[str, str]) -> None:
    write_text(path, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def told_damaged(path: Path, error: Exception) -> None:
    """Say in one line that a result of ours cannot be read and is made again."""
    reason = printable(" ".join(str(error).split())[:160]) or type(error).__name__
    logger.warning("%s is damaged (%s); it is made again", path, reason)


def stored(
    path: Path,
    make: Callable[[], T],
    write: Callable[[Path, T], None],
    read: Callable[[Path], T],
    stage: str = "",
    figure: Callable[[T], str] = no_figure,
) -> T:
    """Read a stage's result if its file is there; else make it and write it.

    Because files appear whole or not at all, this is what lets an interrupted run go on: the stages that are done
    are read, the one that was cut off is made again, as is one whose file is damaged. The log says which.

    Parameters
    ----------
    path : Path
        Where the result is kept.
    make : callable
        Computes the result.
    write, read : callable
        Write it to a path, atomically, and read it back.
    stage : str
        What the log calls the stage; by default the file's name and its folder's.
    figure : callable
        Names the figure that matters of the result, for the log.
    """
    stage = stage or f"{path.parent.name}/{path.stem}"
    if path.exists():
        try:
            check_signed(path)
            value = read(path)
            if path.name not in _sums(path.parent):  # which may have been damaged
                sign(path)
            skipped(stage, figure(value))
        except Exception as error:  # there is no end of what a reader says of a damaged file
            told_damaged(path, error)
        else:
            return value

    def make_and_write() -> T:
        value = make()
        write(path, value)
        sign(path)
        return value

    return announced(stage, make_and_write, figure)
