"""Where a report's runs come from: a folder, a study, or a filter over MLflow's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_compress.config import TrackingConfig
from lrp_compress.errors import UserError
from lrp_compress.files import read_json
from lrp_compress.reporting.records import Record, find_runs, read_runs
from lrp_compress.search.studies import FRONT, RUN_DIR, STUDY, Study, load_study
from lrp_compress.tracking.runs import finished_runs


@dataclass(frozen=True)
class Collection:
    """What a report is about.

    Attributes
    ----------
    title : str
        The page's heading.
    records : list of Record
        The runs, at least one.
    study : Study or None
        The study they belong to.
    front : sequence of mapping
        Entries of its ``front.json``.
    """

    title: str
    records: list[Record]
    study: Study | None = None
    front: Sequence[Mapping[str, Any]] = ()


def from_folder(folder: Path) -> Collection:
    """Collect the runs of a sweep's, a study's or a run's folder.

    Raises
    ------
    UserError
        If there is no finished run, or a file is damaged.
    """
    records = find_runs(folder)
    if not (folder / STUDY).exists():
        return Collection(folder.name, records)
    try:
        named = read_json(folder / STUDY)
        study, front = load_study(named["study"], named["storage"]), _front(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / STUDY} is damaged ({error}); run the study's command again, or remove it"
        ) from error
    return Collection(folder.name, records, study, front)


def from_folders(folders: Sequence[Path]) -> Collection:
    """Collect the runs of several folders, each run once.

    Raises
    ------
    UserError
        If one of them holds no finished run, or a file is damaged.
    """
    records = {record.folder.name: record for folder in folders for record in find_runs(folder)}
    return Collection(", ".join(folder.name for folder in folders), list(records.values()))


def from_study(name: str, storage: str) -> Collection:
    """Collect the runs of a study.

    Raises
    ------
    UserError
        If there is no such study, or it has no finished run on this machine.
    """
    study = load_study(name, storage)
    trials = [trial for trial in study.get_trials(deepcopy=False) if RUN_DIR in trial.user_attrs]
    records = read_runs([Path(trial.user_attrs[RUN_DIR]) for trial in trials])
    if not records:
        raise UserError(f"study {name} has no finished run on this machine")
    return Collection(name, records, study, _front(records[0].folder.parent))


def from_filter(wanted: str, tracking: TrackingConfig) -> Collection:
    """Collect the finished runs that a filter of MLflow names.

    Raises
    ------
    UserError
        If MLflow refuses the filter, or no run that it names has its folder on this machine.
    """
    runs = [run.data.tags for run in finished_runs(tracking, wanted)]
    folders = [Path(tags["run_dir"]) for tags in runs if "run_dir" in tags]
    records = read_runs(folders)
    if not records:
        raise UserError(
            f"{wanted}: {len(folders)} finished runs in {tracking.uri}, none with its folder on this machine; "
            "name another filter or another --tracking store"
        )
    return Collection(wanted, records)


def _front(folder: Path) -> list[dict[str, Any]]:
    path = folder / FRONT
    try:
        front: list[dict[str, Any]] = read_json(path) if path.exists() else []
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); run the study's command again, or remove it") from error
    return front
