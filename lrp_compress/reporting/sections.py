"""The parts of a report: charts whose points name themselves, and tables that link to the runs."""

from __future__ import annotations

import base64
import io
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from lrp_compress.config.schema import TrackingConfig
from lrp_compress.reporting.charts import Point, as_svg, criteria_chart, front_chart, ladder_chart, widths_chart
from lrp_compress.reporting.collections import Collection
from lrp_compress.reporting.records import Group, Kept, Record, differing
from lrp_compress.search.charts import hypervolume_chart, importance_chart
from lrp_compress.search.studies import SETTINGS, Study
from lrp_compress.support.errors import UserError
from lrp_compress.tracking.runs import run_page

SHOWN_STUDENTS = 6  # whose widths are drawn
SHOWN_MAPS = 3  # relevance maps are large
MAP_WIDTH = 1000  # pixels
COSTS = (("student/speedup", "speedup", True), ("student/size_bytes", "size of the student", False))
INTERVALS = (
    "An interval over several seeds is Student's t interval of the seeds' values: it says where the mean of many seeds "
    "would be. Of one seed alone it is over its games, by bootstrap, and says nothing of other seeds."
)
LAYER_RATIO = "prune.layer_ratios."
IN_MLFLOW = "in MLflow"


@dataclass(frozen=True)
class Link:
    """A text that leads somewhere, and what a screen reader says of it."""

    text: str
    address: str
    label: str


@dataclass(frozen=True)
class Row:
    """A row of a table: texts, or links beside each other; and the name by which points of charts lead to it."""

    cells: Sequence[str | list[Link]]
    anchor: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption; where it has links it is no picture to a screen reader."""

    drawing: str
    caption: str
    wide: bool = False
    linked: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: a title, and charts, a table or both."""

    title: str
    note: str = ""
    charts: list[Chart] = field(default_factory=list)
    header: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def make_sections(collection: Collection, groups: Sequence[Group], folder: Path) -> list[Section]:
    """Make the parts of a report in their order, those left out that would be empty.

    Parameters
    ----------
    collection : Collection
        The runs.
    groups : sequence of Group
        The same runs, put together.
    folder : Path
        Where the page will be: its links to folders begin there.

    Raises
    ------
    UserError
        If a picture of a run is damaged.
    """
    records, study, front = collection.records, collection.study, collection.front
    floor = study.user_attrs[SETTINGS]["floor"] if study else None
    made = [
        *([_confirmed(records, front, folder)] if front else []),
        _fronts(groups, floor, [one for one in front if one["on_front"]]),
        _ladder(groups, collection.tracking, folder),
        _table(groups, differing(records), collection.tracking, folder),
        *([_progress(study)] if study else []),
        _criteria(groups, joined=study is None),
        _widths(records, front),
        _maps(records, front),
    ]
    return [one for one in made if one.charts or one.rows]


def _fronts(groups: Sequence[Group], floor: float | None, confirmed: Sequence[Mapping[str, Any]]) -> Section:
    points = [*_points(groups), *(_confirmed_point(one) for one in confirmed)]
    charts = []
    for metric, label, maximize in COSTS:
        figure = front_chart(groups, metric, label, maximize, floor, [one["metrics"] for one in confirmed])
        charts.append(_chart(figure, f"Return kept against {label}, with 95 % intervals.", points))
    return Section("Return against cost", charts=charts)


def _criteria(groups: Sequence[Group], joined: bool) -> Section:
    if len({group.records[0].criterion for group in groups}) < 2:
        return Section("Criteria")
    note = "Bands and bars are the table's intervals. Other settings may differ as well."
    figure = criteria_chart(groups, joined)
    return Section("Criteria", note, [_chart(figure, "Return kept by criterion and size.", _points(groups))])


def _points(groups: Sequence[Group]) -> list[Point]:
    """Name the points of charts of groups; each leads to its row in the table of all runs."""
    points = []
    for number, group in enumerate(groups):
        kept, interval = _interval(group.kept)
        figures = f"return kept {kept}, {interval}; {_kilobytes(group)} kB; speedup {group.mean('student/speedup'):.2f}"
        points.append(Point(f"{_named(group)}: {figures}", f"#run-{number}"))
    return points


def _confirmed_point(one: Mapping[str, Any]) -> Point:
    figures = "; ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in one["confirmed"].items())
    return Point(f"trial {one['trial']}, confirmed: {figures}", f"#trial-{one['trial']}")


def _progress(study: Study) -> Section:
    charts = []
    if (figure := hypervolume_chart(study)) is not None:
        charts.append(_chart(figure, "Hypervolume of the trials above the floor so far."))
    if (figure := importance_chart(study)) is not None:
        charts.append(_chart(figure, "Share of each objective's variance that a dimension explains (fANOVA)."))
    return Section("The search", charts=charts)


def _confirmed(records: Sequence[Record], front: Sequence[Mapping[str, Any]], folder: Path) -> Section:
    names = list(front[0]["found"])
    header = ["trial", *(part for name in names for part in (f"{name}, found", "confirmed")), "95 % interval", "stays"]
    by_folder = {record.folder.name: record for record in records}
    rows = []
    for one in front:
        number, record = str(one["trial"]), by_folder.get(Path(one["run_dir"]).name)
        trial = number if record is None else [Link(number, _way(folder, record), f"folder of trial {number}")]
        pairs = [f"{one[when][name]:,.4g}" for name in names for when in ("found", "confirmed")]
        low, high = (one["metrics"][f"student/return_kept_ci_{end}"] for end in ("low", "high"))
        stays = "yes" if one["on_front"] else "no"
        rows.append(Row([trial, *pairs, f"{low:.1%} to {high:.1%}", stays], f"trial-{number}"))
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


def _table(groups: Sequence[Group], names: Sequence[str], tracking: TrackingConfig, folder: Path) -> Section:
    header = ["run", "seeds", "teacher's return", "student's return", "return kept", "95 % interval", "parameters kept"]
    header += ["size, kB", "speedup", *(name.removeprefix(LAYER_RATIO) for name in names), IN_MLFLOW]
    rows = []
    for number, group in enumerate(groups):
        first = group.records[0]
        cells = _identity(group, folder)
        cells += [f"{group.mean(f'{agent}/return_mean'):,.1f}" for agent in ("teacher", "student")]
        cells += [*_interval(group.kept), f"{group.mean('student/params_kept'):.1%}", _kilobytes(group)]
        cells += [f"{group.mean('student/speedup'):.2f}", *(_plain(first.settings.get(name)) for name in names)]
        rows.append(Row([*cells, _pages(group, tracking)], f"run-{number}"))
    note = (
        "Runs that differ in nothing but their seed are one row, with means; all metrics of every run are in the CSV. "
        f"A seed leads to its run's folder, and to its page in MLflow while that is served. {INTERVALS}"
    )
    return Section("All runs", note, header=header, rows=rows)


def _ladder(groups: Sequence[Group], tracking: TrackingConfig, folder: Path) -> Section:
    """Show the int8 files, the largest first."""
    own = [(group, group.int8_kept) for group in groups if group.int8_kept is not None]
    own.sort(key=lambda pair: -pair[0].mean("int8/size_bytes"))
    header = ["run", "seeds", "widths", "bytes", "times smaller", "return", "return kept", "95 % interval", "speedup"]
    header.append(IN_MLFLOW)
    rows, points = [], []
    for number, (group, kept) in enumerate(own):
        cells = [*_identity(group, folder), " ".join(str(n) for n in group.records[0].widths.values())]
        size, smaller = f"{group.mean('int8/size_bytes'):,.0f}", f"{group.mean('int8/compression'):,.1f}"
        share, interval = _interval(kept)
        cells += [size, smaller, f"{group.mean('int8/return_mean'):,.1f}", share, interval]
        cells += [f"{group.mean('int8/speedup'):.2f}", _pages(group, tracking)]
        rows.append(Row(cells, f"int8-{number}"))
        said = f"{_named(group)}, int8: return kept {share}, {interval}; {size} bytes, {smaller} times smaller"
        points.append(Point(said, f"#int8-{number}"))
    note = f"The files that go on a device, played in ONNX Runtime; against the teacher in float32. {INTERVALS}"
    sizes = {group.mean("int8/size_bytes") for group, _ in own}
    caption = "Return kept by the int8 files, with 95 % intervals."
    charts = [_chart(ladder_chart([group for group, _ in own]), caption, points)] if len(sizes) > 1 else []
    return Section("In int8", note, charts, header, rows)


def _identity(group: Group, folder: Path) -> list[str | list[Link]]:
    links = [Link(str(one.seed), _way(folder, one), f"folder of {one.folder.name}") for one in group.records]
    return [_name(group), links]


def _pages(group: Group, tracking: TrackingConfig) -> list[Link]:
    """Link to the runs of a group that were recorded in MLflow."""
    pages = [(one, run_page(tracking, one.run_id)) for one in group.records]
    return [Link(str(one.seed), page, f"{one.folder.name} in MLflow") for one, page in pages if page]


def _way(folder: Path, record: Record) -> str:
    """Give the address of a run's folder, seen from the folder of the page."""
    return urllib.parse.quote(f"{os.path.relpath(record.folder.resolve(), folder.resolve())}/")


def _name(group: Group) -> str:
    folder = group.records[0].folder.name
    return folder.rpartition("-s")[0] or folder


def _named(group: Group) -> str:
    seeds = ", ".join(str(record.seed) for record in group.records)
    return f"{_name(group)}, seed{'s' if len(group.records) > 1 else ''} {seeds}"


def _kilobytes(group: Group) -> str:
    return f"{group.mean('student/size_bytes') / 1000:,.0f}"


def _interval(kept: Kept) -> tuple[str, str]:
    return f"{kept.mean:.1%}", f"{kept.low:.1%} to {kept.high:.1%} ({kept.over})"


def _plain(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _chart(figure: Figure, caption: str, points: Sequence[Point] = ()) -> Chart:
    return Chart(as_svg(figure, points), caption, linked=bool(points))
