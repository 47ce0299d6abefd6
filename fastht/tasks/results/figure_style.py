"""How pictures look, and the curves of a training run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastht.tasks.results.shown import Shown

DPI = 150
SMALL, NORMAL, LARGE = 8, 9, 11  # points of fonts
# Okabe and Ito's colour-blind safe colours, but for their yellow, which fades on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
TRAIN_COLOUR, HELD_OUT_COLOUR = BLUE, VERMILLION
FAINT = "0.35"  # of what is said beside the data
_FEW = 30  # epochs up to which each one has a dot


@dataclass(frozen=True)
class Curve:
    """One line over the epochs.

    Attributes:
        label: its name in the legend; ``None`` where the axis says it all.
        values: one an epoch; not drawn where it is NaN.
        colour: of the line.
        style: matplotlib's, e.g. ``"--"``.
    """

    label: str | None
    values: Sequence[float]
    colour: str
    style: str = "-"


def plot_curves(
    history: Sequence[dict[str, float]],
    path: Path,
    *,
    best_epoch: int | None,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw a run's losses and its recall at ten over the epochs into a PNG.

    Args:
        history: rows with ``epoch``, ``train_loss``, ``val_loss`` and recalls in [0, 1].
        path: the PNG.
        best_epoch: marked where given.
        title: heading, e.g. model and data.
        shown: what the curves are of.
    """

    def percent(name: str) -> list[float]:
        return [100 * row[name] for row in history]

    panels = {
        "contrastive loss": [
            Curve("train", [row["train_loss"] for row in history], TRAIN_COLOUR),
            Curve("held out", [row["val_loss"] for row in history], HELD_OUT_COLOUR),
        ],
        "recall@10, held out (%)": [
            Curve("image to text", percent("image_to_text_recall@10"), HELD_OUT_COLOUR),
            Curve("text to image", percent("text_to_image_recall@10"), HELD_OUT_COLOUR, "--"),
        ],
    }
    draw_epochs(path, [row["epoch"] for row in history], panels, best_epoch, title, shown)


def draw_epochs(
    path: Path,
    epochs: Sequence[float],
    panels: Mapping[str, Sequence[Curve]],
    best_epoch: int | None,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw curves over the epochs side by side into a PNG.

    Args:
        path: the PNG.
        epochs: their numbers.
        panels: the curves of each panel by the label of its vertical axis.
        best_epoch: marked where given.
        title: heading.
        shown: what the curves are of.
    """
    figure = new_figure(9.5, 3.8, title, shown)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, curves) in zip(row, panels.items(), strict=True):
        for curve in curves:
            style = {"color": curve.colour, "linestyle": curve.style, "label": curve.label}
            # A line through a single epoch would not be seen.
            axes.plot(epochs, curve.values, marker="." if len(epochs) <= _FEW else "", **style)
        if best_epoch is not None:
            name = f"best: epoch {best_epoch}"
            axes.axvline(best_epoch, color="0.45", linewidth=1, linestyle=":", label=name)
            for curve in curves:
                for epoch, value in zip(epochs, curve.values, strict=True):
                    if epoch == best_epoch:
                        ring = {"markerfacecolor": "none", "markersize": 9}
                        axes.plot([epoch], [value], "o", color=curve.colour, **ring)
        axes.set(xlabel="epoch", ylabel=plain(label))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axes)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=SMALL)
    figure.savefig(path, dpi=DPI)


def new_figure(width: float, height: float, title: str, shown: Shown | None = None) -> Figure:
    """Return an empty figure; pyplot and its state are left alone.

    Args:
        width: in inches.
        height: in inches.
        title: the heading.
        shown: what the picture is of, which a line at its foot says.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    characters = int(11 * width)  # of the heading's font, in a line
    figure.suptitle(plain(textwrap.fill(title, characters)), fontsize=LARGE)
    if shown is not None and (sentence := shown.sentence()):
        foot = textwrap.wrap(sentence, int(15 * width))
        left, line = 0.08 / width, 1.35 * SMALL / 72 / height
        figure.text(
            left, 0.06 / height, plain("\n".join(foot)), va="bottom", fontsize=SMALL, color=FAINT
        )
        bottom = 0.1 / height + line * len(foot)
        layout: Any = figure.get_layout_engine()
        layout.set(rect=(0, bottom, 1, 1 - bottom))
    return figure


def legend_below(figure: Figure, **options: Any) -> None:
    """Put a figure's legend below its axes, where it hides nothing, and above its foot."""
    layout: Any = figure.get_layout_engine()
    _, bottom, _, _ = layout.get()["rect"] or (0, 0, 1, 1)
    options |= {"loc": "lower center", "bbox_to_anchor": (0.5, bottom), "frameon": False}
    legend = figure.legend(**options)
    legend.set_in_layout(False)
    top = legend.get_window_extent().y1 / figure.bbox.height
    layout.set(rect=(0, top, 1, 1 - top))


def tidy(axes: Axes) -> None:
    """Leave the two spines that carry numbers, and a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """Return text whose dollars matplotlib does not take for formulas."""
    return text.replace("$", r"\$")


def shorten(text: str, characters: int) -> str:
    """Return text of at most that many characters, cut in its middle: both ends tell most."""
    if len(text) <= characters:
        return text
    front = (characters - 1) // 2
    return f"{text[:front]}…{text[front + 1 - characters :]}"
