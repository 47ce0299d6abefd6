"""A contact sheet of pairs of images, side by side."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from fastht.data.cases import Case
from fastht.data.overlap.fingerprints import read_item
from fastht.files import write_atomically

_PANEL = 240  # pixels: side of the square that an image is fitted into
_TEXT = 46  # height of the lines below
_GAP = 12
_COLUMNS = 2
_LONGEST = 38  # characters of a name, its end


def draw_pairs(path: Path, pairs: Sequence[tuple[Case, Case, str]]) -> None:
    """Draw pairs with their names and what is said of them into one PNG.

    Raises DataError if an image cannot be read, OSError if the PNG cannot be written.
    """
    rows = -(-len(pairs) // _COLUMNS)
    width, height = 2 * _PANEL + 2 * _GAP, _PANEL + _TEXT + _GAP
    sheet = Image.new("RGB", (_COLUMNS * width + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    for number, (first, second, text) in enumerate(pairs):
        x = _GAP + number % _COLUMNS * width
        y = _GAP + number // _COLUMNS * height
        for place, case in enumerate((first, second)):
            image = ImageOps.contain(read_item(case)[1], (_PANEL, _PANEL))
            left = x + place * (_PANEL + _GAP // 2)
            corner = (left + (_PANEL - image.width) // 2, y + (_PANEL - image.height) // 2)
            sheet.paste(image, corner)
            pen.text((left, y + _PANEL + 2), _end(case), fill="black", font=font)
        pen.text((x, y + _PANEL + 18), text, fill="#b04000", font=font)
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    write_atomically(path, stream.getvalue())


def _end(case: Case) -> str:
    name = case.image if len(case.image) <= _LONGEST else f"…{case.image[1 - _LONGEST :]}"
    return f"{name} ({case.split})" if case.split else name
