"""Image-text pairs of a set in one of the known layouts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastht.data.captions import Cleaning
from fastht.data.cases import CaseSet, split_part
from fastht.data.images import DataError
from fastht.data.layouts import load_cases, tag_options
from fastht.data.notes import Note, plural
from fastht.data.records import Dropped, Record, RecordSet, collect
from fastht.data.values import JOIN

_Folder = str | os.PathLike[str]
_FILES = (".json", ".jsonl", ".parquet")


def is_set(data: _Folder) -> bool:
    """Whether pairs of this path are read by its layout: a folder, a JSON or a Parquet file."""
    path = Path(data)
    return path.is_dir() or path.suffix.lower() in _FILES


def load_set(
    data: _Folder,
    *,
    cleaning: Cleaning = "letters",
    image_dirs: Sequence[_Folder] = (),
    attribute_keys: Sequence[str] = (),
    **options: Any,
) -> RecordSet:
    """Read the image-caption pairs of a folder, .json, .jsonl or .parquet file.

    Sides of the set's own split are kept. Images that cannot be used are dropped and counted, as
    are those without caption or with a short one. Sets of which only a part is meant, by organ,
    origin or concept, are written as a table by `fastht data export` first.

    attribute_keys: fields that a record keeps in `attributes`, those of them that are there.
    options: those of the layout, as load_cases takes them; one that it does not have is refused.

    Raises DataError as load_cases, or if no pair is left.
    """
    dirs = tuple(os.fspath(folder) for folder in image_dirs)
    try:
        options |= tag_options(data, attribute_keys)
        found = load_cases(data, task="pairs", leave_out=True, image_dirs=dirs, **options)
    except DataError as error:
        remedy = "or write what you mean as a table by `fastht data export` and give that"
        raise DataError(f"{error}; {remedy}") from None
    return make_records(found, image_dirs=dirs, cleaning=cleaning)


def make_records(
    found: CaseSet, *, image_dirs: Sequence[_Folder] = (), cleaning: Cleaning = "letters"
) -> RecordSet:
    """Make records of the cases of a set, named by where their images lie below its folders.

    Tags that were read are their attributes, several in a text joined by ";".

    Raises DataError if no pair is left.
    """
    pairs: list[Record | Dropped] = [
        Dropped(reason) for reason, count in found.left_out.items() for _ in range(count)
    ]
    source = Path(found.source)
    roots = [*map(Path, image_dirs), source if source.is_dir() else source.parent]
    for case in found:
        file, part = split_part(case.image)
        frame = None if part is None else int(part)
        name = _name(file, roots)
        kept = {field: JOIN.join(values) for field, values in case.tags}
        pairs.append(
            Record(file, case.caption, case.label, case.patient, frame, case.split, name, kept)
        )

    def notes() -> Iterator[Note]:
        yield from found.notes
        if found.unusable:
            count = len(found.unusable)
            more = f" ({count - 1:,} more: see `fastht data check`)" if count > 1 else ""
            text = f"{plural(count, 'image')} cannot be used: {found.unusable[0]}{more}"
            yield Note("unusable", count, text)

    return collect(found.source, pairs, cleaning=cleaning, notes=notes)


def _name(image: str, roots: Sequence[Path]) -> str:
    """An image's path below the first folder that it is in, the same wherever the set lies."""
    for root in roots:
        try:
            return Path(image).relative_to(root).as_posix()
        except ValueError:
            continue
    return image
