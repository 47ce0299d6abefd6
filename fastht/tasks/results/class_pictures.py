"""Pictures of classification: ROC curves, confusion matrices, reliability curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from fastht.tasks.results.figure_style import (
    BLUE,
    DPI,
    FAINT,
    NORMAL,
    PALETTE,
    SMALL,
    VERMILLION,
    legend_below,
    new_figure,
    plain,
    shorten,
    tidy,
)
from fastht.tasks.results.shown import Shown

Rates = tuple[Tensor, Tensor]
RAW_COLOUR, CALIBRATED_COLOUR = BLUE, VERMILLION
_NAME = 30  # characters of a name in a legend or beside axes
_SHORT = 16  # characters of names that leave room for two columns in a legend
_CHANCE: dict[str, Any] = {"color": "0.55", "linewidth": 1, "linestyle": ":"}
_ON_DIAGONAL: dict[str, Any] = {
    "ha": "center",
    "va": "center",
    "rotation": 45,
    "rotation_mode": "anchor",
    "color": "0.45",
    "fontsize": SMALL,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
}
_READABLE = 16  # classes up to which cells of a confusion matrix hold numbers


def draw_roc(
    path: Path,
    curves: Mapping[str, Mapping[str, Rates]],
    areas: Mapping[str, Mapping[str, float]],
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw ROC curves of each class against the rest into a PNG, a colour a class.

    Args:
        path: the PNG.
        curves: by the name of the model's version, one or two, false and true positive rates,
            ``[n]`` each, by the name of the class. Of two versions the first is dashed.
        areas: likewise the area under each curve. Names without curve are listed.
        title: heading.
        shown: what the curves are of.
    """
    names = list(dict.fromkeys(name for found in areas.values() for name in found))
    colours = dict(zip(names, _colours(len(names)), strict=True))
    # A column a version, if the names leave room for it.
    columns = len(areas) if max(map(len, names), default=0) <= _SHORT else 1
    lines = len(names) * len(areas) / columns
    figure = new_figure(5.6, 5.4 + 0.17 * lines, title, shown)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], **_CHANCE)
    axes.text(0.5, 0.47, "chance", **_ON_DIAGONAL)
    styles = ("--", "-") if len(areas) > 1 else ("-",)
    for version, style in zip(areas, styles, strict=True):
        suffix = f", {version}" if len(areas) > 1 else ""
        for name, area in areas[version].items():
            label = f"{plain(shorten(name, _NAME))}{suffix}"
            rates = curves[version].get(name)
            if rates is None:
                axes.plot([], [], linestyle="none", label=f"{label}: no curve")
                continue
            value = "not defined" if math.isnan(area) else f"{area:.3f}"
            line: dict[str, Any] = {"color": colours[name], "linestyle": style}
            line |= {"linewidth": 1.8 if style == "-" else 1.5, "label": f"{label} (AUC {value})"}
            axes.plot(*(values.numpy() for values in rates), **line)
    if not any(curves.values()):
        text = "no curve: each needs images\nof its class and others"
        axes.text(0.3, 0.8, text, ha="center", va="center", fontsize=NORMAL)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    tidy(axes)
    # Below the axes it hides no curve, however many there are.
    legend_below(figure, ncols=columns, fontsize=SMALL)
    figure.savefig(path, dpi=DPI)


def draw_confusion(
    path: Path,
    matrices: Mapping[str, Tensor],
    classes: Sequence[str],
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw confusion matrices side by side into a PNG: counts, and shares of their rows.

    Args:
        path: the PNG.
        matrices: numbers of images ``[true, predicted]`` by the name of the model's version.
        classes: their names.
        title: heading.
        shown: what the matrices are of.
    """
    side = max(2.2, (0.72 if len(classes) <= _READABLE else 0.3) * len(classes))
    names = [plain(shorten(name, _NAME)) for name in classes]
    longest = max(map(len, names))
    width = len(matrices) * (side + 0.3) + 1.7 + 0.07 * longest
    figure = new_figure(max(4.6, width), side + 1.5 + 0.055 * longest, title, shown)
    row = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
    picture: Any = None
    for axes, (version, matrix) in zip(row, matrices.items(), strict=True):
        totals = matrix.sum(1, keepdim=True)
        shares = (matrix / totals).numpy()  # NaN where no image is of the class
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(classes) <= _READABLE:
            _write_cells(axes, matrix.numpy(), shares)
        axes.set_xticks(range(len(classes)), names, rotation=40, ha="right", rotation_mode="anchor")
        rows = [f"{n} ({int(t):,})" for n, t in zip(names, totals[:, 0], strict=True)]
        axes.set_yticks(range(len(classes)), rows)
        axes.tick_params(labelsize=SMALL, length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted", fontsize=NORMAL)
        if len(matrices) > 1:
            axes.set_title(plain(version), fontsize=NORMAL)
    row[0].set_ylabel("true (images)", fontsize=NORMAL)
    bar = figure.colorbar(picture, ax=list(row), shrink=0.8, format=PercentFormatter(1, decimals=0))
    bar.set_label("share of the true class", fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
    figure.savefig(path, dpi=DPI)


def _write_cells(axes: Axes, counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> None:
    for (y, x), count in np.ndenumerate(counts):
        share = shares[y, x]
        text = "none" if math.isnan(share) else f"{count:,}\n{100 * share:.0f} %"
        colour = "white" if share > 0.55 else "black"
        axes.text(x, y, text, ha="center", va="center", fontsize=SMALL, color=colour)


@dataclass(frozen=True)
class ReliabilityCurve:
    """Confidence against accuracy.

    Attributes:
        confidence: mean probability of the predicted class in each bin.
        accuracy: share of right predictions in each bin.
        all_confidences: of every image, for the histogram.
        ece: the expected calibration error.
    """

    confidence: Sequence[float]
    accuracy: Sequence[float]
    all_confidences: Sequence[float]
    ece: float


@dataclass(frozen=True)
class ReliabilityPanel:
    """The reliability of one version of a model.

    Attributes:
        name: of the version.
        raw: as the model is.
        calibrated: after the temperature; ``None`` without one.
        temperature: likewise.
        note: what the temperature was fitted on, or why there is none.
    """

    name: str
    raw: ReliabilityCurve
    calibrated: ReliabilityCurve | None
    temperature: float | None
    note: str


def draw_reliability(
    path: Path, panels: Sequence[ReliabilityPanel], title: str, shown: Shown | None = None
) -> None:
    """Draw reliability curves, and under each one how often which confidence occurs, into a PNG.

    Args:
        path: the PNG.
        panels: one for each version of the model, side by side.
        title: heading.
        shown: what the curves are of.
    """
    figure = new_figure(max(4.8, 4.2 * len(panels)), 6.2, title, shown)
    grid = figure.subplots(
        2, len(panels), squeeze=False, sharex=True, sharey="row", height_ratios=[3, 1]
    )
    for column, panel in enumerate(panels):
        upper, lower = grid[:, column]
        upper.plot([0, 1], [0, 1], **_CHANCE)
        upper.text(0.2, 0.17, "as sure as right", **_ON_DIAGONAL)
        drawn = [(panel.raw, RAW_COLOUR, "o-", "as it is")]
        if panel.calibrated is not None:
            name = f"temperature {panel.temperature:.3g}"
            drawn.append((panel.calibrated, CALIBRATED_COLOUR, "s--", name))
        for curve, colour, style, name in drawn:
            label = f"{name}: ECE {curve.ece:.3f}, {_bins(curve)}"
            upper.plot(
                curve.confidence, curve.accuracy, style, color=colour, markersize=4, label=label
            )
            share = np.full(len(curve.all_confidences), 1 / len(curve.all_confidences))
            line: dict[str, Any] = {"color": colour, "linestyle": style[1:], "linewidth": 1.3}
            lower.hist(
                curve.all_confidences, np.linspace(0, 1, 21), weights=share, histtype="step", **line
            )
        upper.set(xlim=(0, 1.01), ylim=(-0.02, 1.02))
        lower.set_xlabel("confidence: probability of the predicted class", fontsize=NORMAL)
        for axes in (upper, lower):
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            tidy(axes)
        upper.legend(frameon=False, fontsize=SMALL, loc="upper left")
        heading = panel.name if len(panels) > 1 else ""
        note = textwrap.fill(panel.note, 60)
        upper.set_title(plain(f"{heading}\n{note}".strip()), fontsize=SMALL, color=FAINT)
    grid[0, 0].set_ylabel("accuracy in the bin", fontsize=NORMAL)
    grid[1, 0].set_ylabel("images", fontsize=NORMAL)
    figure.savefig(path, dpi=DPI)


def _bins(curve: ReliabilityCurve) -> str:
    count = len(curve.confidence)
    return f"{count} bin{'' if count == 1 else 's'}"


def _colours(count: int) -> list[Any]:
    """Return different colours: the palette's, or where they do not suffice those of a map."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    return list(matplotlib.colormaps["turbo"](np.linspace(0.02, 0.95, count)))
