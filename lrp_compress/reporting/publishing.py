"""The report of a sweep that has ended: in its folder and in MLflow, there in an experiment for reports."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from lrp_compress.reporting.collections import Elsewhere, from_folder
from lrp_compress.reporting.page import TABLE, write_report
from lrp_compress.support.errors import UserError, printable
from lrp_compress.support.files import value_digest
from lrp_compress.tracking.journal import JOURNAL, Journal
from lrp_compress.tracking.runs import open_run

REPORTS = "-reports"  # ends the name of the experiment that holds the reports of another's sweeps


def report_sweep(folder: Path, elsewhere: Elsewhere, console: Console) -> None:
    """Write the report of a sweep into its folder, and keep it in MLflow.

    A report is no run among runs: it is an entry of the experiment ``NAME-reports``, where ``NAME`` is the runs'.

    Parameters
    ----------
    folder : Path
        The sweep's.
    elsewhere : Elsewhere
        The MLflow store, where runs of other machines are too.
    console : Console
        Says where the page is.
    """
    try:
        collection = from_folder(folder, elsewhere)
    except UserError as error:  # nothing has finished, or something is damaged: the runs themselves have said more
        console.print(printable(f"no report: {error}"), soft_wrap=True)
        return
    page = write_report(collection, folder)
    console.print(f"report    {page}", soft_wrap=True)
    runs = elsewhere.tracking
    with open_run(
        dataclasses.replace(runs, experiment=f"{runs.experiment}{REPORTS}"),
        name=folder.name,
        tags={"config_hash": f"report-{value_digest(folder.name)[:8]}", "sweep": folder.name},
        params={},
        again=True,
        journal=Journal(folder / JOURNAL),
    ) as tracker:
        tracker.metrics({"sweep/runs": len(collection.records)}, len(collection.records))
        tracker.artifact(page)
        tracker.artifact(folder / TABLE)
