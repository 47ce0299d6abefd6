"""``fastht data export``: a data set of any layout as one table that every command reads."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastht.data.cases import Case, CaseSet, Need, split_part
from fastht.data.images import DataError
from fastht.data.masks import read_mask
from fastht.data.parquet import is_cell, read_cell
from fastht.data.source import DataSource
from fastht.data.volumes import is_volume
from fastht.files import make_directory, write_atomically

TABLE_NAME = "table.csv"
_COLUMNS = ("filepath", "mask", "title", "label", "patient", "split", "origin", "frame")
_KINDS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp"}


@dataclass(frozen=True)
class ExportArguments(DataSource):
    """Write a data set of any layout as one table: image, mask, caption, label, patient, split.

    Images stay where they are, apart from those inside Parquet files, which are written beside the
    table as they are. Masks are drawn as PNG where they are outlines or several. Images that cannot
    be used are left out and told of.

    Attributes:
        task: what has to be there: masks (segment), labels (classify), captions (pairs) or
            nothing (image). What else is there is written too.
        out: folder of the table and of what is drawn.
    """

    task: Need = "image"
    out: Path = Path("runs/export")


def export(arguments: ExportArguments) -> int:
    """Write the table; return the exit status, 1 if some images cannot be used.

    Raises DataError if the set cannot be read, or the folder holds an export already.
    """
    table = arguments.out / TABLE_NAME
    if arguments.data == "sample":
        raise DataError("the sample is a table already, as every command reads it by its name")
    if table.exists():
        raise DataError(f"{table} is there already; give another --out")
    found = arguments.load(arguments.task, leave_out=True)
    cases, unusable = found.cases, list(found.unusable)
    if arguments.task != "segment":
        cases = _with_masks(arguments, found)
    make_directory(arguments.out)
    rows = []
    for case in tqdm(cases, desc="writing", unit="image", leave=False):
        try:
            rows.append(_row(case, arguments.out))
        except DataError as error:
            unusable.append(str(error))
    if not rows:
        raise DataError(f"{found.source}: no image can be used; {unusable[0]}")
    used = [c for c in _COLUMNS if any(row[c] for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, used, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(table, text.getvalue().encode())
    print(found.describe())
    filled = Counter(column for row in rows for column in used if row[column])
    columns = ", ".join(f"{column} {filled[column]:,}" for column in used)
    print(f"{len(rows):,} rows, filled: {columns}\n{table}")
    if unusable:
        print(f"{len(unusable):,} images left out:")
        print(*(f"  {what}" for what in unusable), sep="\n")
    return 1 if unusable else 0


def _with_masks(arguments: ExportArguments, found: CaseSet) -> tuple[Case, ...]:
    """The cases with the masks that the set has for them, if it has any."""
    try:
        masked = arguments.load("segment", leave_out=True)
    except DataError:
        return found.cases  # has none, as was not asked for
    masks = {case.image: case.masks for case in masked}
    # Not replace: a case of the other reading may lack its label.
    return tuple(
        Case(
            case.name,
            case.image,
            masks.get(case.image, ()),
            case.label,
            case.patient,
            case.caption,
            case.split,
            case.origin,
        )
        for case in found
    )


def _row(case: Case, out: Path) -> dict[str, str]:
    """The cells of a case; draws and writes what is in no file of its own."""
    path, part = split_part(case.image)
    if is_cell(case.image):
        path = str(_write_cell(case, out / "images"))
    elif is_volume(path):
        raise DataError(f"{case.image}: slices of volumes are not exported; use the layout itself")
    mask = ""
    if case.masks:
        plain = len(case.masks) == 1 and Path(case.masks[0]).suffix.lower() in (".png", ".bmp")
        mask = case.masks[0] if plain else str(_write_mask(case, out / "masks"))
    return {
        "filepath": _relative(path, out),
        "mask": _relative(mask, out) if mask else "",
        "title": case.caption,
        "label": case.label or "",
        "patient": case.patient or "",
        "split": case.split or "",
        "origin": case.origin or "",
        "frame": part or "",
    }


def _write_cell(case: Case, folder: Path) -> Path:
    content = read_cell(case.image)
    try:
        with Image.open(io.BytesIO(content), formats=tuple(_KINDS)) as image:
            suffix = _KINDS[str(image.format)]
    except (OSError, KeyError):
        raise DataError(f"{case.image}: not an image that can be read; take it out") from None
    make_directory(folder)
    path = folder / f"{case.name}{suffix}"
    path.write_bytes(content)
    return path


def _write_mask(case: Case, folder: Path) -> Path:
    make_directory(folder)
    path = folder / f"{case.name}.png"
    Image.fromarray(read_mask(case) * np.uint8(255)).save(path)
    return path


def _relative(path: str, out: Path) -> str:
    """A path from the table's folder, as tables name files."""
    return Path(os.path.relpath(path, out)).as_posix()
