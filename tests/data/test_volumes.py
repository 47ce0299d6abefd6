"""NIfTI volumes: orientation, gray values, damage."""

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from miniature_sets import volume

from fastht.data import Case, DataError, read_case_image, read_mask
from fastht.data.volumes import read_slice, read_volume, volume_shape

SLICES = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5) * 8


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slices_lie_as_images_do(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    volume(path, SLICES)
    assert volume_shape(str(path)) == (2, 3, 5)
    np.testing.assert_array_equal(read_slice(str(path), 1), SLICES[1])
    image = read_case_image(Case("a", f"{path}::1"))
    assert (image.mode, image.size) == ("RGB", (5, 3))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], SLICES[1])
    with pytest.raises(DataError, match="no slice 2; the file has slices 0 to 1"):
        read_slice(str(path), 2)


def test_gray_values_are_scaled_by_the_range_of_the_volume(tmp_path: Path) -> None:
    deep = np.array([[[0, 100]], [[0, 4000]]], np.int16)
    volume(tmp_path / "deep.nii", deep)
    scaled = np.rint(deep * (255 / 4095))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "deep.nii")), scaled)
    volume(tmp_path / "same.nii", SLICES.astype(np.int16))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "same.nii")), SLICES)
    volume(tmp_path / "unit.nii", np.array([[[0.0, 0.5, 1.0]]], np.float32))
    np.testing.assert_array_equal(read_volume(str(tmp_path / "unit.nii")), [[[0, 128, 255]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("foreground", [1, 255])
def test_masks_of_any_type(tmp_path: Path, dtype: type, foreground: int) -> None:
    marked = (SLICES > 60).astype(dtype)
    volume(tmp_path / "image.nii", SLICES)
    volume(tmp_path / "mask.nii", marked * dtype(foreground))
    for z in range(2):
        case = Case("a", f"{tmp_path}/image.nii::{z}", (f"{tmp_path}/mask.nii::{z}",))
        np.testing.assert_array_equal(read_mask(case), marked[z])


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    volume(path, SLICES)
    read_volume(str(path))
    volume(path, np.zeros((2, 3, 6), np.uint8))
    assert read_volume(str(path)).shape == (2, 3, 6)


def test_other_dimensions(tmp_path: Path) -> None:
    flat = nibabel.Nifti1Image(SLICES[0].T, np.eye(4))
    nibabel.save(flat, tmp_path / "flat.nii")
    assert volume_shape(str(tmp_path / "flat.nii")) == (1, 3, 5)
    np.testing.assert_array_equal(read_slice(str(tmp_path / "flat.nii"), 0), SLICES[0])
    one = nibabel.Nifti1Image(SLICES.T[..., None], np.eye(4))
    nibabel.save(one, tmp_path / "one.nii")
    np.testing.assert_array_equal(read_slice(str(tmp_path / "one.nii"), 1), SLICES[1])
    series = nibabel.Nifti1Image(np.stack([SLICES.T] * 2, -1), np.eye(4))
    nibabel.save(series, tmp_path / "series.nii")
    with pytest.raises(DataError, match=r"series\.nii: 5 x 3 x 2 x 2 of type uint8 is not a vol"):
        read_volume(str(tmp_path / "series.nii"))


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    volume(path, np.random.default_rng(0).integers(0, 256, (4, 50, 50), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be read .*copy or export it again"):
        read_volume(str(path))
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.nii\.gz: cannot be read"):
        volume_shape(str(path))
    with pytest.raises(DataError, match=r"none\.nii: no such file"):
        volume_shape(str(tmp_path / "none.nii"))
    with pytest.raises(DataError, match=r"none\.nii: cannot be read \(No such file"):
        read_volume(str(tmp_path / "none.nii"))
    volume(tmp_path / "nan.nii", np.array([[[0.0, np.nan]]], np.float32))
    with pytest.raises(DataError, match=r"nan\.nii: contains NaN or Inf"):
        read_volume(str(tmp_path / "nan.nii"))


def test_without_nibabel_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume(tmp_path / "a.nii", SLICES)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    remedy = r"a\.nii: NIfTI needs nibabel: pip install 'fastht\[tasks\]'"
    with pytest.raises(DataError, match=remedy):
        volume_shape(str(tmp_path / "a.nii"))


# A scan and its mask


AFFINE = np.diag([0.1, 0.2, 1.0, 1.0])
AFFINE[:3, 3] = (5, -7, 2)


def placed(path: Path, voxels: np.ndarray, affine: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def scan_and_mask() -> tuple[np.ndarray, np.ndarray]:
    """[x, y, z]; what is bright is marked, and lies in no symmetrical place."""
    scan = np.zeros((40, 30, 4), np.uint8)
    scan[4:14, 3:9, 1:3] = 255
    return scan, (scan > 0).astype(np.uint8)


AXES = ["x", "y", "z", "xy", "xz", "xyz"]


@pytest.mark.parametrize("flipped", AXES)
def test_a_mask_stored_the_other_way_round_is_turned(tmp_path: Path, flipped: str) -> None:
    scan, mask = scan_and_mask()
    affine = AFFINE.copy()
    for axis in ("xyz".index(name) for name in flipped):
        affine[:3, 3] += affine[:3, axis] * (mask.shape[axis] - 1)
        affine[:3, axis] *= -1
        mask = np.flip(mask, axis)
    scan_file = placed(tmp_path / "s.nii.gz", scan, AFFINE)
    mask_file = placed(tmp_path / "m.nii.gz", mask, affine)
    overlap = 0
    for z in range(4):
        case = Case("a", f"{scan_file}::{z}", (f"{mask_file}::{z}",))
        bright = np.asarray(read_case_image(case))[..., 0] == 255
        found = read_mask(case) == 1
        np.testing.assert_array_equal(found, bright)
        overlap += int(found.sum())
    assert overlap == 2 * 60


def test_a_mask_with_other_axes_is_turned(tmp_path: Path) -> None:
    scan, mask = scan_and_mask()
    swapped = AFFINE[:, [1, 0, 2, 3]]
    scan_file = placed(tmp_path / "s.nii.gz", scan, AFFINE)
    mask_file = placed(tmp_path / "m.nii.gz", mask.transpose(1, 0, 2), swapped)
    found = read_volume(mask_file, scan_file)
    np.testing.assert_array_equal(found > 0, read_volume(scan_file) > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.diag([1.0, 1.5, 1.0, 1.0]), "lies up to 17.5 voxels from"),
        (
            np.array([[1, 0, 0, 0.3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
            "up to 3.0 voxels",
        ),
    ],
)
def test_a_mask_that_lies_elsewhere_is_refused(
    tmp_path: Path, change: np.ndarray, message: str
) -> None:
    scan, mask = scan_and_mask()
    scan_file = placed(tmp_path / "s.nii.gz", scan, AFFINE)
    mask_file = placed(tmp_path / "m.nii.gz", mask, change @ AFFINE)
    with pytest.raises(DataError, match=rf"m\.nii\.gz: .*{message}"):
        read_mask(Case("a", f"{scan_file}::1", (f"{mask_file}::1",)))


def test_headers_that_say_nothing_and_rounding_change_nothing(tmp_path: Path) -> None:
    scan, mask = scan_and_mask()
    scan_file = placed(tmp_path / "s.nii.gz", scan, AFFINE)
    for affine in (np.eye(4), AFFINE + 1e-4):
        mask_file = placed(tmp_path / "m.nii.gz", mask, affine)
        found = read_volume(mask_file, scan_file)
        np.testing.assert_array_equal(found > 0, read_volume(scan_file) > 0)
