"""What the header of an image file says, without its pixels: turned by EXIF, several pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO

from PIL import Image

from fastht.data.embedded import is_embedded, read_embedded
from fastht.data.notes import Note, examples, plural
from fastht.data.pixels import FORMATS
from fastht.data.records import RecordSet

_SEVERAL_PICTURES = "files_of_several_pictures"  # kind of the note
_ORIENTATION, _UPRIGHT = 0x0112, 1  # of EXIF
_READERS = 8  # threads


@dataclass(frozen=True, slots=True)
class Header:
    """What a user may not expect of a file.

    turned: whether EXIF turns or mirrors the picture, as every viewer does and as read_image does.
    pictures: how many the file holds; read_image takes the one in the middle.
    """

    turned: bool = False
    pictures: int = 1


def read_header(path: str) -> Header:
    """The header of a file; that of a file that cannot be read says nothing, reading it will."""
    try:
        with _open(path) as stream:
            if stream.read(132)[128:] == b"DICM":
                return Header(pictures=_dicom_frames(stream))
            stream.seek(0)
            with Image.open(stream, formats=FORMATS) as image:
                turned = image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT
                return Header(turned, getattr(image, "n_frames", 1))
    except Exception:
        return Header()


def read_headers(paths: Iterable[str]) -> dict[str, Header]:
    """The headers of many files, several at once."""
    listed = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(listed, pool.map(read_header, listed), strict=True))


def note_several_pictures(headers: Mapping[str, Header]) -> tuple[Note, ...]:
    """Note files of several pictures, of which no frame is named."""
    several = {path: header.pictures for path, header in headers.items() if header.pictures > 1}
    if not several:
        return ()
    names = examples(f"{path} ({count})" for path, count in several.items())
    text = f"{plural(len(several), 'file')} of several pictures, of which the middle one is read"
    remedy = "name one by a column frame of a table, or split the files"
    return (Note(_SEVERAL_PICTURES, len(several), f"{text}: {names}; {remedy}"),)


def with_frames_noted(records: RecordSet) -> RecordSet:
    """Note files of several pictures without a frame, unless the records' layout has told of them.

    Reads the header of each file.
    """
    if any(note.kind == _SEVERAL_PICTURES for note in records.notes):
        return records
    several = note_several_pictures(read_headers(r.image for r in records if r.frame is None))
    return replace(records, notes=(*records.notes, *several))


def is_turned(path: str) -> bool:
    """Whether EXIF turns the picture of a file."""
    return os.path.isfile(path) and read_header(path).turned


def _open(path: str) -> BinaryIO:
    return io.BytesIO(read_embedded(path)) if is_embedded(path) else open(path, "rb")


def _dicom_frames(stream: BinaryIO) -> int:
    from pydicom import dcmread

    stream.seek(0)
    header = dcmread(stream, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(header.get("NumberOfFrames") or 1)
