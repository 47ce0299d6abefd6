"""What the header of an image file says, without its pixels: turned by EXIF, several pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from fastht.data.pixels import FORMATS

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
        with open(path, "rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return Header(pictures=_dicom_frames(path))
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


def is_turned(path: str) -> bool:
    """Whether EXIF turns the picture of a file."""
    return os.path.isfile(path) and read_header(path).turned


def _dicom_frames(path: str) -> int:
    from pydicom import dcmread

    header = dcmread(path, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
    return int(header.get("NumberOfFrames") or 1)
