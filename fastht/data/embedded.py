"""Images inside other files: members of webdataset shards, cells of Parquet tables."""

from __future__ import annotations

from fastht.data.parquet import is_cell, read_cell
from fastht.data.shards import read_member

_SHARD = ".tar::"


def is_embedded(image: str) -> bool:
    """Whether a name is of an image inside another file, as "a.tar::b.png" is."""
    return _SHARD in image or is_cell(image)


def read_embedded(image: str) -> bytes:
    """The bytes of such an image. Raises DataError if it is not there."""
    return read_member(image) if _SHARD in image else read_cell(image)
