"""NIfTI volumes, read slice by slice."""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import numpy as np

from fastht.data.images import DataError, gray_to_8bit

_APART = 0.5  # voxels, up to which two volumes lie in the same place
_KEPT_VOLUMES = 2  # a scan and its annotation, for those who go through the slices in order


def is_volume(path: str) -> bool:
    """Whether a file is a volume, by its name."""
    return path.lower().endswith((".nii", ".nii.gz"))


def volume_shape(path: str) -> tuple[int, int, int]:
    """(slices, height, width) by the header. Raises DataError."""
    width, height, *rest = open_volume(path).shape
    return (rest[0] if rest else 1, height, width)


def read_slice(path: str, index: int, like: str | None = None) -> np.ndarray:
    """One slice as uint8 [height, width]: the third axis counts slices, the first runs along rows.

    Values deeper than 8 bits are scaled as read_image does, by the range of the whole volume.

    like: a volume of the same place, whose axes it is to have; see same_place.

    Raises DataError if nibabel is missing or the file is missing, damaged or not a gray volume, or
    lies elsewhere than the other one.
    """
    slices = read_volume(path, like)
    if index >= len(slices):
        raise DataError(f"{path}: no slice {index}; the file has slices 0 to {len(slices) - 1}")
    return slices[index]


def read_volume(path: str, like: str | None = None) -> np.ndarray:
    """All slices as uint8 [slices, height, width], not to be written to. Raises as read_slice."""
    slices = _read(path, *_version(path))
    if like is None or like == path:
        return slices
    turn = _turn(path, _version(path), like, _version(like))
    if turn is None:
        return slices
    from nibabel.orientations import apply_orientation

    return apply_orientation(slices.T, np.array(turn)).T  # type: ignore[no-any-return]


def same_place(path: str, like: str) -> bool:
    """Whether two volumes are known to lie in the same place, perhaps stored along other axes.

    False if one of them does not say where it lies: no affine, or one that says nothing, 1 on all
    axes from the origin 0.

    Raises DataError if they lie apart by more than half a voxel, or have other voxels.
    """
    return _turn(path, _version(path), like, _version(like)) is not None


def _version(path: str) -> tuple[int, int]:
    """What tells versions of a file apart."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=64)
def _turn(
    path: str, version: tuple[int, int], like: str, version_like: tuple[int, int]
) -> tuple[tuple[float, ...], ...] | None:
    """How nibabel turns a volume's axes to those of another one; None if a place is not known."""
    from nibabel.orientations import inv_ornt_aff, io_orientation, ornt_transform

    volume, other = open_volume(path), open_volume(like)
    shapes = [(*found.shape, 1)[:3] for found in (volume, other)]
    if not (_states_place(volume) and _states_place(other)):
        if shapes[0] != shapes[1]:
            raise _other_voxels(path, shapes[0], like, shapes[1])
        return None
    turn = ornt_transform(io_orientation(volume.affine), io_orientation(other.affine))
    turned = [0, 0, 0]
    for axis, (target, _) in enumerate(turn):
        turned[int(target)] = shapes[0][axis]
    if tuple(turned) != shapes[1]:
        raise _other_voxels(path, tuple(turned), like, shapes[1])
    affine = volume.affine @ inv_ornt_aff(turn, shapes[0])
    ends = [(0, size - 1) for size in shapes[1]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)]).T
    apart = np.linalg.inv(other.affine) @ affine @ corners - corners
    if (furthest := float(np.abs(apart).max())) > _APART:
        what = f"lies up to {furthest:.1f} voxels from {like}, by their affines"
        raise DataError(f"{path}: {what}; correct the header, or resample it to the scan")
    return tuple(map(tuple, turn.tolist()))


def _states_place(volume: Any) -> bool:
    """Whether a header says where the volume lies."""
    stated = int(volume.header["sform_code"]) > 0 or int(volume.header["qform_code"]) > 0
    return stated and not np.array_equal(volume.affine, np.eye(4))


def _other_voxels(
    path: str, shape: tuple[int, ...], like: str, shape_like: tuple[int, ...]
) -> DataError:
    sizes = [" x ".join(map(str, size[::-1])) for size in (shape, shape_like)]
    return DataError(f"{path}: {sizes[0]} voxels, {like} has {sizes[1]}; export it again")


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
