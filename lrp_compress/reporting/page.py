"""The report: one page that needs no network, and one table for other programs."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from lrp_compress import __version__
from lrp_compress.reporting.collections import Collection
from lrp_compress.reporting.records import Record, as_rows, group_seeds
from lrp_compress.reporting.sections import make_sections
from lrp_compress.support.files import write_text

PAGE, TABLE = "report.html", "report.csv"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins one in a spreadsheet


def write_report(collection: Collection, folder: Path) -> Path:
    """Write ``report.html`` and ``report.csv`` into a folder.

    Parameters
    ----------
    collection : Collection
        The runs.
    folder : Path
        Where to.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        If a picture of a run is damaged.
    """
    write_text(folder / PAGE, render(collection, folder))
    write_text(folder / TABLE, table(collection.records))
    return folder / PAGE


def table(records: Sequence[Record]) -> str:
    """Write all runs as CSV: settings that differ and all metrics, a row per run."""
    rows = as_rows(records)
    names = dict.fromkeys(name for row in rows for name in row)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def _cell(value: Any) -> Any:
    """Keep a spreadsheet from taking a text for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def render(collection: Collection, folder: Path) -> str:
    """Compose the page: HTML with everything inside, and links to the runs as they are seen from `folder`."""
    records = collection.records
    groups = group_seeds(records)
    games = ", ".join(dict.fromkeys(str(record.settings["game.title"]) for record in records))
    heading = f"{games}: {_counted(records, 'finished run')}, {_counted(groups, 'setting')}"
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        files(__package__).joinpath("page.html").read_text()
    )
    return template.render(
        heading=heading,
        title=collection.title,
        version=__version__,
        date=datetime.date.today().isoformat(),
        sections=make_sections(collection, groups, folder),
    )


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
