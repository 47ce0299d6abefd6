"""A picture of scores by the wording of prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastht.tasks.results.figure_style import (
    DPI,
    PALETTE,
    SMALL,
    legend_below,
    new_figure,
    plain,
    tidy,
)
from fastht.tasks.results.shown import Shown

_MARKERS = "sovD"


@dataclass(frozen=True)
class DrawnVariant:
    """A row of the picture.

    Attributes:
        name: beside the row.
        scores: value and the ends of its interval by what the model's version is called; ends that
            are NaN are not drawn.
        seen: whether a wording trained, which a star tells.
    """

    name: str
    scores: Mapping[str, tuple[float, float, float]]
    seen: bool = False


def draw_prompts(
    path: Path,
    variants: Sequence[DrawnVariant],
    label: str,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw a score by each variant of the prompts, a row each, the first one as a line, into a PNG.

    Args:
        path: the PNG.
        variants: rows from above; the first one is that of all prompts.
        label: of the axis, with the unit.
        title: heading.
        shown: what is scored.
    """
    figure = new_figure(7.0, 1.6 + 0.24 * len(variants), title, shown)
    axes = figure.subplots()
    versions = list(variants[0].scores)
    for place, version in enumerate(versions):
        colour = PALETTE[place % len(PALETTE)]
        offset = 0.18 * (place - (len(versions) - 1) / 2)
        axes.axvline(variants[0].scores[version][0], color=colour, linewidth=0.8, linestyle=":")
        values = [variant.scores[version] for variant in variants]
        rows = [row + offset for row in range(len(variants))]
        for row, (_, low, high) in zip(rows, values, strict=True):
            if not math.isnan(low + high):
                axes.plot([low, high], [row, row], color=colour, linewidth=1, alpha=0.6)
        points = [value for value, _, _ in values]
        axes.plot(
            points, rows, _MARKERS[place % len(_MARKERS)], color=colour, markersize=4, label=version
        )
    names = [f"{variant.name}{' *' if variant.seen else ''}" for variant in variants]
    axes.set_yticks(range(len(variants)), [plain(name) for name in names], fontsize=SMALL)
    axes.invert_yaxis()
    star = "\n* wording seen in training" if any(variant.seen for variant in variants) else ""
    axes.set_xlabel(plain(f"{label}{star}"))
    tidy(axes)
    if len(versions) > 1:
        legend_below(figure, ncols=len(versions), fontsize=SMALL)
    figure.savefig(path, dpi=DPI)
