"""The result of one run as tables, printed and as Markdown: the agents side by side, and the files for a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from lrp_compress.support.tables import FigureTable

MISSING_CELL = "\N{EN DASH}"
# label, metric, how it is written; where there are two metrics they are the ends of an interval or a range
Rows = tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...]
AGENTS = ("teacher", "pruned", "repaired", "student")
STAY_SHORTEST = ("pruned", "repaired", "teacher")  # where a terminal is too narrow for all agents


def _return(value: float) -> str:
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3f}M"
    if size >= 1e5:
        return f"{value / 1e3:.1f}k"
    return f"{value:,.0f}" if size >= 1e3 else f"{value:.1f}"


def _percent(value: float) -> str:
    return f"{value * 100:.1f} %" if abs(value) < 100 else f"{value * 100:.0f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _millions(value: float) -> str:
    return f"{value / 1e6:,.2f} M" if value >= 1e6 else f"{value / 1e3:,.0f} k"


def _kilobytes(value: float) -> str:
    return f"{value / 1e3:,.0f}" if value >= 1e4 else f"{value / 1e3:,.1f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _factor(value: float) -> str:
    return f"{value:.2f} x"


def _nats(value: float) -> str:
    return f"{value:.2g}"


INTERVAL = "  {confidence:.4g} % interval"
ROWS: Rows = (
    ("return mean", ("return_mean",), _return),
    (INTERVAL, ("return_ci_low",), _return),  # its ends below each other: four agents fit into 80 columns
    ("             to", ("return_ci_high",), _return),
    ("KL to the teacher", ("kl",), _nats),
    ("return IQM", ("return_iqm",), _return),
    ("human-normalised", ("return_human_normalised",), _percent),
    ("action agreement", ("action_agreement",), _percent),
    ("parameters", ("params",), _count),
    ("MACs", ("macs",), _millions),
    ("size, kB", ("size_bytes",), _kilobytes),
)
# Shown where there are any.
ENDS: Rows = (
    ("games stalled", ("episodes_stalled",), _count),
    ("games capped", ("episodes_capped",), _count),
)
RATIO_ROWS: Rows = (
    ("return kept", ("return_kept",), _percent),
    ("parameters kept", ("params_kept",), _percent),
)
FILE_ROWS: Rows = (
    ("return mean", ("return_mean",), _return),
    (INTERVAL, ("return_ci_low", "return_ci_high"), _return),
    ("size, kB", ("size_bytes",), _kilobytes),
    ("latency p50, ms", ("latency_p50_ms",), _milliseconds),
    ("latency p99, ms", ("latency_p99_ms",), _milliseconds),
    ("loading, ms", ("load_ms",), _milliseconds),
)
FILE_RATIO_ROWS: Rows = (
    ("return kept", ("return_kept",), _percent),
    ("times smaller", ("compression",), _factor),
    ("speedup", ("speedup",), _factor),
    ("  over rounds", ("speedup_low", "speedup_high"), _factor),
)

SENTENCE = (("return_kept", _percent), ("compression", _factor), ("speedup", _factor))


def result_table(metrics: Mapping[str, float | None], title: str, confidence: float) -> FigureTable:
    """Lay out a run's result: a row per figure, a column per agent, the ratios to the teacher below a rule.

    Parameters
    ----------
    metrics : mapping of str to float or None
        Final metrics by their tracked names, such as ``teacher/return_mean`` or ``student/speedup``: returns in points,
        normalised returns, agreement and kept parts as fractions, bytes, milliseconds. Those that are missing, None
        or nan are shown as a dash, so that an unfinished run can be shown as well.
    title : str
        Stands above the table, e.g. the run's name.
    confidence : float
        Coverage of the intervals of the mean return, in (0, 1); only a label.

    Returns
    -------
    FigureTable
        Fits a terminal of 80 columns; in a narrower one the student stays longest.
    """
    return _table(metrics, title, confidence, {agent: agent for agent in AGENTS}, (ROWS, RATIO_ROWS), STAY_SHORTEST)


def file_table(metrics: Mapping[str, float | None], confidence: float) -> FigureTable:
    """Lay out what the files do in ONNX Runtime: teacher and student in float32, and the student in int8.

    Parameters
    ----------
    metrics, confidence
        As in `result_table`.

    Returns
    -------
    FigureTable
        Fits a terminal of 80 columns; in a narrower one the smallest file stays longest.
    """
    heads = {"teacher": "teacher", "student": "student"}
    if any(name.startswith("int8/") for name in metrics):
        heads["int8"] = "student in int8"
    sections = (FILE_ROWS, FILE_RATIO_ROWS)
    return _table(metrics, "as files, in ONNX Runtime", confidence, heads, sections, list(heads)[:-1])


def result_page(metrics: Mapping[str, float | None], title: str, confidence: float, maps: str) -> str:
    """Write both tables as Markdown, below a sentence that says what came out and above the relevance maps.

    Parameters
    ----------
    metrics, title, confidence
        As in `result_table`.
    maps : str
        Address of the picture of relevance maps.

    Returns
    -------
    str
        Read by MLflow as a run's description.
    """
    kept, smaller, faster = (_cell(metrics, "student", (name,), write) for name, write in SENTENCE)
    page = (
        f"The student of **{title}** keeps {kept} of its teacher's return, is {smaller} smaller and {faster} as fast.\n"
    )
    for table in (result_table(metrics, "networks", confidence), file_table(metrics, confidence)):
        heads = [name for _, name in table.heads]
        cells = [[cell.strip() for cell in row] for section in table.sections for row in section]
        rows = [[table.title, *heads[1:]], [":--"] + ["--:"] * (len(heads) - 1), *cells]
        page += "\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return f"{page}\nWhat teacher and student look at:\n\n![Relevance maps of teacher and student]({maps})\n"


def _table(
    metrics: Mapping[str, float | None],
    title: str,
    confidence: float,
    heads: Mapping[str, str],
    sections: tuple[Rows, ...],
    dispensable: Sequence[str],
) -> FigureTable:
    ends = tuple(row for row in ENDS if any(metrics.get(f"{agent}/{row[1][0]}") for agent in heads))
    cells = [
        [
            (label.format(confidence=100 * confidence), *(_cell(metrics, agent, names, write) for agent in heads))
            for label, names, write in rows
        ]
        for rows in (sections[0] + ends, *sections[1:])
    ]
    columns = ["", *heads.values()]
    places = [1 + list(heads).index(agent) for agent in dispensable]
    return FigureTable(title, [("", head) for head in columns], cells, places)


def _cell(
    metrics: Mapping[str, float | None], agent: str, names: tuple[str, ...], write: Callable[[float], str]
) -> str:
    written = []
    for name in names:
        value = metrics.get(f"{agent}/{name}")
        if value is None or math.isnan(value):
            return MISSING_CELL
        written.append(write(value))
    return " to ".join(written)
