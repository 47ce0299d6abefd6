"""Pixel values of any depth as 8 bits, and what is refused before it is decoded."""

from __future__ import annotations

import numpy as np

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
"""Those of PIL's formats that are read."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
"""Of the names of such files."""

MAX_PIXELS = 80_000_000
"""Larger images are refused as decompression bombs; ultrasound frames have about a million."""


class DataError(ValueError):
    """Bad input data; the message names the file and the remedy."""


def gray_to_8bit(values: np.ndarray, name: str) -> np.ndarray:
    """Gray of unknown range, [H, W] of any dtype, to uint8; the rule is read_image's."""
    if not np.isfinite(values).all():
        raise DataError(f"{name}: contains NaN or Inf; replace them or drop the image")
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        return scale(values, low, high)
    return scale(values, 0, 1 if values.dtype.kind == "f" and high <= 1 else ceiling(high))


def ceiling(maximum: float) -> int:
    """Top of the smallest of the 8-, 12- and 16-bit ranges that holds `maximum`."""
    return next(top for top in (255, 4095, 65535) if maximum <= top)


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high linearly to 0..255, rounded, uint8; a step at `low` where low equals high."""
    if values.dtype == np.uint8 and (low, high) == (0, 255):
        return values
    if low == high:
        return np.where(values > low, np.uint8(255), np.uint8(0))
    unit = (values.astype(np.float64) - low) / (float(high) - float(low))
    return np.rint(255 * unit.clip(0, 1)).astype(np.uint8)


def frame_index(frame: int | None, frames: int, name: str) -> int:
    """The frame to decode."""
    if frame is None:
        return (frames - 1) // 2
    if not 0 <= frame < frames:
        raise DataError(f"{name}: no frame {frame}; the file has frames 0 to {frames - 1}")
    return frame


def check_size(width: int, height: int, name: str) -> None:
    """Refuse what would not fit in memory before it is decoded."""
    if width * height > MAX_PIXELS:
        raise too_large(name)


def too_large(name: str) -> DataError:
    """The refusal of a decompression bomb."""
    return DataError(f"{name}: more than {MAX_PIXELS:,} pixels; crop or resize the image")
