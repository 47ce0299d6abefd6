"""Pictures of results: learning curves, comparisons of methods and of shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from fastht.tasks.results.figure_style import (
    BLACK,
    BLUE,
    DPI,
    GREEN,
    HELD_OUT_COLOUR,
    ORANGE,
    PALETTE,
    PURPLE,
    SKY,
    SMALL,
    TRAIN_COLOUR,
    VERMILLION,
    Curve,
    draw_epochs,
    new_figure,
    plain,
    shorten,
    tidy,
)
from fastht.tasks.results.shown import Shown

# A method looks the same in all pictures.
METHOD_COLOURS = {
    "frozen": BLACK,
    "lora": PURPLE,
    "mona": SKY,
    "ht-noise": ORANGE,
    "ht-filter": VERMILLION,
    "ht": BLUE,
    "ht-full": GREEN,
}
_MARKERS = "osD^vP*X"
_NAME = 44  # characters of a name beside or below axes


def draw_learning_curves(
    path: Path,
    history: Sequence[Mapping[str, float]],
    monitor: str,
    label: str,
    best_epoch: int | None,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw the training loss and the monitored score over the epochs into a PNG.

    Args:
        path: the PNG.
        history: rows with ``epoch``, ``train_loss`` and the score.
        monitor: the score's key.
        label: the score's name, for the axis.
        best_epoch: marked where given.
        title: heading.
        shown: what the curves are of.
    """
    panels = {
        "training loss": [Curve(None, [row["train_loss"] for row in history], TRAIN_COLOUR)],
        label: [Curve(None, [row[monitor] for row in history], HELD_OUT_COLOUR)],
    }
    draw_epochs(path, [row["epoch"] for row in history], panels, best_epoch, title, shown)


def draw_few_shot(
    path: Path,
    points: Mapping[str, Sequence[tuple[float, float, float]]],
    label: str,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw a score over the share of the training data, a line a method, into a PNG.

    Args:
        path: the PNG.
        points: by method: percentage, mean and standard deviation, in any order. A mean that is
            NaN is not drawn, nor is a standard deviation that is.
        label: of the vertical axis, with the unit of the numbers.
        title: heading.
        shown: what the scores are of.

    Raises:
        ValueError: there is no method, one without points, or a percentage that is not above 0.
    """
    percents = sorted({percent for found in points.values() for percent, _, _ in found})
    if not percents or percents[0] <= 0 or not all(points.values()):
        raise ValueError(f"percentages are {percents}; give some of each method, all above 0")
    figure = new_figure(6.8, 4.6, title, shown)
    axes = figure.subplots()
    # Methods stand a little beside each other, or one's error bars would hide another's.
    step = (percents[-1] / percents[0]) ** 0.008
    colours = _method_colours(list(points))
    for place, (name, found) in enumerate(points.items()):
        x, mean, spread = np.array(sorted(found)).T
        x = x * step ** (place - (len(points) - 1) / 2)
        spread = np.nan_to_num(spread)
        style: dict[str, Any] = {"color": colours[name], "label": plain(shorten(name, _NAME))}
        marker = _MARKERS[place % len(_MARKERS)]
        axes.errorbar(x, mean, spread, marker=marker, markersize=5, capsize=3, **style)
        axes.fill_between(x, mean - spread, mean + spread, color=colours[name], alpha=0.1, lw=0)
    axes.set_xscale("log")
    axes.set_xticks(percents, _tick_labels(percents))
    axes.xaxis.set_minor_locator(NullLocator())
    if len(percents) == 1:
        axes.set_xlim(percents[0] / 2, percents[0] * 2)
    axes.set(xlabel="share of the training data (%)", ylabel=plain(label))
    _start_at_zero(axes)
    tidy(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=SMALL)
    figure.savefig(path, dpi=DPI)


def _start_at_zero(axes: Axes) -> None:
    """Let no axis of scores that are not below 0 go there, nor shrink to a point if all are 0."""
    low, high = axes.dataLim.intervaly
    if low >= 0:
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0), top=None if high > 0 else 1)
        for line in axes.lines:
            line.set_clip_on(False)  # points at 0 are seen whole


def _tick_labels(percents: Sequence[float]) -> list[str]:
    """Return labels of a logarithmic axis, a line lower where they would run into others."""
    width = 0.045 * math.log(percents[-1] / percents[0])  # of a label, on the axis
    ends: list[float] = []  # of the last label in each line
    labels = []
    for percent in percents:
        start = math.log(percent)
        line = next((i for i, end in enumerate(ends) if end <= start), len(ends))
        ends[line : line + 1] = [start + width]
        labels.append("\n" * line + f"{percent:g}")
    return labels


def _method_colours(names: Sequence[str]) -> dict[str, str]:
    """Return the colour of each name: a method's own, and others as long as they last."""
    taken = {METHOD_COLOURS[name] for name in names if name in METHOD_COLOURS}
    free = cycle([colour for colour in PALETTE if colour not in taken] or PALETTE)
    return {name: METHOD_COLOURS.get(name) or next(free) for name in names}


def draw_comparison(
    path: Path,
    scores: Mapping[str, tuple[float, float]],
    label: str,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw a bar a method, with its standard deviation as whisker and its number, into a PNG.

    Args:
        path: the PNG.
        scores: mean and standard deviation by name, from top to bottom; either may be NaN.
        label: of the horizontal axis, with the unit of the numbers.
        title: heading.
        shown: what the scores are of.

    Raises:
        ValueError: there is no score.
    """
    if not scores:
        raise ValueError("no scores to compare; give at least one")
    figure = new_figure(6.8, 1.5 + 0.36 * len(scores), title, shown)
    axes = figure.subplots()
    ends = []
    for place, (mean, spread) in enumerate(scores.values()):
        if math.isnan(mean):
            axes.text(0, place, " not defined", va="center", fontsize=SMALL)
            continue
        axes.barh(place, mean, height=0.7, color=SKY)
        end, text = mean, _number(mean)
        if not math.isnan(spread):
            axes.errorbar(mean, place, xerr=spread, color=BLACK, capsize=3, linewidth=1.2)
            end, text = mean + spread, f"{text} ± {_number(spread, like=mean)}"
        ends.append(end)
        axes.annotate(
            text, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=SMALL
        )
    axes.set(
        xlim=(0, 1.02 * max(ends, default=0) or 1),
        ylim=(len(scores) - 0.4, -0.6),
        xlabel=plain(label),
    )
    axes.set_yticks(range(len(scores)), [plain(shorten(name, _NAME)) for name in scores])
    tidy(axes)
    axes.grid(axis="y", visible=False)
    figure.savefig(path, dpi=DPI)


def _number(value: float, like: float | None = None) -> str:
    """Return a number with three digits, or as many behind the point as another one has."""
    size = abs(value if like is None else like)
    return f"{value:.{1 if size >= 10 else 2 if size >= 1 else 3}f}"
