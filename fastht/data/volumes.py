"""NIfTI volumes, read slice by slice."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from fastht.data.images import DataError, gray_to_8bit

_KEPT_VOLUMES = 2  # a scan and its annotation, for those who go through the slices in order


def is_volume(path: str) -> bool:
    """Whether a file is a volume, by its name."""
    return path.lower().endswith((".nii", ".nii.gz"))


def volume_shape(path: str) -> tuple[int, int, int]:
    """(slices, height, width) by the header. Raises DataError."""
    width, height, *rest = open_volume(path).shape
    return (rest[0] if rest else 1, height, width)


def read_slice(path: str, index: int) -> np.ndarray:
    """One slice as uint8 [height, width]: the third axis counts slices, the first runs along rows.

    Values deeper than 8 bits are scaled as read_image does, by the range of the whole volume.

    Raises DataError if nibabel is missing or the file is missing, damaged or not a gray volume.
    """
    slices = read_volume(path)
    if index >= len(slices):
        raise DataError(f"{path}: no slice {index}; the file has slices 0 to {len(slices) - 1}")
    return slices[index]


def read_volume(path: str) -> np.ndarray:
    """All slices as uint8 [slices, height, width], not to be written to. Raises as read_slice."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return _read(path, status.st_mtime_ns, status.st_size)


# A slice of a compressed volume costs as much as the volume.
@functools.lru_cache(maxsize=_KEPT_VOLUMES)
def _read(path: str, mtime_ns: int, size: int) -> np.ndarray:
    """Decode a volume; mtime_ns and size only tell versions of the file apart."""
    volume = open_volume(path)
    try:
        values = np.asarray(volume.dataobj).reshape(*volume.shape[:2], -1)
    except Exception as error:  # zlib, EOF, OS and value errors, whatever breaks first
        raise _unreadable(path, error) from error
    if values.dtype.kind in "iu" and values.min() >= 0 and values.max() <= 255:
        values = values.astype(np.uint8)  # unchanged, but without the scaling's float copies
    slices = gray_to_8bit(values, path).T  # [x, y, z] to [z, y, x]
    slices.flags.writeable = False
    return slices


def open_volume(path: str) -> Any:
    """The nibabel image of a gray volume, its data not yet read. Raises DataError."""
    try:
        import nibabel
    except ImportError:
        raise DataError(f"{path}: NIfTI needs nibabel: pip install 'fastht[tasks]'") from None
    try:
        volume: Any = nibabel.load(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except Exception as error:
        raise _unreadable(path, error) from error
    shape, dtype = volume.shape, volume.get_data_dtype()
    if len(shape) < 2 or any(size != 1 for size in shape[3:]) or dtype.kind not in "iuf":
        what = f"{' x '.join(map(str, shape))} of type {dtype}"
        raise DataError(f"{path}: {what} is not a volume of gray values; export one")
    return volume


def _unreadable(path: str, error: Exception) -> DataError:
    what = f"{type(error).__name__}: {error}"
    return DataError(f"{path}: cannot be read ({what}); copy or export it again")
