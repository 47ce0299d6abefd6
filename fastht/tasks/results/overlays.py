"""A contact sheet: images with the outlines of true and predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from torch import Tensor

from fastht.tasks.results.figure_style import (
    DPI,
    ORANGE,
    SKY,
    SMALL,
    legend_below,
    new_figure,
    plain,
    shorten,
)
from fastht.tasks.results.shown import Shown

# Light ones, as most of an ultrasound image is dark; the thin line leaves the thick one's rim free.
TRUTH_COLOUR, PREDICTION_COLOUR = SKY, ORANGE
TRUTH_WIDTH, PREDICTION_WIDTH = 2.6, 1.2
_PANEL = 2.2  # inches: width of an image
_TALLEST = 1.25  # height of a panel over its width; taller images are drawn narrower


@dataclass(frozen=True)
class Overlay:
    """One image of a contact sheet.

    Attributes:
        name: its name.
        image: uint8 ``[3, H, W]``.
        truth: ``[H, W]``, 0 or 1.
        prediction: ``[H, W]``, 0 or 1.
        dice: of the two masks.
    """

    name: str
    image: Tensor
    truth: Tensor
    prediction: Tensor
    dice: float


def draw_overlays(
    path: Path,
    items: Sequence[Overlay],
    title: str,
    columns: int = 4,
    shown: Shown | None = None,
) -> None:
    """Draw images with the outlines of true and predicted masks into one PNG.

    Args:
        path: the PNG.
        items: the images, of any sizes, row by row, each in its own shape.
        title: heading.
        columns: images in a row.
        shown: what the images are of.

    Raises:
        ValueError: there is no image, or a mask has another size than its image.
    """
    if not items:
        raise ValueError("no images for a contact sheet; give at least one")
    for item in items:
        size = tuple(item.image.shape[1:])
        for name, mask in (("truth", item.truth), ("prediction", item.prediction)):
            if tuple(mask.shape) != size:
                what = f"{name} is {tuple(mask.shape)} and the image {size}"
                raise ValueError(f"{item.name}: {what} pixels; resize one of them")
    columns = min(columns, len(items))
    shapes = [item.image.shape[1] / item.image.shape[2] for item in items]
    starts = range(0, len(items), columns)
    tallest = [min(_TALLEST, max(shapes[start : start + columns])) for start in starts]
    height = (
        sum(_PANEL * shape + 0.35 for shape in tallest) + 0.95
    )  # captions; heading, legend, foot
    figure = new_figure(max(4.4, columns * _PANEL), height, title, shown)
    grid = figure.subplots(len(tallest), columns, squeeze=False, height_ratios=tallest)
    places = list(grid.flat)
    for axes, item in zip(places, items, strict=False):
        _overlay(axes, item)
    for axes in places[len(items) :]:
        axes.set_axis_off()
    outlines = {
        "truth": (TRUTH_COLOUR, TRUTH_WIDTH),
        "prediction": (PREDICTION_COLOUR, PREDICTION_WIDTH),
    }
    handles = [
        Line2D([], [], color=colour, linewidth=width, label=name)
        for name, (colour, width) in outlines.items()
    ]
    legend_below(figure, handles=handles, ncols=2)
    figure.savefig(path, dpi=DPI)


def _overlay(axes: Axes, item: Overlay) -> None:
    axes.imshow(item.image.permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.set_anchor("S")  # captions of a row stand in a line
    empty = []
    for name, mask, colour, width in (
        ("truth", item.truth, TRUTH_COLOUR, TRUTH_WIDTH),
        ("prediction", item.prediction, PREDICTION_COLOUR, PREDICTION_WIDTH),
    ):
        if not mask.any():
            empty.append(f", {name} empty")
            continue
        # The rim of zeros closes the outline of a mask that touches the image's border.
        padded = np.pad((mask != 0).numpy().astype(np.float32), 1)
        ys, xs = (np.arange(size) - 1 for size in padded.shape)
        axes.contour(xs, ys, padded, levels=[0.5], colors=[colour], linewidths=width)
    caption = f"{plain(shorten(item.name, 30))}\nDice {item.dice:.3f}{''.join(empty)}"
    axes.set_title(caption, y=0, pad=-4, va="top", fontsize=SMALL)
