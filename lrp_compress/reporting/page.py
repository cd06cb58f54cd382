"""The report: one page that needs no network, and one table for other programs."""

from __future__ import annotations

import base64
import csv
import datetime
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure
from PIL import Image

from lrp_compress import __version__
from lrp_compress.errors import UserError
from lrp_compress.files import write_text
from lrp_compress.reporting.charts import as_svg, criteria_chart, front_chart, ladder_chart, widths_chart
from lrp_compress.reporting.collections import Collection
from lrp_compress.reporting.records import Group, Kept, Record, as_rows, differing, group_seeds
from lrp_compress.search.charts import hypervolume_chart, importance_chart
from lrp_compress.search.studies import SETTINGS, Study

PAGE, TABLE = "report.html", "report.csv"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins one in a spreadsheet
SHOWN_STUDENTS = 6  # whose widths are drawn
SHOWN_MAPS = 3  # relevance maps are large
MAP_WIDTH = 1000  # pixels
COSTS = (("student/speedup", "speedup", True), ("student/size_bytes", "size of the student", False))
INTERVALS = (
    "An interval over several seeds is Student's t interval of the seeds' values: it says where the mean of many seeds "
    "would be. Of one seed alone it is over its games, by bootstrap, and says nothing of other seeds."
)
LAYER_RATIO = "prune.layer_ratios."


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption."""

    drawing: str
    caption: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, and charts, a table or both."""

    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


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
    write_text(folder / PAGE, render(collection))
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


def render(collection: Collection) -> str:
    """Compose the page: HTML with everything inside."""
    records, study, front = collection.records, collection.study, collection.front
    groups = group_seeds(records)
    floor = study.user_attrs[SETTINGS]["floor"] if study else None
    sections = [
        *([_confirmed(front)] if front else []),
        _fronts(groups, floor, [one["metrics"] for one in front if one["on_front"]]),
        _ladder(groups),
        _table(groups, differing(records)),
        *([_progress(study)] if study else []),
        _criteria(groups, joined=study is None),
        _widths(records, front),
        _maps(records, front),
    ]
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
        sections=[one for one in sections if one.charts or one.rows],
    )


def _counted(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _fronts(groups: Sequence[Group], floor: float | None, confirmed: Sequence[Mapping[str, float]]) -> Section:
    charts = []
    for metric, label, maximize in COSTS:
        figure = front_chart(groups, metric, label, maximize, floor, confirmed)
        charts.append(_chart(figure, f"Return kept against {label}, with 95 % intervals."))
    return Section("Return against cost", charts=charts)


def _criteria(groups: Sequence[Group], joined: bool) -> Section:
    if len({group.records[0].criterion for group in groups}) < 2:
        return Section("Criteria")
    note = "Bands and bars are the table's intervals. Other settings may differ as well."
    return Section("Criteria", note, [_chart(criteria_chart(groups, joined), "Return kept by criterion and size.")])


def _progress(study: Study) -> Section:
    charts = []
    if (figure := hypervolume_chart(study)) is not None:
        charts.append(_chart(figure, "Hypervolume of the trials above the floor so far."))
    if (figure := importance_chart(study)) is not None:
        charts.append(_chart(figure, "Share of each objective's variance that a dimension explains (fANOVA)."))
    return Section("The search", charts=charts)


def _confirmed(front: Sequence[Mapping[str, Any]]) -> Section:
    names = list(front[0]["found"])
    header = ["trial", *(part for name in names for part in (f"{name}, found", "confirmed")), "95 % interval", "stays"]
    rows = []
    for one in front:
        pairs = [f"{one[when][name]:,.4g}" for name in names for when in ("found", "confirmed")]
        low, high = (one["metrics"][f"student/return_kept_ci_{end}"] for end in ("low", "high"))
        stays = "yes" if one["on_front"] else "no"
        rows.append([f"{one['trial']}", *pairs, f"{low:.1%} to {high:.1%}", stays])
    note = (
        "The best of many noisy results are partly the luckiest. These students were evaluated again with fresh seeds "
        "and more games; the confirmed figures decide who stays. The interval is of the return kept, over games."
    )
    return Section("The front, confirmed", note, header=header, rows=rows)


def _chosen(records: Sequence[Record], front: Sequence[Mapping[str, Any]], count: int) -> list[tuple[str, Record]]:
    """Choose runs to look at closely: the confirmed front, else the first of different settings."""
    if front:
        by_folder = {record.folder.name: record for record in records}
        stay = [(f"trial {one['trial']}", Path(one["run_dir"]).name) for one in front if one["on_front"]]
        return [(label, by_folder[name]) for label, name in stay if name in by_folder][:count]
    seeds = {record.seed for record in records}
    own = [record for record in records if record.seed == min(seeds)]
    return [(_short(record), record) for record in own][:count]


def _short(record: Record) -> str:
    settings = record.settings
    budget = settings.get("prune.budget", "none")
    much = f"{settings['prune.ratio']:.2f}" if budget == "none" else f"{budget} {settings['prune.share']:.2f}"
    return f"{settings['game.name']}, {record.criterion}, {much}"


def _widths(records: Sequence[Record], front: Sequence[Mapping[str, Any]]) -> Section:
    chosen = _chosen(records, front, SHOWN_STUDENTS)
    same = [(label, record) for label, record in chosen if record.teacher_widths == records[0].teacher_widths]
    if not same:
        return Section("Layers")
    figure = widths_chart([record for _, record in same], [label for label, _ in same])
    return Section("Layers", charts=[_chart(figure, "Channels that are left in each layer (the teacher's number).")])


def _maps(records: Sequence[Record], front: Sequence[Mapping[str, Any]]) -> Section:
    charts = []
    for label, record in _chosen(records, front, SHOWN_MAPS):
        path = record.folder / "figures" / "relevance-maps.png"
        if path.exists():
            charts.append(Chart(_embedded(path), f"{label}: what teacher and student look at.", wide=True))
    return Section("Relevance maps", charts=charts)


def _embedded(path: Path) -> str:
    buffer = io.BytesIO()
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} is no picture; run it again with force=true, or remove it") from error
    small.thumbnail((MAP_WIDTH, 10 * MAP_WIDTH))
    small.save(buffer, format="JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _table(groups: Sequence[Group], names: Sequence[str]) -> Section:
    header = ["run", "seeds", "teacher's return", "student's return", "return kept", "95 % interval"]
    header += ["parameters kept", "size, kB", "speedup", *(name.removeprefix(LAYER_RATIO) for name in names)]
    rows = []
    for group in groups:
        first = group.records[0]
        cells = _identity(group)
        cells += [f"{group.mean(f'{agent}/return_mean'):,.1f}" for agent in ("teacher", "student")]
        cells += _interval(group.kept)
        cells += [f"{group.mean('student/params_kept'):.1%}", f"{group.mean('student/size_bytes') / 1000:,.0f}"]
        cells.append(f"{group.mean('student/speedup'):.2f}")
        rows.append([*cells, *(_plain(first.settings.get(name)) for name in names)])
    note = (
        "Runs that differ in nothing but their seed are one row, with means; all metrics of every run are in the CSV. "
        f"{INTERVALS}"
    )
    return Section("All runs", note, header=header, rows=rows)


def _ladder(groups: Sequence[Group]) -> Section:
    """Show the int8 files, the largest first."""
    own = [(group, group.int8_kept) for group in groups if group.int8_kept is not None]
    own.sort(key=lambda pair: -pair[0].mean("int8/size_bytes"))
    header = ["run", "seeds", "widths", "bytes", "times smaller", "return", "return kept", "95 % interval", "speedup"]
    rows = []
    for group, kept in own:
        cells = [*_identity(group), " ".join(str(width) for width in group.records[0].widths.values())]
        cells += [f"{group.mean('int8/size_bytes'):,.0f}", f"{group.mean('int8/compression'):,.1f}"]
        cells += [f"{group.mean('int8/return_mean'):,.1f}", *_interval(kept), f"{group.mean('int8/speedup'):.2f}"]
        rows.append(cells)
    note = f"The files that go on a device, played in ONNX Runtime; against the teacher in float32. {INTERVALS}"
    sizes = {group.mean("int8/size_bytes") for group, _ in own}
    caption = "Return kept by the int8 files, with 95 % intervals."
    charts = [_chart(ladder_chart([group for group, _ in own]), caption)] if len(sizes) > 1 else []
    return Section("In int8", note, charts, header, rows)


def _identity(group: Group) -> list[str]:
    folder = group.records[0].folder.name
    return [folder.rpartition("-s")[0] or folder, ", ".join(str(record.seed) for record in group.records)]


def _interval(kept: Kept) -> list[str]:
    return [f"{kept.mean:.1%}", f"{kept.low:.1%} to {kept.high:.1%} ({kept.over})"]


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _chart(figure: Figure, caption: str) -> Chart:
    return Chart(as_svg(figure), caption)
