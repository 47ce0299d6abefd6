"""Pictures of what texts find: the nearest images in a row, the right ones framed."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fastht.tasks.results.figure_style import DPI, GREEN, NORMAL, SMALL, new_figure, plain, shorten
from fastht.tasks.results.shown import Shown

_WRONG = "0.75"
_LINE, _LINES = 115, 2  # characters and lines above a row


@dataclass(frozen=True)
class Found:
    """An image that a text found.

    Attributes:
        image: as people see it.
        similarity: cosine to the text.
        right: whether the text is its own; ``None`` where that is not known.
    """

    image: Image.Image
    similarity: float
    right: bool | None = None


def draw_found(
    path: Path,
    rows: Sequence[tuple[str, Sequence[Found]]],
    title: str,
    shown: Shown | None = None,
) -> None:
    """Draw texts with the images that they found into a PNG.

    Args:
        path: the PNG.
        rows: each text with its images, the nearest first.
        title: heading.
        shown: what is searched.

    Raises:
        ValueError: there is no row, or one without images.
    """
    if not rows or not all(found for _, found in rows):
        raise ValueError("there is nothing to draw; give texts, each with its images")
    columns = max(len(found) for _, found in rows)
    judged = any(item.right is not None for _, found in rows for item in found)
    heading = f"{title} (right ones framed in green)" if judged else title
    figure = new_figure(max(7.2, 1.8 * columns), 0.7 + 2.2 * len(rows), heading, shown)
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (text, found) in zip(parts, rows, strict=True):
        caption = textwrap.fill(shorten(text, _LINES * _LINE - 20), _LINE)
        part.suptitle(plain(caption), fontsize=NORMAL, x=0.01, ha="left")
        for axes, item in zip(part.subplots(1, columns, squeeze=False)[0], found, strict=False):
            axes.imshow(item.image)
            axes.set_xlabel(f"{item.similarity:.2f}", fontsize=SMALL)
            for spine in axes.spines.values():
                spine.set(color=GREEN if item.right else _WRONG, linewidth=4 if item.right else 1)
        for axes in part.axes:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(bool(axes.images))
    figure.savefig(path, dpi=DPI)
