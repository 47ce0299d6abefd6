"""The image-text pairs that a run or a model is judged on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastht.data import DataError, Record, RecordSet, load_records
from fastht.data.captions import Cleaning
from fastht.tasks.image_text.run import READING_OPTIONS, ClipRun, file_key


def load_judged(
    data: str, options: Mapping[str, Any], cleaning: Cleaning, attributes: Iterable[str] = ()
) -> RecordSet:
    """Read pairs by the options that are given.

    Args:
        data: as :func:`load_records` takes it.
        options: those of reading among others; what is empty or ``None`` is left alone.
        cleaning: of the captions.
        attributes: columns that records are to keep.

    Raises:
        DataError: as :func:`load_records`.
    """
    given = {name: options[name] for name in READING_OPTIONS if options.get(name)}
    given |= {"cleaning": cleaning, "attribute_keys": tuple(attributes)}
    return load_records(data, **given)


def keep_unseen(found: RecordSet, own: bool, clip: ClipRun) -> tuple[Record, ...]:
    """Return what the run held out of its own data, or what it has not trained on of other data.

    Raises:
        DataError: nothing is left.
    """
    if own:
        kept = tuple(r for r in found if clip.sides.get(file_key(r.image)) == "val")
        remedy = "were the images moved since? Then give them by --data"
    else:
        kept = tuple(r for r in found if not clip.trained_on(r.image))
        remedy = "give others by --data"
    if not kept:
        raise DataError(f"{found.source}: no image is left that the run held out; {remedy}")
    return kept
