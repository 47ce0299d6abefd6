"""Outlines as points: annotation files of the thyroid set DDTI, and JSON files of one outline."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from fastht.data.documents import read_json
from fastht.data.images import DataError

Outline = tuple[tuple[float, float], ...]  # x, y of the corners, in pixels


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one file says about the images of one patient."""

    number: str | None
    tirads: str | None
    outlines: dict[str, tuple[Outline, ...]]  # by the number of the image


def read_annotation(path: str) -> Annotation:
    """Read an annotation file.

    Outlines of fewer than three points enclose nothing and are left out.

    Raises DataError if the file is missing, not XML, or holds outlines that are not JSON.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter by encodings
        raise DataError(f"{path}: not XML ({error}); correct it or copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    outlines: dict[str, tuple[Outline, ...]] = defaultdict(tuple)
    for mark in root.iter("mark"):
        image = _text(mark, "image")
        if image is not None:
            outlines[image] += _parse_outlines(_text(mark, "svg") or "[]", f"{path}, image {image}")
    return Annotation(_text(root, "number"), _text(root, "tirads"), dict(outlines))


def draw_outlines(path: str, image: str, size: tuple[int, int]) -> np.ndarray:
    """The inside of an image's outlines, uint8 [height, width] of {0, 1}.

    size: width and height of the image. Raises DataError as read_annotation.
    """
    canvas = Image.new("L", size)
    pen = ImageDraw.Draw(canvas)
    for outline in read_annotation(path).outlines.get(image, ()):
        pen.polygon(outline, fill=1)
    return np.asarray(canvas)


def draw_outline(path: str, size: tuple[int, int]) -> np.ndarray:
    """The inside of the outline in a JSON file, [[x, y], ...], uint8 [height, width] of {0, 1}.

    size: width and height of the image. Raises DataError if the file is missing, not of that form,
    or has fewer than three points, which enclose nothing.
    """
    points = read_json(Path(path))
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(type(v) in (int, float) for v in point)
        for point in points
    ):
        raise DataError(f"{path}: not an outline [[x, y], ...]; export it again")
    if len(points) < 3:
        raise DataError(f"{path}: an outline of {len(points)} points encloses nothing; remove it")
    canvas = Image.new("L", size)
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=1)
    return np.asarray(canvas)


def _parse_outlines(svg: str, where: str) -> tuple[Outline, ...]:
    """The outlines of one mark: [{"points": [{"x": 1, "y": 2}, ...], ...}, ...]."""
    try:
        shapes = json.loads(svg)
        outlines = tuple(
            tuple((float(point["x"]), float(point["y"])) for point in shape["points"])
            for shape in shapes
        )
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: the outlines are not JSON ({error}); correct them") from None
    except (KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: the outlines lack points ({what}); correct them") from None
    return tuple(outline for outline in outlines if len(outline) >= 3)


def _text(element: ElementTree.Element, tag: str) -> str | None:
    """The text of a child, stripped; None if it is missing or empty."""
    return (element.findtext(tag) or "").strip() or None
