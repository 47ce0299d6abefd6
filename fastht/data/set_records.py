"""Image-text pairs of a set in one of the known layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fastht.data.images import DataError
from fastht.data.layouts import load_cases
from fastht.data.records import Dropped, Record, RecordSet, collect


def load_set(
    data: str | os.PathLike[str],
    *,
    image_key: str | None = None,
    caption_key: str | None = None,
    image_dirs: Sequence[str | os.PathLike[str]] = (),
) -> RecordSet:
    """Read the image-caption pairs of a folder, .json, .jsonl or .parquet file.

    Sides of the set's own split are kept. Images that cannot be used are dropped and counted, as
    are those without caption or with a short one. Sets of which only a part is meant, by organ,
    origin or concept, are written as a table by `fastht data export` first.

    Raises DataError as load_cases, or if no pair is left.
    """
    options = {"image_key": image_key, "caption_key": caption_key}
    dirs = tuple(str(folder) for folder in image_dirs)
    try:
        found = load_cases(data, task="caption", leave_out=True, image_dirs=dirs, **options)
    except DataError as error:
        remedy = "or write what you mean as a table by `fastht data export` and give that"
        raise DataError(f"{error}; {remedy}") from None
    pairs: list[Record | Dropped] = [
        Dropped(reason) for reason, count in found.left_out.items() for _ in range(count)
    ]
    for case in found:
        pairs.append(Record(case.image, case.caption, case.label, case.patient, split=case.split))
    return collect(found.source, pairs)
