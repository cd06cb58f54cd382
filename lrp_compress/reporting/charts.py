"""Charts of a report, as SVG: fronts, criteria against each other, widths of layers."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.dom import minidom

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

from lrp_compress.pictures.figures import ACCENT, KEPT, REMOVED, chart
from lrp_compress.reporting.records import Group, Record
from lrp_compress.search.objectives import dominates

COLOURS = (KEPT, ACCENT, "#3a8f5c", "#b07c1f", "#7a4fa3", "#4a4a4a", "#1f9aa8")
KEPT_LABEL = "return kept"
MARGIN = 0.5  # of the return kept, shown beyond the means
WIDTH, HEIGHT = 5.2, 3.7  # inches; a phone's screen shows little smaller text
POINT = "point-"
TARGET = 10  # points across that answer to mouse and finger around a point
AXES = re.compile(r"matplotlib\.axis|legend|text")


@dataclass(frozen=True)
class Point:
    """What a point of a chart is called, and where on the page it leads."""

    name: str
    address: str


def as_svg(figure: Figure, points: Sequence[Point] = ()) -> str:
    """Draw a figure as SVG, text as text, to stand in a page.

    Parameters
    ----------
    figure : Figure
        The chart.
    points : sequence of Point
        By their numbers in the chart. They become links that are named; around them, what only an eye can use is
        hidden from screen readers.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    document = minidom.parseString(buffer.getvalue())
    (drawing,) = document.getElementsByTagName("svg")
    for group in drawing.getElementsByTagName("g"):
        name = group.getAttribute("id")
        if name.startswith(POINT):
            _link(document, group, points[int(name.removeprefix(POINT))])
        elif points and AXES.match(name):
            group.setAttribute("aria-hidden", "true")
        if name:
            group.removeAttribute("id")  # another chart of the page has it as well
    return str(drawing.toxml())


def _link(document: minidom.Document, group: minidom.Element, point: Point) -> None:
    """Put what is drawn for a point into a link, its name beside it."""
    link, title = document.createElement("a"), document.createElement("title")
    for name, value in (("href", point.address), ("class", "point"), ("aria-label", point.name)):
        link.setAttribute(name, value)
    title.appendChild(document.createTextNode(point.name))
    for part in (title, *group.childNodes):
        link.appendChild(part)
    group.appendChild(link)


def _mark(axis: Any, number: int, x: float, y: float) -> None:
    """Let the place of a point answer to mouse, finger and keyboard."""
    axis.plot(x, y, "o", markersize=TARGET, alpha=0, zorder=9, gid=f"{POINT}{number}")


def _legend_above(axis: Any, columns: int) -> None:
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, columnspacing=1)


def front_chart(
    groups: Sequence[Group],
    metric: str,
    label: str,
    maximize: bool,
    floor: float | None,
    confirmed: Sequence[Mapping[str, float]] = (),
) -> Figure:
    """Draw the return kept against a cost: the front in colour, what it beats or what is below the floor in grey.

    Parameters
    ----------
    groups : sequence of Group
        The runs; those that differ in their seed alone are one point.
    metric : str
        The cost's, e.g. ``"student/speedup"``.
    label : str
        What to write along its axis.
    maximize : bool
        Whether more of it is better.
    floor : float or None
        Return kept that is asked for.
    confirmed : sequence of mapping
        Metrics of the students that stayed on the front when they were evaluated anew.

    Returns
    -------
    Figure
        With the teacher as a cross, and an interval at every point.
    """
    figure, axis = chart(WIDTH, HEIGHT)
    points = []
    for number, group in enumerate(groups):
        point = (group.mean(metric), group.kept.mean, group.kept.low, group.kept.high)
        if np.isfinite(point).all():
            points.append(point)
            _mark(axis, number, *point[:2])
    on_front = [_on_front(point, points, maximize, floor) for point in points]
    for point, front in sorted(zip(points, on_front, strict=True), key=lambda pair: pair[1]):
        x, y, low, high = point
        colour = KEPT if front else REMOVED
        axis.plot([x, x], [low, high], color=colour, linewidth=1.2, alpha=0.8, zorder=2 + front)
        axis.plot(x, y, "o", color=colour, markersize=6 if front else 4.5, zorder=3 + front)
    line = sorted(point for point, front in zip(points, on_front, strict=True) if front)
    axis.plot([p[0] for p in line], [p[1] for p in line], color=KEPT, linewidth=1, alpha=0.5)
    if confirmed:
        for number, metrics in enumerate(confirmed, start=len(groups)):
            if metric in metrics:
                place = metrics[metric], metrics["student/return_kept"]
                axis.plot(*place, "*", color=ACCENT, markersize=11, zorder=6)
                _mark(axis, number, *place)
        axis.plot([], [], "*", color=ACCENT, markersize=9, label="confirmed")
    teacher = 1.0 if metric.endswith("speedup") else groups[0].mean(metric.replace("student/", "teacher/"))
    axis.plot(teacher, 1.0, "x", color="black", markersize=9, markeredgewidth=2, zorder=5, label="teacher")
    if floor is not None:
        axis.axhline(floor, color="black", linewidth=0.7, linestyle=":")
    axis.plot([], [], "o", color=KEPT, label="front")
    axis.plot([], [], "o", color=REMOVED, label="beaten" if floor is None else "beaten, or below the floor")
    if not metric.endswith("speedup"):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_major_formatter(EngFormatter(unit="B"))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)
    _kept_axis(axis, [point[1] for point in points])
    _legend_above(axis, 4)
    return figure


def _on_front(point: Sequence[float], points: Sequence[Sequence[float]], maximize: bool, floor: float | None) -> bool:
    if floor is not None and point[1] < floor:
        return False
    return not any(dominates(other[:2], point[:2], (maximize, True)) for other in points)


def criteria_chart(groups: Sequence[Group], joined: bool) -> Figure:
    """Draw the return kept against the share of parameters kept, criterion by criterion.

    Parameters
    ----------
    groups : sequence of Group
        The runs.
    joined : bool
        Draw a line with a band per criterion, else points with bars, as for runs that differ in other settings too.

    Returns
    -------
    Figure
        Where no criterion has two sizes, the criteria are beside each other.
    """
    figure, axis = chart(WIDTH, HEIGHT)
    names = list(dict.fromkeys(group.records[0].criterion for group in groups))
    beside = len(names) == len(groups)
    for number, group in enumerate(groups):
        place = names.index(group.records[0].criterion) if beside else group.mean("student/params_kept")
        if np.isfinite([place, group.kept.mean]).all():
            _mark(axis, number, float(place), group.kept.mean)
    for i, name in enumerate(names):
        own = [group for group in groups if group.records[0].criterion == name and np.isfinite(group.kept.mean)]
        own.sort(key=lambda group: group.mean("student/params_kept"))
        x = [float(i) if beside else group.mean("student/params_kept") for group in own]
        middle, low, high = ([getattr(group.kept, key) for group in own] for key in ("mean", "low", "high"))
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(x, middle, "o-" if joined else "o", color=colour, markersize=5, label=name)
        if joined and len(own) > 1:
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        else:
            axis.vlines(x, low, high, color=colour, linewidth=2, alpha=0.4)
    axis.axhline(1, color="black", linewidth=0.7, linestyle=":")
    if beside:
        axis.set_xticks(range(len(names)), labels=names)
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.tick_params("x", rotation=30 if len(names) > 4 else 0)
    else:
        axis.set_xlabel("parameters kept")
        axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        _legend_above(axis, 4)
    _kept_axis(axis, [group.kept.mean for group in groups])
    return figure


def ladder_chart(groups: Sequence[Group]) -> Figure:
    """Draw the return that int8 files keep against how many times fewer bytes they are than the teacher in float32.

    Parameters
    ----------
    groups : sequence of Group
        All with int8 files.
    """
    figure, axis = chart(WIDTH, HEIGHT)
    ladder = [(group.mean("int8/compression"), group.int8_kept) for group in groups if group.int8_kept]
    for number, (smaller, kept) in enumerate(ladder):  # no line: several may be of one size
        _mark(axis, number, smaller, kept.mean)
        axis.plot([smaller, smaller], [kept.low, kept.high], color=KEPT, linewidth=1.2, alpha=0.8)
        axis.plot(smaller, kept.mean, "o", color=KEPT, markersize=6)
    ticks = {f"{smaller:,.0f}": smaller for smaller, _ in ladder}
    axis.axhline(1, color="black", linewidth=0.7, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks(list(ticks.values()), labels=list(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("times fewer bytes: int8 file against the teacher in float32")
    _kept_axis(axis, [kept.mean for _, kept in ladder])
    return figure


def widths_chart(records: Sequence[Record], labels: Sequence[str]) -> Figure:
    """Draw how many channels each layer of some students has left, as a share of its teacher's."""
    layers = list(records[0].teacher_widths)
    figure, axis = chart(WIDTH, 0.5 + 0.32 * len(layers) * max(2, len(records)) / 2 + 1)
    height = 0.8 / len(records)
    for i, (record, label) in enumerate(zip(records, labels, strict=True)):
        for j, layer in enumerate(layers):
            width, whole = record.widths.get(layer, 0), record.teacher_widths.get(layer, 1)
            y = j + (i - (len(records) - 1) / 2) * height
            colour = COLOURS[i % len(COLOURS)]
            axis.barh(y, width / whole, height * 0.9, color=colour, label=label if j == 0 else None)
            axis.annotate(str(width), (width / whole, y), (3, 0), textcoords="offset points", fontsize=7, va="center")
    axis.set_yticks(range(len(layers)), labels=[f"{layer} ({records[0].teacher_widths[layer]})" for layer in layers])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12)
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    axis.set_xlabel("channels left")
    _legend_above(axis, 2)
    return figure


def _kept_axis(axis: Any, kept: Sequence[float]) -> None:
    """Show all means, and of their intervals what is near: those over two seeds reach far out of any chart."""
    axis.set_ylabel(KEPT_LABEL)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    low, high = axis.get_ylim()
    means = [0.0, 1.0, *(mean for mean in kept if np.isfinite(mean))]
    axis.set_ylim(min(0, max(low, min(means) - MARGIN)), min(high, max(means) + MARGIN))
