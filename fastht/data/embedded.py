"""Images inside other files: members of shards and zip files, cells of Parquet tables."""

from __future__ import annotations

from fastht.data.cases import is_inside, read_inside
from fastht.data.shards import read_member

_SHARD = ".tar::"


def is_embedded(image: str) -> bool:
    """Whether a name is of an image inside another file, as "a.tar::b.png" is."""
    return _SHARD in image or is_inside(image)


def read_embedded(image: str) -> bytes:
    """The bytes of such an image. Raises DataError if it is not there."""
    return read_member(image) if _SHARD in image else read_inside(image)
