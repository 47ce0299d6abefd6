"""Image-text pairs wherever they are: the simulated sample, tables, webdataset shards."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from fastht.data.images import DataError
from fastht.data.records import Dropped, Record, RecordSet, collect
from fastht.data.set_records import load_set
from fastht.data.shards import load_shards
from fastht.data.tables import parse_frame, read_table

_KEY_PAIRS = (("filepath", "title"), ("filename", "Caption"))  # open_clip's, NextGen-UIA's
_Folder = str | os.PathLike[str]


def load_records(
    data: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    separator: str | None = None,
    image_dirs: Sequence[_Folder] = (),
    label_key: str = "label",
    patient_key: str = "patient",
    frame_key: str = "frame",
) -> RecordSet:
    """Read image-caption pairs; drop and count those without image file or with a short caption.

    data: "sample", the simulated set inside the package; a .csv, .tsv or .txt table (UTF-8);
        webdataset shards, as fastht.data.shards.load_shards takes them; or a folder, .json, .jsonl
        or .parquet file of a layout with captions, see fastht.data.layouts.
    image_key, caption_key: column names. Default: filepath and title (open_clip), else filename
        and Caption (NextGen-UIA).
    separator: default a tab for .tsv, else a tab or comma, whichever the header has more of.
    image_dirs: where relative paths are looked up, then by base name alone, then beside the table.
    label_key, patient_key, frame_key: columns that are read if the table has them.

    Raises DataError for a table that cannot be read or lacks the columns, an image directory that
    does not exist, or if no pair is left.
    """
    sample = resources.files("fastht.data") / "sample" / "sample.csv"
    path = Path(str(sample) if str(data) == "sample" else data)
    if path.is_dir() or path.suffix.lower() in (".json", ".jsonl", ".parquet"):
        return load_set(data, image_key=image_key, caption_key=caption_key, image_dirs=image_dirs)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        if image_key or caption_key or separator or image_dirs:
            options = "keys, separator and image directories"
            raise DataError(f"{data}: {options} are for .csv, .tsv and .txt tables; omit them")
        return load_shards(os.fspath(data))

    columns, rows = read_table(path, separator)
    image_column, caption_column = _find_keys(path, columns, image_key, caption_key)
    for key in {label_key, patient_key, frame_key} - {"label", "patient", "frame", *columns}:
        raise DataError(f"{path}: no column {key!r}; the columns are {', '.join(columns)}")
    for folder in image_dirs:
        if not os.path.isdir(folder):
            raise DataError(f"{path}: no image directory {folder}; correct the path")
    pairs: list[Record | Dropped] = []
    named_by: dict[str, str] = {}
    for line, row in rows:
        named = os.path.normpath(row[image_column])
        image = _find_image(named, image_dirs, path.parent, f"{path}, line {line}")
        if image is None:
            pairs.append(Dropped("image file missing", row[image_column] or f"line {line}"))
            continue
        if (first := named_by.setdefault(image, named)) != named:
            # By base name, a/1.png and b/1.png would share an image and mix up their captions.
            both = f"{named} and {first} both lead to {image}"
            raise DataError(
                f"{path}, line {line}: {both}; use paths relative to an image directory"
            )
        frame = parse_frame(row.get(frame_key, ""), f"{path}, line {line}")
        label, patient = row.get(label_key) or None, row.get(patient_key) or None
        pairs.append(Record(image, row[caption_column], label, patient, frame))
    return collect(str(path), pairs)


def _find_keys(
    path: Path, columns: list[str], image_key: str | None, caption_key: str | None
) -> tuple[str, str]:
    """Columns of the image and the caption: the given names, completed by a known pair."""
    for default_image, default_caption in _KEY_PAIRS:
        keys = (image_key or default_image, caption_key or default_caption)
        if keys[0] in columns and keys[1] in columns:
            return keys
    raise DataError(
        f"{path}: no columns for image and caption; the columns are {', '.join(columns)}; name "
        "two of them with --image-key and --caption-key (and check --separator)"
    )


def _find_image(named: str, image_dirs: Sequence[_Folder], beside: Path, where: str) -> str | None:
    """The existing file; joining leaves an absolute name as it is.

    Raises DataError if there are several in the image directories.
    """
    base = os.path.basename(named)
    for name in (named, base):
        found = [p for d in image_dirs if os.path.isfile(p := os.path.join(d, name))]
        if len({os.path.realpath(path) for path in found}) > 1:
            several = " or ".join(found)
            raise DataError(f"{where}: {named} may be {several}; name the image with its folder")
        if found:
            return found[0]
    path = os.path.join(beside, named)
    return path if os.path.isfile(path) else None
