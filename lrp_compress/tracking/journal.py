"""What a run has recorded, in a file of its own: nothing is lost while the store fails, nothing goes there twice."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrp_compress.support.files import file_digest, told_damaged, value_digest

JOURNAL = "tracking.jsonl"  # within a folder of a run or a sweep
ENDED = "ended"
HANDED_TO = re.compile(r'^\{"run_id": "(\w+)"', re.MULTILINE)
# What each kind of record has beside its name and value.
KINDS: dict[str, set[str]] = {
    "metric": {"step", "timestamp"},
    "tag": set(),
    "param": set(),
    "artifact": {"path", "folder"},
    "image": {"path", "step"},
    "model": {"path", "example", "agent"},
}


class Journal:
    """The records of a run in their order, how many of them its MLflow run has, and whether that has ended.

    The file has one JSON object a line and is only appended to. A line that was cut off is left out; a file that cannot
    be read is begun anew.

    Parameters
    ----------
    path : Path, optional
        The file; without one the journal lives as long as the process.

    Attributes
    ----------
    records : list of dict
        Each with ``kind``, ``name`` and ``value``, and what else its kind needs.
    run_id : str
        The MLflow run that has the first records; empty if none has.
    handed : int
        How many of the records it has.
    ended : bool
        Whether that run has been ended as it should, all records in it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.run_id, self.handed, self.ended = "", 0, False
        self._path = path
        self._known: dict[str, Any] = {}
        for line in _lines(path) if path is not None and path.exists() else ():
            self._take(line)

    def __str__(self) -> str:
        return str(self._path or "memory")

    def add(self, kind: str, name: str, value: Any, *, once: bool = False, **more: Any) -> bool:
        """Append a record unless it repeats what stands under its kind and name, with the step or folder.

        Parameters
        ----------
        kind, name : str
            What is recorded.
        value : object
            A number, a text, or the digest of a file's content.
        once : bool
            Whether what stands there already is kept even if it is another value.
        more
            What else the record needs to be handed over.

        Returns
        -------
        bool
            Whether it is new.
        """
        record = {"kind": kind, "name": name, "value": value, **more}
        before = self._known.get(_key(record))
        if before == value or (once and before is not None):
            return False
        self._append(record)
        return True

    def pending(self, most: Mapping[str, int]) -> list[dict[str, Any]]:
        """Give the next records that the MLflow run has not: of one kind, and as many as `most` says of it."""
        waiting = self.records[self.handed :]
        kind = waiting[0]["kind"] if waiting else ""
        return list(itertools.takewhile(lambda record: record["kind"] == kind, waiting[: most.get(kind, 0)]))

    def hand_over(self, run_id: str, count: int) -> None:
        """Note that an MLflow run has the first `count` records."""
        if (run_id, count) != (self.run_id, self.handed):
            self._append({"run_id": run_id, "handed": count})

    def end(self) -> None:
        """Note that the MLflow run has ended as it should."""
        self._append({ENDED: True})

    def _append(self, line: Mapping[str, Any]) -> None:
        self._take(line)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(self._path, "a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:  # has no name where a write fails
                error.filename = str(self._path)
                raise

    def _take(self, line: Mapping[str, Any]) -> None:
        self.ended = ENDED in line
        if "handed" in line:
            self.run_id, self.handed = str(line["run_id"]), int(line["handed"])
        elif "kind" in line:
            self._known[_key(line)] = line["value"]
            self.records.append(dict(line))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a journal's file, and take away one that was cut off; none of a damaged file."""
    try:
        text = path.read_text()
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        for line in lines:
            is_record = line.get("kind") in KINDS and line.keys() >= {"name", "value"} | KINDS[line["kind"]]
            if not (is_record or line.keys() >= {"run_id", "handed"} or ENDED in line):
                raise ValueError(f"unknown record {str(line)[:40]}")
        if whole != text:
            path.write_text(whole)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        told_damaged(path, error)
        path.unlink()
        return []
    return lines


def recorded_as(path: Path) -> str:
    """Give the MLflow run that a journal's records went to; empty if there is none. The file is left as it is."""
    handed = HANDED_TO.findall(path.read_text(errors="replace")) if path.is_file() else []
    return str(handed[-1]) if handed else ""


def _key(record: Mapping[str, Any]) -> str:
    return json.dumps([record["kind"], record["name"], record.get("step"), record.get("folder")])


def content_digest(path: Path) -> str:
    """Digest of a file, or of a folder's files and their names."""
    if path.is_file():
        return file_digest(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return value_digest({str(file.relative_to(path)): file_digest(file) for file in files})
