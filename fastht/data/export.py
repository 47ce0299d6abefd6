"""``fastht data export``: a data set of any layout as one table that every command reads."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from fastht.data.cases import Case, CaseSet, Need, is_inside, read_inside, split_part
from fastht.data.images import DataError
from fastht.data.masks import read_mask
from fastht.data.source import DataSource
from fastht.data.values import JOIN
from fastht.data.volumes import is_volume
from fastht.files import make_directory, write_atomically

TABLE_NAME = "table.csv"
_COLUMNS = ("filepath", "mask", "title", "label", "patient", "split", "origin", "frame")
_KINDS = {
    "PNG": ".png",
    "JPEG": ".jpg",
    "TIFF": ".tif",
    "BMP": ".bmp",
    "WEBP": ".webp",
    "GIF": ".gif",
}


@dataclass(frozen=True)
class ExportArguments(DataSource):
    """Write a data set of any layout as one table: image, mask, caption, label, patient, split.

    Tags and keys of groups have columns of their own names, several tags joined by ";". Images stay
    where they are, apart from those inside Parquet and zip files, which are written beside the
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
        cases = with_masks(arguments, found)
    return write_cases(arguments.out, replace(found, cases=cases, unusable=tuple(unusable)))


def write_cases(out: Path, found: CaseSet) -> int:
    """Write the table of a set into a folder and tell of it; return the exit status.

    Raises DataError if no image can be used, or a column of tags has a name of another.
    """
    rows, unusable = [], list(found.unusable)
    several = dict.fromkeys(name for case in found for name, _ in (*case.tags, *case.groups))
    if taken := [name for name in several if name in _COLUMNS]:
        what = f"tags or keys in {', '.join(taken)}, which the table has already"
        raise DataError(f"{found.source}: {what}; rename the column")
    make_directory(out)
    for case in tqdm(found.cases, desc="writing", unit="image", leave=False):
        try:
            rows.append(_row(case, out))
        except DataError as error:
            unusable.append(str(error))
    if not rows:
        raise DataError(f"{found.source}: no image can be used; {unusable[0]}")
    used = [c for c in (*_COLUMNS, *several) if any(row.get(c) for row in rows)]
    table = out / TABLE_NAME
    write_atomically(table, _csv(used, rows))
    print(found.account())
    filled = Counter(column for row in rows for column in used if row.get(column))
    columns = ", ".join(f"{column} {filled[column]:,}" for column in used)
    print(f"{len(rows):,} rows, filled: {columns}\n{table}")
    if unusable:
        print(f"{len(unusable):,} images left out:")
        print(*(f"  {what}" for what in unusable), sep="\n")
    return 1 if unusable else 0


def _csv(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def with_masks(arguments: DataSource, found: CaseSet) -> tuple[Case, ...]:
    """The cases with the masks that the set has for them, if it has any."""
    try:
        masked = arguments.load("segment", leave_out=True)
    except DataError:
        return found.cases  # has none, as was not asked for
    masks = {case.image: case.masks for case in masked}
    # Those of this reading, since a case of the other may lack its label.
    return tuple(replace(case, masks=masks.get(case.image, ())) for case in found)


def _row(case: Case, out: Path) -> dict[str, str]:
    """The cells of a case; draws and writes what is in no file of its own."""
    path, part = split_part(case.image)
    if is_inside(case.image):
        path = str(_write_inside(case, out / "images"))
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
        **{name: JOIN.join(values) for name, values in (*case.tags, *case.groups)},
    }


def _write_inside(case: Case, folder: Path) -> Path:
    content = read_inside(case.image)
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
