"""The spacing of pixels: right where a file states it, none where it does not."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image
from pydicom.dataset import Dataset

from fastht.data import Case, DataError
from fastht.data.spacing import read_spacing

PIXELS = np.zeros((6, 8), np.uint8)


def region(x: float, y: float, **elements: Any) -> Dataset:
    """An ultrasound region of a two-dimensional image in centimetres a pixel."""
    made = Dataset()
    found = {
        "RegionSpatialFormat": 1,
        "RegionDataType": 1,
        "PhysicalUnitsXDirection": 3,
        "PhysicalUnitsYDirection": 3,
        "PhysicalDeltaX": x,
        "PhysicalDeltaY": y,
    } | elements
    for name, value in found.items():
        setattr(made, name, value)
    return made


def dicom(tmp_path: Path, stored: np.ndarray = PIXELS, **elements: Any) -> Case:
    return Case("a", str(write_dicom(tmp_path / "a.dcm", stored, **elements)))


def nifti(
    tmp_path: Path,
    zooms: tuple[float, float, float],
    *,
    unit: str = "mm",
    origin: float = 5.0,
    header_only: bool = False,
) -> Case:
    """A volume of 8 x 6 x 2 voxels; header_only: pixdim without an affine."""
    affine = np.diag([*zooms, 1.0])
    affine[:3, 3] = origin
    volume = nibabel.Nifti1Image(np.zeros((8, 6, 2), np.uint8), None if header_only else affine)
    volume.header.set_zooms(zooms)
    volume.header.set_xyzt_units(unit)
    nibabel.save(volume, tmp_path / "a.nii")
    return Case("a", f"{tmp_path / 'a.nii'}::1")


def test_pictures_have_none_whatever_they_say_about_printers(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.fromarray(PIXELS).save(tmp_path / name, dpi=(300, 300))
        assert read_spacing(Case("a", str(tmp_path / name))) is None


def test_dicom_without_spacing_has_none(tmp_path: Path) -> None:
    assert read_spacing(dicom(tmp_path)) is None
    assert read_spacing(dicom(tmp_path, PixelSpacing=None)) is None


def test_pixel_spacing_is_rows_then_columns(tmp_path: Path) -> None:
    found = read_spacing(dicom(tmp_path, PixelSpacing=[0.2, 0.05]))
    assert found is not None
    assert found.mm == (found.row, found.column) == (0.2, 0.05)
    assert str(found) == "0.2 x 0.05 mm by Pixel Spacing"


def test_ultrasound_regions_are_centimetres_and_x_is_columns(tmp_path: Path) -> None:
    found = read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=[region(0.005, 0.02)]))
    assert found is not None
    assert found.mm == pytest.approx((0.2, 0.05))
    upwards = read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=[region(0.005, -0.02)]))
    assert upwards is not None
    assert upwards.mm == pytest.approx((0.2, 0.05))


@pytest.mark.parametrize(
    "other",
    [
        {"RegionSpatialFormat": 3, "PhysicalUnitsXDirection": 4, "PhysicalUnitsYDirection": 7},
        {"RegionSpatialFormat": 2, "PhysicalUnitsXDirection": 4},  # M-mode
        {"PhysicalUnitsXDirection": 0, "PhysicalUnitsYDirection": 0},
    ],
)
def test_regions_that_are_no_pictures_of_the_body_do_not_count(
    tmp_path: Path, other: dict[str, int]
) -> None:
    curve = region(0.5, 0.5, **other)
    assert read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=[curve])) is None
    both = [curve, region(0.01, 0.01)]
    found = read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=both))
    assert found is not None
    assert found.mm == pytest.approx((0.1, 0.1))


def test_regions_of_two_scales_are_refused_and_of_one_taken(tmp_path: Path) -> None:
    alike = [region(0.01, 0.01), region(0.01002, 0.01)]
    assert read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=alike)) is not None
    differing = [region(0.01, 0.01), region(0.02, 0.02)]
    with pytest.raises(DataError, match=r"a\.dcm: pixels are 0\.1 x 0\.1 mm by ultrasound region"):
        read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=differing))


def test_statements_that_contradict_are_refused(tmp_path: Path) -> None:
    regions = [region(0.005, 0.02)]
    agreeing = dicom(tmp_path, SequenceOfUltrasoundRegions=regions, PixelSpacing=[0.2, 0.05])
    assert read_spacing(agreeing) is not None
    swapped = dicom(tmp_path, SequenceOfUltrasoundRegions=regions, PixelSpacing=[0.05, 0.2])
    with pytest.raises(DataError, match=r"and 0\.05 x 0\.2 mm by Pixel Spacing; correct"):
        read_spacing(swapped)


def test_imager_pixel_spacing_is_the_last_resort(tmp_path: Path) -> None:
    found = read_spacing(dicom(tmp_path, ImagerPixelSpacing=[0.3, 0.4]))
    assert found is not None
    assert (found.mm, found.source) == ((0.3, 0.4), "Imager Pixel Spacing")
    corrected = dicom(tmp_path, ImagerPixelSpacing=[0.3, 0.4], PixelSpacing=[0.2, 0.3])
    found = read_spacing(corrected)
    assert found is not None
    assert found.mm == (0.2, 0.3)


def test_functional_groups_of_the_frame(tmp_path: Path) -> None:
    def group(*spacing: float) -> Dataset:
        measures, made = Dataset(), Dataset()
        measures.PixelSpacing = list(spacing)
        made.PixelMeasuresSequence = [measures]
        return made

    cine = np.zeros((3, 6, 8), np.uint8)
    shared = dicom(
        tmp_path, cine, NumberOfFrames=3, SharedFunctionalGroupsSequence=[group(0.2, 0.1)]
    )
    frame = Case("a", f"{shared.image}::2")
    for case in (shared, frame):
        found = read_spacing(case)
        assert found is not None
        assert found.mm == (0.2, 0.1)
    groups = [group(0.1, 0.1), group(0.2, 0.2), group(0.3, 0.3)]
    own = dicom(tmp_path, cine, NumberOfFrames=3, PerFrameFunctionalGroupsSequence=groups)
    found = [read_spacing(case) for case in (own, Case("a", f"{own.image}::2"))]
    assert [spacing and spacing.row for spacing in found] == [0.2, 0.3]  # the middle frame


@pytest.mark.parametrize("values", [[0, 0.1], [-0.1, 0.1], [0.1], [0.1, 0.1, 0.1]])
def test_what_is_no_length_is_refused(tmp_path: Path, values: list[float]) -> None:
    with pytest.raises(DataError, match=r"a\.dcm: Pixel Spacing is .* no two lengths above 0"):
        read_spacing(dicom(tmp_path, PixelSpacing=values))


def test_a_region_without_scale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ultrasound region 1 is"):
        read_spacing(dicom(tmp_path, SequenceOfUltrasoundRegions=[region(0.0, 0.01)]))


def test_nifti_runs_along_rows_first(tmp_path: Path) -> None:
    found = read_spacing(nifti(tmp_path, (0.05, 0.2, 3.0)))
    assert found is not None
    assert found.mm == (0.2, 0.05)
    assert found.source == "NIfTI pixdim"


@pytest.mark.parametrize(("unit", "zoom"), [("meter", 1e-4), ("micron", 100.0)])
def test_nifti_units(tmp_path: Path, unit: str, zoom: float) -> None:
    found = read_spacing(nifti(tmp_path, (zoom, 2 * zoom, zoom), unit=unit))
    assert found is not None
    assert found.mm == pytest.approx((0.2, 0.1))


def test_nifti_without_unit_needs_an_affine(tmp_path: Path) -> None:
    found = read_spacing(nifti(tmp_path, (0.05, 0.2, 3.0), unit="unknown"))
    assert found is not None
    assert (found.mm, found.source) == ((0.2, 0.05), "NIfTI pixdim, unit not stated")
    bare = nifti(tmp_path, (0.05, 0.2, 3.0), unit="unknown", header_only=True)
    assert read_spacing(bare) is None
    stated = nifti(tmp_path, (0.05, 0.2, 3.0), header_only=True)
    found = read_spacing(stated)
    assert found is not None
    assert found.mm == (0.2, 0.05)


def test_nifti_that_was_never_told_a_spacing_has_none(tmp_path: Path) -> None:
    assert read_spacing(nifti(tmp_path, (1.0, 1.0, 1.0), origin=0.0)) is None
    assert read_spacing(nifti(tmp_path, (1.0, 1.0, 1.0), header_only=True)) is None
    assert read_spacing(nifti(tmp_path, (1.0, 1.0, 1.0))) is not None  # somewhere in a scanner


def test_nifti_whose_affine_contradicts_is_refused(tmp_path: Path) -> None:
    case = nifti(tmp_path, (0.05, 0.2, 3.0))
    path = tmp_path / "a.nii"
    volume = nibabel.load(path)
    volume.header["pixdim"][1:3] = volume.header["pixdim"][2:0:-1]
    (tmp_path / "b.nii").write_bytes(volume.header.binaryblock + path.read_bytes()[348:])
    with pytest.raises(DataError, match=r"b\.nii: pixels are .* by its affine; correct the header"):
        read_spacing(Case("b", f"{tmp_path / 'b.nii'}::1"))
    assert read_spacing(case) is not None


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    for name in ("none.png", "none.dcm"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            read_spacing(Case("a", str(tmp_path / name)))
    case = dicom(tmp_path, PixelSpacing=[0.1, 0.1])
    path = Path(case.image)
    path.write_bytes(path.read_bytes().replace(b"0.1\\0.1", b"0,1\\0,1"))
    with pytest.raises(DataError, match=r"a\.dcm: Pixel Spacing is .*0,1.*; correct or delete"):
        read_spacing(case)
