"""Image-text pairs wherever they are: the simulated sample, tables, webdataset shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import count, takewhile
from pathlib import Path

from fastht.data.captions import Cleaning
from fastht.data.cases import side_of
from fastht.data.columns import Cells, find_column, find_split, note_columns
from fastht.data.images import DataError
from fastht.data.notes import Note, plural
from fastht.data.records import Dropped, Record, RecordSet, collect
from fastht.data.set_records import is_set, load_set
from fastht.data.shards import load_shards
from fastht.data.tables import parse_frame, read_table, spellings

_KEY_PAIRS = (("filepath", "title"), ("filename", "Caption"))  # open_clip's, NextGen-UIA's
_DESCRIBING = ("label", "patient", "frame")
_Folder = str | os.PathLike[str]


def load_records(
    data: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    separator: str | None = None,
    image_dirs: Sequence[_Folder] = (),
    label_key: str | None = None,
    patient_key: str | None = None,
    split_key: str | None = None,
    frame_key: str | None = None,
    attribute_keys: Sequence[str] = (),
    cleaning: Cleaning = "letters",
) -> RecordSet:
    """Read image-caption pairs; drop and count those without image file or with a short caption.

    data: "sample", the simulated set inside the package; a .csv, .tsv or .txt table (UTF-8);
        webdataset shards, as fastht.data.shards.load_shards takes them; or a folder, .json, .jsonl
        or .parquet file of a layout with captions, see fastht.data.layouts.
    image_key, caption_key: column names. Default: filepath and title (open_clip), else filename
        and Caption (NextGen-UIA). Columns title_2, title_3, ... are more captions of the image.
    separator: default: found out, see read_table.
    image_dirs: where relative paths are looked up, then by base name alone, then beside the table.
    label_key, patient_key, frame_key: column names. Default: label, patient and frame if the table
        has them, or names that mean the same, as "Patient ID", which is noted. What is not read is
        noted too.
    split_key: column of the side that a pair is on, see split_records; default: split, if there.
    attribute_keys: columns of a table, or fields of a set that can name its tags, that a record
        keeps in `attributes`, those of them that are there; several values are joined by ";".
    cleaning: of the captions, see clean_caption.

    Of a folder, a JSON or a Parquet file the keys name fields, with dots for fields inside fields.

    Raises DataError for a table that cannot be read or lacks the columns, an image directory that
    does not exist, or if no pair is left.
    """
    sample = resources.files("fastht.data") / "sample" / "sample.csv"
    path = Path(str(sample) if str(data) == "sample" else data)
    if is_set(path):
        return load_set(
            data,
            cleaning=cleaning,
            image_dirs=image_dirs,
            image_key=image_key,
            caption_key=caption_key,
            label_key=label_key,
            patient_key=patient_key,
            split_key=split_key,
            frame_key=frame_key,
            separator=separator,
            attribute_keys=attribute_keys,
        )
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        if image_key or caption_key or split_key or separator or image_dirs:
            options = "image, caption and split keys, separator and image directories"
            raise DataError(f"{data}: {options} are for .csv, .tsv and .txt tables; omit them")
        keys = {"label": label_key, "patient": patient_key, "frame": frame_key}
        return load_shards(os.fspath(data), keys=keys, cleaning=cleaning)

    columns, rows = read_table(path, separator)
    image_column, caption_column = _find_keys(path, columns, image_key, caption_key)
    read = {
        what: find_column(columns, what, given, path)
        for what, given in (("label", label_key), ("patient", patient_key), ("frame", frame_key))
    }
    cells = Cells(read)
    split_column = find_split(columns, split_key, path)
    attributes = [name for name in attribute_keys if name in columns]
    more = list(takewhile(columns.__contains__, (f"{caption_column}_{i}" for i in count(2))))
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
        where = f"{path}, line {line}"
        label, patient, frame = (cells.value(row, what) for what in _DESCRIBING)
        split = side_of(row.get(split_column, ""), where)
        name = named.replace("\\", "/")
        index = parse_frame(frame or "", where)
        kept = {column: row[column] for column in attributes}
        others = tuple(row[column] for column in more)
        pairs.append(
            Record(image, row[caption_column], label, patient, index, split, name, kept, others)
        )

    def notes() -> Iterator[Note]:
        if str(data) != "sample":  # whose other columns say how it was made
            yield from note_columns(
                columns, read, also=(image_column, caption_column, *more, split_column, *attributes)
            )
        yield from cells.notes()
        patients = [pair.patient for pair in pairs if isinstance(pair, Record)]
        if 0 < (lacking := patients.count(None)) < len(patients):
            text = f"{plural(lacking, 'pair')} without patient; each image counts as one by itself"
            yield Note("without_patient", lacking, text)

    return collect(str(path), pairs, cleaning=cleaning, notes=notes)


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
    for written in spellings(named):
        for name in (written, os.path.basename(written)):
            found = [p for d in image_dirs if os.path.isfile(p := os.path.join(d, name))]
            if len({os.path.realpath(path) for path in found}) > 1:
                several = " or ".join(found)
                what = f"{named} may be {several}; name the image with its folder"
                raise DataError(f"{where}: {what}")
            if found:
                return found[0]
        path = os.path.join(beside, written)
        if os.path.isfile(path):
            return path
    return None
