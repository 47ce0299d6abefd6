"""A table with a row for each image; the embedded sample is one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePath

from fastht.data.cases import Case, Need, Reading, side_of
from fastht.data.columns import Cells, find_column, find_split, note_columns
from fastht.data.images import DataError
from fastht.data.notes import shorten
from fastht.data.tables import parse_frame, read_table, spellings
from fastht.data.values import parse_key, read_values, require_columns

_IMAGE_KEYS = ("filepath", "filename", "image")
_CAPTION_KEYS = ("title", "Caption", "caption")


def fits(root: Path) -> bool:
    """Whether the path looks like this layout."""
    return root.is_file() and root.suffix.lower() in (".csv", ".tsv", ".txt")


def sample_path() -> Path:
    """The table of the embedded sample."""
    return Path(str(resources.files("fastht.data") / "sample" / "sample.csv"))


def read(
    root: Path,
    task: Need,
    *,
    separator: str | None = None,
    image_key: str | None = None,
    caption_key: str | None = None,
    label_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    frame_key: str | None = None,
    tag_keys: Sequence[str] = (),
    group_keys: Sequence[str] = (),
) -> Reading:
    """Read the cases of a table; paths are relative to it.

    Columns: filepath (or filename, image); mask, label, patient, split, frame and title (or
    caption) if they are there.

    separator: of the columns; None finds it out.
    image_key, caption_key: names of columns; None takes those above.
    label_key, patient_key, frame_key: names of columns; None takes label, patient and frame, or a
        name that means the same.
    split_key: name of the column of the split; None takes split.
    tag_keys: columns of tags, as far as they are there; several in a cell are joined by ";".
    group_keys: columns of keys that tie images together beside the patient.

    Raises DataError if the table cannot be read or lacks a column of images or one that is named.
    """
    columns, rows = read_table(root, separator)
    require_columns([key for key in (image_key, caption_key) if key], columns, root)
    image_key = image_key or _first(_IMAGE_KEYS, columns)
    if image_key is None:
        wanted = " or ".join(_IMAGE_KEYS)
        raise DataError(
            f"{root}: no column {wanted}; the columns are {', '.join(columns)}; name the one of "
            "the images by --image-key (and check --separator)"
        )
    if task == "segment" and "mask" not in columns:
        raise DataError(f"{root}: no column mask; the columns are {', '.join(columns)}; add it")
    caption_key = caption_key or _first(_CAPTION_KEYS, columns)
    given = {"label": label_key, "patient": patient_key, "frame": frame_key}
    read_as = {what: find_column(columns, what, key, root) for what, key in given.items()}
    split_column = find_split(columns, split_key, root)
    require_columns(group_keys, columns, root)
    described = Cells(read_as)
    reading = Reading()
    if root != sample_path():  # whose other columns say how it was made
        also = (image_key, caption_key or "", split_column, *tag_keys, *group_keys)
        reading.notes += note_columns(columns, read_as, also=also)
    for line, row in rows:
        where = f"{root}, line {line}"
        with reading.noting():
            image = _existing(root, row[image_key], "image", where)
            mask = _existing(root, row["mask"], "mask", where) if task == "segment" else None
            cells = {what: described.value(row, what) for what in read_as}
            frame = parse_frame(cells["frame"] or "", where)
            split = side_of(row.get(split_column, ""), where)
            suffix = "" if frame is None else f"-{frame}"
            reading.cases.append(
                Case(
                    name=_name(row[image_key]) + suffix,
                    image=str(image) if frame is None else f"{image}::{frame}",
                    masks=(str(mask),) if mask else (),
                    label=cells["label"],
                    patient=cells["patient"],
                    caption=row[caption_key] if caption_key else "",
                    split=split,
                    tags=read_values(row.get, tag_keys, where),
                    groups=read_values(row.get, group_keys, where, parse_key),
                )
            )
    reading.notes += described.notes()
    return reading


def _first(keys: tuple[str, ...], columns: list[str]) -> str | None:
    return next((key for key in keys if key in columns), None)


def _existing(table: Path, cell: str, what: str, where: str) -> Path:
    """The file that a cell names."""
    if not cell:
        raise DataError(f"{where}: no {what}; fill the cell or remove the row")
    paths = [table.parent / written for written in spellings(cell)]
    found = next((path for path in paths if os.path.isfile(path)), None)  # of any length
    if found is None:
        raise DataError(f"{where}: no {what} {shorten(str(paths[0]))}; check the path")
    return found


def _name(cell: str) -> str:
    """A path as one word, without its suffix: a/b.png is a-b."""
    path = PurePath(cell.replace("\\", "/")).with_suffix("")
    return "-".join(part for part in path.parts if part not in (path.anchor, ".."))
