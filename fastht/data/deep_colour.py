"""Colour deeper than 8 bits a channel, of which PIL reads the upper byte alone."""

from __future__ import annotations

import sys
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

# How PIL unpacks the upper bytes, and what takes the lower ones of the same pixels instead. The
# file's order of bytes is in the name; N is the machine's, into which libtiff decodes.
_LOWER = {
    f"{mode};16{one}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "RGBX")
    for one, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}
_GRAY_ALPHA = "LA;16B"


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an opened image has more than 8 bits a channel that PIL would not give."""
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(
        ";16" in mode for mode in _raw_modes(image)
    )


def read_deep_colour(stream: BinaryIO, page: int) -> np.ndarray | None:
    """The channels of a picture, uint16 [H, W, 3] or with alpha [H, W, 4], turned by EXIF.

    What PNG declares transparent by its colour has an alpha of 0.

    stream: a file that :func:`is_deep_colour` is of.
    page: which picture of the file.

    Returns None if its kind of pixels cannot be read whole: premultiplied, CMYK, plane by plane.
    """
    image = _open(stream, page)
    modes = set(_raw_modes(image))
    if modes == {_GRAY_ALPHA}:
        # Four bytes a pixel, as RGBA has: both of gray, both of alpha.
        bytes_ = _unpack(image, "RGBA").astype(np.uint16)
        gray = bytes_[..., 0::2] << 8 | bytes_[..., 1::2]
        return np.concatenate([gray[..., :1]] * 3 + [gray[..., 1:]], axis=-1)
    if not modes <= _LOWER.keys() or len(modes) != 1:
        return None
    mode = modes.pop()
    key = image.info.get("transparency")
    upper = _unpack(image, mode).astype(np.uint16)
    lower = _unpack(_open(stream, page), _LOWER[mode])
    values = upper << 8 | lower
    if isinstance(key, tuple) and values.shape[-1] == 3:
        opaque = (values != np.array(key)).any(axis=-1, keepdims=True)
        values = np.concatenate([values, opaque * np.uint16(65535)], axis=-1)
    return values


def _open(stream: BinaryIO, page: int) -> Image.Image:
    stream.seek(0)
    image = Image.open(stream, formats=("PNG", "TIFF"))
    if page:
        image.seek(page)
    return image


def _unpack(image: Image.Image, mode: str) -> np.ndarray:
    """The pixels, unpacked as another raw mode has them."""
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        args = mode if isinstance(tile.args, str) else (mode, *tile.args[1:])
        tiles.append(tile._replace(args=args))
    image.tile = tiles  # type: ignore[attr-defined]
    return np.asarray(ImageOps.exif_transpose(image))


def _raw_modes(image: Image.Image) -> list[str]:
    tiles = getattr(image, "tile", [])
    return [str(tile.args if isinstance(tile.args, str) else tile.args[0]) for tile in tiles]
