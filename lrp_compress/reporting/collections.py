"""Where a report's runs come from: a folder, a study, or a filter over MLflow's runs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.reporting.records import DAMAGED, Record, find_runs, read_runs
from lrp_compress.search.studies import FRONT, RUN_DIR, STUDY, Study, load_study
from lrp_compress.support.errors import UserError, printable
from lrp_compress.support.files import read_json
from lrp_compress.tracking.downloads import download_folder
from lrp_compress.tracking.runs import finished_runs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Elsewhere:
    """Where runs are looked for whose folders are not on this machine.

    Attributes
    ----------
    tracking : TrackingConfig
        Their MLflow store.
    downloads : Path
        Folder for what is copied from it.
    """

    tracking: TrackingConfig
    downloads: Path


@dataclass(frozen=True)
class Collection:
    """What a report is about.

    Attributes
    ----------
    title : str
        The page's heading.
    records : list of Record
        The runs, at least one.
    tracking : TrackingConfig
        The MLflow store that has them.
    study : Study or None
        The study they belong to.
    front : sequence of mapping
        Entries of its ``front.json``.
    """

    title: str
    records: list[Record]
    tracking: TrackingConfig
    study: Study | None = None
    front: Sequence[Mapping[str, Any]] = ()


def from_folder(folder: Path, elsewhere: Elsewhere) -> Collection:
    """Collect the runs of a sweep's, a study's or a run's folder; of a study also those of other machines.

    Raises
    ------
    UserError
        If there is no finished run, or a file is damaged.
    """
    records = find_runs(folder)
    if not (folder / STUDY).exists():
        return Collection(folder.name, records, elsewhere.tracking)
    try:
        named = read_json(folder / STUDY)
        study, front = load_study(named["study"], named["storage"]), _front(folder)
        here = {record.folder.name for record in records}
        records += read_runs(_located([one for one in _run_dirs(study) if Path(one).name not in here], elsewhere))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / STUDY} is damaged ({error}); run the study's command again, or remove it"
        ) from error
    return Collection(folder.name, records, elsewhere.tracking, study, front)


def from_folders(folders: Sequence[Path], elsewhere: Elsewhere) -> Collection:
    """Collect the runs of several folders, each run once.

    Raises
    ------
    UserError
        If one of them holds no finished run, or a file is damaged.
    """
    records = {record.folder.name: record for folder in folders for record in find_runs(folder)}
    return Collection(", ".join(folder.name for folder in folders), list(records.values()), elsewhere.tracking)


def from_study(name: str, storage: str, elsewhere: Elsewhere) -> Collection:
    """Collect the runs of a study.

    Raises
    ------
    UserError
        If there is no such study, or no finished run of it is found.
    """
    study = load_study(name, storage)
    records = read_runs(_located(_run_dirs(study), elsewhere))
    if not records:
        raise UserError(f"study {name} has no finished run on this machine or in {elsewhere.tracking.uri}")
    return Collection(name, records, elsewhere.tracking, study, _front(records[0].folder.parent))


def from_filter(wanted: str, elsewhere: Elsewhere) -> Collection:
    """Collect the finished runs that a filter of MLflow names.

    Raises
    ------
    UserError
        If MLflow refuses the filter, or names no compression that has finished.
    """
    runs = [run.data.tags for run in finished_runs(elsewhere.tracking, wanted)]
    folders = [tags["run_dir"] for tags in runs if "run_dir" in tags]
    records = read_runs(_located(folders, elsewhere))
    if not records:
        raise UserError(
            f"{wanted}: {len(folders)} finished runs in {elsewhere.tracking.uri}, none of them a compression whose "
            "files are there or on this machine; name another filter or another --tracking store"
        )
    return Collection(wanted, records, elsewhere.tracking)


def _run_dirs(study: Study) -> list[str]:
    trials = study.get_trials(deepcopy=False)
    return [trial.user_attrs[RUN_DIR] for trial in trials if trial.values and RUN_DIR in trial.user_attrs]


def _located(run_dirs: Iterable[str], elsewhere: Elsewhere) -> list[Path]:
    """Find runs on this machine, else in MLflow; those that are in neither are left out, with a warning."""
    folders = []
    for run_dir in dict.fromkeys(run_dirs):
        try:
            here = Path(run_dir)
            folders.append(here if here.is_dir() else download_folder(run_dir, elsewhere.downloads, elsewhere.tracking))
        except UserError as error:
            logger.warning("%s is left out: it is not on this machine, and %s", printable(run_dir), error)
    return folders


def _front(folder: Path) -> list[dict[str, Any]]:
    path = folder / FRONT
    try:
        return [_entry(one) for one in read_json(path)] if path.exists() else []
    except DAMAGED as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged ({reason}); run the study's command again, or remove it") from error


def _entry(one: Mapping[str, Any]) -> dict[str, Any]:
    """Check what a report shows of a trial on the front."""
    found, confirmed, metrics = (
        {str(name): float(value) for name, value in one[part].items()} for part in ("found", "confirmed", "metrics")
    )
    for name in found:
        confirmed[name]
    for name in ("student/return_kept", "student/return_kept_ci_low", "student/return_kept_ci_high"):
        metrics[name]
    checked = {"trial": int(one["trial"]), "run_dir": str(one["run_dir"]), "on_front": bool(one["on_front"])}
    return {**one, **checked, "found": found, "confirmed": confirmed, "metrics": metrics}
