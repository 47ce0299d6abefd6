"""Pictures of a joint space: how near matched and unmatched pairs lie, and where both towers do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from torch import Tensor

from fastht.tasks.results.figure_style import (
    BLUE,
    DPI,
    FAINT,
    SMALL,
    VERMILLION,
    new_figure,
    tidy,
)
from fastht.tasks.results.shown import Shown

_BINS = 80
_QUERIES = 1000  # images whose unmatched texts are drawn
_POINTS = 400  # pairs of the joint space


def draw_alignment(
    path: Path,
    versions: Mapping[str, tuple[Tensor, Tensor]],
    captions: Tensor,
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw the cosines of pairs and the joint space's first two principal axes into a PNG.

    Args:
        path: the PNG.
        versions: image and text embeddings ``[n, E]``, normalised, row i of both a pair, by what
            a row of the picture is called.
        captions: ``[n]``, equal where captions are: such texts are no unmatched ones.
        title: heading.
        shown: what is embedded.
    """
    figure = new_figure(9.5, 0.6 + 3.4 * len(versions), title, shown)
    grid = figure.subplots(len(versions), 2, squeeze=False)
    for (name, (images, texts)), (left, right) in zip(versions.items(), grid, strict=True):
        _draw_cosines(left, images.double(), texts.double(), captions)
        left.set_title(name, loc="left", fontsize=SMALL)
        _draw_space(right, images.double(), texts.double())
    figure.savefig(path, dpi=DPI)


def _draw_cosines(axes: Axes, images: Tensor, texts: Tensor, captions: Tensor) -> None:
    rows = _spaced(len(images), _QUERIES)
    cosines = images[rows] @ texts.T
    unmatched = cosines[captions[rows, None] != captions]
    paired = (images * texts).sum(dim=1)
    ends = (float(cosines.min()), float(max(cosines.max(), paired.max())))
    edges = np.linspace(ends[0], max(ends[1], ends[0] + 1e-6), _BINS + 1)
    for values, colour, label in ((unmatched, VERMILLION, "unmatched"), (paired, BLUE, "paired")):
        if not len(values):
            continue
        mean = values.mean().item()
        axes.hist(
            values.numpy(),
            bins=edges.tolist(),
            density=True,
            color=colour,
            alpha=0.45,
            label=f"{label}, mean {mean:.3f}",
        )
        axes.axvline(mean, color=colour, linewidth=1)
    axes.set(xlabel="cosine of image and text", ylabel="density")
    tidy(axes)
    axes.legend(frameon=False, fontsize=SMALL)


def _draw_space(axes: Axes, images: Tensor, texts: Tensor) -> None:
    both = torch.cat([images, texts])
    centred = both - both.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes_of_space = vectors[:, [-1, -2]]
    # The sign of an axis is arbitrary: its largest component is made positive, the same each time.
    largest = axes_of_space.abs().argmax(dim=0)
    axes_of_space = axes_of_space * axes_of_space[largest, [0, 1]].sign()
    places = centred @ axes_of_space
    share = (values[[-1, -2]] / values.clamp_min(0).sum().clamp_min(1e-30) * 100).tolist()
    rows = _spaced(len(images), _POINTS)
    seen, read = places[rows].numpy(), places[rows + len(images)].numpy()
    lines = LineCollection(list(np.stack([seen, read], axis=1)), colors=FAINT, linewidths=0.3)
    lines.set_alpha(0.4)
    axes.add_collection(lines)
    axes.plot(*seen.T, "o", color=BLUE, markersize=3, alpha=0.7, label="images")
    axes.plot(*read.T, "x", color=VERMILLION, markersize=4, alpha=0.7, label="texts")
    part = "" if len(rows) == len(images) else f" ({len(rows):,} of {len(images):,} pairs)"
    axes.set(
        xlabel=f"first principal axis, {share[0]:.0f} % of the variance{part}",
        ylabel=f"second, {share[1]:.0f} %",
    )
    tidy(axes)
    axes.legend(frameon=False, fontsize=SMALL)


def _spaced(count: int, most: int) -> Tensor:
    """Return at most so many row numbers, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()
