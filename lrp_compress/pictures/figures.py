"""Figures of a run, as PNG files: relevance maps, channel scores, distillation and returns.

Matplotlib's objects are used directly: no pyplot, so no global state and no display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.compression.criteria import ChannelScores
from lrp_compress.environments.returns import Evaluation
from lrp_compress.support.files import atomic_path

DPI = 150
KEPT, REMOVED, ACCENT = "#2b5c8a", "#c9c9c9", "#c0392b"
SIDE = 84  # pixels of a frame
ACROSS, DOWN = SIDE + 6, SIDE + 16  # from one cell of the relevance maps to the next
PIXELS_PER_INCH = 45
LEFT, TOP, BOTTOM = 0.55, 0.35, 0.6  # inches around the cells
SIGNED = LinearSegmentedColormap.from_list("relevance", ["#1f4fd8", "#ffffff", "#d81f2a"])


def chart(width: float, height: float) -> tuple[Figure, Any]:
    """Make a figure of one chart, and its axis with a grid.

    Parameters
    ----------
    width, height : float
        Inches.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axis: Any = figure.subplots()
    axis.grid(alpha=0.25)
    open_frame(axis)
    return figure, axis


def pick_moments(episodes: NDArray[np.integer], count: int) -> list[int]:
    """Choose states that show different games at different stages.

    Parameters
    ----------
    episodes : ndarray of int, shape (N,)
        The episode of each state; states of an episode in order of play.
    count : int
        How many to choose.

    Returns
    -------
    list of int
        Indices: one state from each of `count` episodes spread over the set (over again if there are fewer), the first
        from the start of its episode, the last from the end of its own.
    """
    names = np.unique(episodes)
    moments = []
    for i in range(count):
        states = np.flatnonzero(episodes == names[i * len(names) // count])
        moments.append(int(states[int((i + 0.5) / count * len(states))]))
    return moments


def relevance_maps(path: Path, frames: Tensor, teacher: Tensor, student: Tensor, titles: Sequence[str]) -> Path:
    """Draw what teacher and student look at: per moment a row with the frame, and each one's heat map and overlay.

    Every map has its own scale, symmetric about 0, which is written below it: full colour is its largest magnitude.

    Parameters
    ----------
    path : Path
        The PNG to write.
    frames : Tensor
        The newest frame of each moment, uint8, shape (M, 84, 84).
    teacher, student : Tensor
        Heat maps (`compression.attribution.heat_maps`), shape (M, 84, 84).
    titles : sequence of str
        What to write beside each row, such as the actions that were chosen; M of them.

    Returns
    -------
    Path
        `path`.
    """
    # All cells are one image: an axis for each would take thirty times as long to lay out.
    columns = ("frame", "teacher", "teacher on frame", "student", "student on frame")
    picture = np.ones((len(frames) * DOWN, len(columns) * ACROSS, 3))
    width, height = (side / PIXELS_PER_INCH for side in (picture.shape[1], picture.shape[0]))
    figure = Figure(figsize=(LEFT + width, TOP + height + BOTTOM), dpi=DPI)
    full = figure.get_size_inches()
    axis: Any = figure.add_axes((LEFT / full[0], BOTTOM / full[1], width / full[0], height / full[1]))
    for row, (frame, *maps) in enumerate(zip(frames, teacher, student, strict=True)):
        grey = _array(frame) / 255
        cells = [grey[..., None].repeat(3, 2)]
        for column, values in zip((1, 3), maps, strict=True):
            scale = float(values.abs().max())
            signed = _array(values) / (scale or 1)
            cells += [SIGNED((signed + 1) / 2)[..., :3], lay_over(grey, signed)]
            middle, below = (column + 0.5) * ACROSS, row * DOWN + SIDE + 4
            axis.text(middle, below, f"scale ±{scale:.2g}", fontsize=8, ha="center", va="top")
        for column, cell in enumerate(cells):
            framed = np.pad(cell, ((1, 1), (1, 1), (0, 0)))
            rows, across = (slice(place, place + SIDE + 2) for place in (row * DOWN, column * ACROSS + 2))
            picture[rows, across] = framed
    axis.imshow(picture, interpolation="nearest", aspect="auto", extent=(0, picture.shape[1], picture.shape[0], 0))
    axis.set_xticks((np.arange(len(columns)) + 0.5) * ACROSS, labels=columns, fontsize=11)
    axis.set_yticks(np.arange(len(frames)) * DOWN + SIDE / 2, labels=titles, fontsize=9, rotation=90, va="center")
    axis.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axis.spines[:].set_visible(False)
    place = figure.add_axes((0.25, 0.32 / full[1], 0.5, 0.13 / full[1]))
    bar = figure.colorbar(ScalarMappable(Normalize(-1, 1), SIGNED), cax=place, orientation="horizontal")
    bar.set_ticks([-1, 0, 1], labels=["speaks against (-scale)", "0", "speaks for (+scale)"])
    return _write(figure, path)


def relevance_bars(path: Path, scores: ChannelScores, keep: Mapping[str, Sequence[int]] | None = None) -> Path:
    """Draw every channel's score, one panel per hidden layer, the highest first.

    Scores are shown as multiples of the layer's mean on a logarithmic axis, so that layers compare and the low end,
    where pruning decides, can be read.

    Parameters
    ----------
    path : Path
        The PNG to write.
    scores : ChannelScores
        The scores.
    keep : mapping of str to sequence of int, optional
        Kept channels per layer; the others are greyed. Layers left out are kept whole.

    Returns
    -------
    Path
        `path`.
    """
    layers = scores.scores
    figure = Figure(figsize=(9, 1.75 * len(layers) + 0.8), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(layers), 1, squeeze=False)[:, 0]
    for axis, (name, tensor) in zip(axes, layers.items(), strict=True):
        relative = _array(tensor) * len(tensor)
        order = np.argsort(-relative, kind="stable")
        kept = set(range(len(tensor)) if keep is None or name not in keep else keep[name])
        colours = [KEPT if int(channel) in kept else REMOVED for channel in order]
        width = 0.8 if len(tensor) <= 128 else 1.0
        positive = relative[relative > 0]
        _log_scale(axis)
        axis.set_ylim(max(positive.min(initial=1.0) / 2, 1e-4), relative.max(initial=1.0) * 2)
        axis.add_collection(_bars(relative[order], width, axis.get_ylim()[0], colours))
        axis.axhline(1, color="black", linewidth=0.6, linestyle=":")
        axis.set_xlim(0.4, len(order) + 0.6)
        zero = len(relative) - len(positive)
        note = f", {zero} at zero" if zero else ""
        axis.set_title(f"{name}: {len(kept)} of {len(tensor)} channels kept{note}", fontsize=10, loc="left")
        axis.tick_params(labelsize=8)
        open_frame(axis)
    axes[-1].set_xlabel("channels, highest score first")
    figure.supylabel("score / mean score of the layer", fontsize=10)
    states = f" over {scores.states} states" if scores.states else ""
    figure.suptitle(f"Channel scores by criterion {scores.criterion}{states}", fontsize=12)
    if keep is not None:
        handles = [Patch(color=KEPT, label="kept"), Patch(color=REMOVED, label="removed")]
        axes[0].legend(handles=handles, fontsize=8, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.3))
    return _write(figure, path)


def _bars(heights: NDArray[np.floating], width: float, bottom: float, colours: Sequence[str]) -> PolyCollection:
    """Draw bars at 1, 2 and so on as one artist, in a tenth of the time that an artist for each takes."""
    left = np.arange(1, len(heights) + 1) - width / 2
    low = np.full_like(left, bottom)
    corners = np.array([(left, low), (left, heights), (left + width, heights), (left + width, low)])
    return PolyCollection(list(corners.transpose(2, 0, 1)), facecolors=colours, linewidths=0)


def learning_curve(path: Path, points: Sequence[tuple[int, float, float]]) -> Path:
    """Draw a distillation: loss and agreement with the teacher against samples.

    Parameters
    ----------
    path : Path
        The PNG to write.
    points : sequence of (int, float, float)
        Samples so far, loss, and the fraction of states with the teacher's greedy action, in order.

    Returns
    -------
    Path
        `path`.
    """
    samples, loss, agreement = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    figure = Figure(figsize=(7, 5), dpi=DPI, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    marker = "o" if len(samples) <= 40 else None
    top.plot(samples, loss, color=KEPT, marker=marker, markersize=3)
    if 0 < 10 * loss.min() < loss.max():
        _log_scale(top)
    top.set_ylabel("distillation loss")
    bottom.plot(samples, agreement, color=ACCENT, marker=marker, markersize=3)
    bottom.set_ylabel("action agreement")
    bottom.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
    bottom.set_xlabel("samples")
    bottom.annotate(
        f"{agreement[-1]:.1%}", (samples[-1], agreement[-1]), (0, 6), textcoords="offset points", ha="right", fontsize=9
    )
    for axis in (top, bottom):
        axis.grid(alpha=0.25)
        open_frame(axis)
    return _write(figure, path)


def return_strips(path: Path, evaluations: Mapping[str, Evaluation]) -> Path:
    """Draw the episodic returns of several agents: a dot per episode, the mean and its interval above them.

    Parameters
    ----------
    path : Path
        The PNG to write.
    evaluations : mapping of str to Evaluation
        By the agents' names, such as teacher, pruned and student; drawn from top to bottom.

    Returns
    -------
    Path
        `path`.
    """
    figure = Figure(figsize=(8, 0.95 * len(evaluations) + 1.1), dpi=DPI, layout="constrained")
    axis: Any = figure.subplots()
    for y, evaluation in enumerate(evaluations.values()):
        returns = np.sort(evaluation.returns)
        # Neighbours in rank get different heights, the same at every call.
        spread = (np.arange(len(returns)) * 0.618) % 1
        axis.plot(returns, y + 0.08 + 0.24 * spread, "o", color=KEPT, alpha=0.45, markersize=4, markeredgewidth=0)
        axis.plot([evaluation.ci_low, evaluation.ci_high], [y - 0.14] * 2, color=ACCENT, linewidth=2.5)
        axis.plot(evaluation.mean, y - 0.14, "D", color=ACCENT, markersize=6)
        text = f"{evaluation.mean:.4g} ({evaluation.ci_low:.4g} to {evaluation.ci_high:.4g})"
        axis.annotate(text, (evaluation.ci_high, y - 0.14), (6, -3), textcoords="offset points", fontsize=9)
    labels = [f"{name}\n{len(evaluation.episodes)} episodes" for name, evaluation in evaluations.items()]
    axis.set_yticks(range(len(labels)), labels=labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlabel("episodic return (unclipped)")
    axis.grid(axis="x", alpha=0.25)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=KEPT, alpha=0.45, markersize=4, label="episode"),
        Line2D([], [], marker="D", color=ACCENT, linewidth=2.5, markersize=6, label="mean and its interval"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=8, frameon=False)
    open_frame(axis)
    return _write(figure, path)


def lay_over(grey: NDArray[Any], signed: NDArray[Any]) -> NDArray[Any]:
    """Lay a map over a grey frame; the opacity grows with the relevance's magnitude.

    Parameters
    ----------
    grey : ndarray of float, shape (84, 84)
        In [0, 1].
    signed : ndarray of float, shape (84, 84)
        In [-1, 1].

    Returns
    -------
    ndarray of float, shape (84, 84, 3)
        In [0, 1].
    """
    opacity = 0.8 * np.abs(signed)[..., None]  # below 1, so that the frame's objects stay visible
    colour = SIGNED(np.where(signed < 0, 0.0, 1.0))[..., :3]
    overlaid: NDArray[Any] = (1 - opacity) * grey[..., None] + opacity * colour
    return overlaid


def _array(tensor: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = tensor.detach().float().cpu().numpy()
    return array


def _log_scale(axis: Any) -> None:
    """Make the y axis logarithmic with plain numbers at 1 and 3 of each decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def open_frame(axis: Any) -> None:
    """Draw no line above the data and none to the right of it."""
    axis.spines[["top", "right"]].set_visible(False)


def _write(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
