"""DICOM whose elements are empty, or contradict the pixel data."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import write_dicom
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fastht.data import DataError, read_image

STORED = (np.arange(300, dtype=np.uint16) * 13).reshape(15, 20)  # up to 3887: 12 bits


def changed(path: Path, stored: np.ndarray = STORED, **elements: Any) -> Path:
    """A file whose elements have been set afterwards, to None for empty ones."""
    write_dicom(path, stored)
    header = dcmread(path)
    for keyword, value in elements.items():
        setattr(header, keyword, value)
    header.save_as(path)
    return path


def pixels(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    "empty",
    [
        ("RescaleSlope", "RescaleIntercept"),
        ("RescaleIntercept",),
        ("WindowCenter", "WindowWidth"),
        ("VOILUTFunction",),
        ("VOILUTSequence",),
        ("ModalityLUTSequence",),
        ("NumberOfFrames",),
        ("PixelRepresentation",),
    ],
)
@pytest.mark.filterwarnings("ignore:A value of 'None' for .* 'Number of Frames'")
def test_empty_elements_count_as_absent(tmp_path: Path, empty: tuple[str, ...]) -> None:
    plain = pixels(write_dicom(tmp_path / "plain.dcm", STORED))
    found = pixels(changed(tmp_path / "empty.dcm", **dict.fromkeys(empty)))
    np.testing.assert_array_equal(found, plain)
    assert plain.max() > 200


def test_a_table_without_entries_counts_as_absent(tmp_path: Path) -> None:
    plain = pixels(write_dicom(tmp_path / "plain.dcm", STORED))
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        table = Dataset()
        table.LUTExplanation = "none"
        found = pixels(changed(tmp_path / "a.dcm", **{keyword: Sequence([table])}))
        np.testing.assert_array_equal(found, plain)


def test_a_slope_without_intercept_is_applied(tmp_path: Path) -> None:
    whole = changed(tmp_path / "a.dcm", RescaleSlope=2, RescaleIntercept=0)
    alone = changed(tmp_path / "b.dcm", RescaleSlope=2)
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    plain = pixels(changed(tmp_path / "d.dcm", **window))
    for path in (whole, alone):
        header = dcmread(path)
        header.WindowCenter, header.WindowWidth = 2000, 4000
        header.save_as(path)
    np.testing.assert_array_equal(pixels(alone), pixels(whole))
    assert (pixels(alone) != plain).any()


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_modality_tables_of_any_depth(tmp_path: Path, bits: int) -> None:
    table = Dataset()
    top = 2**bits - 1
    entries = np.linspace(top, 0, 256).round().astype(np.uint16)  # inverts
    table.add_new("LUTDescriptor", "US", [256, 0, bits])
    table.add_new("ModalityLUTType", "LO", "US")
    table.add_new("LUTData", "OW", entries.tobytes())
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = pixels(changed(tmp_path / "a.dcm", stored, ModalityLUTSequence=Sequence([table])))
    np.testing.assert_allclose(found[..., 0].ravel(), 255 - np.arange(256), atol=1)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"BitsStored": 8, "HighBit": 7}, "values up to 3,887, which Bits Stored, 8, cannot hold"),
        ({"Rows": 5}, "pixel data of 3 frames of 20 x 5, the header says 1; correct the header"),
        ({"Rows": 30}, "cannot be read"),
        ({"NumberOfFrames": 3}, "cannot be read"),
        ({"PhotometricInterpretation": "RGB"}, "interpretation RGB, but 1 values a pixel"),
        ({"PhotometricInterpretation": None}, "the DICOM header lacks PhotometricInterpretation"),
        ({"BitsStored": None}, "the DICOM header lacks BitsStored; export it again"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, elements: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.dcm: .*{message}"):
        read_image(changed(tmp_path / "a.dcm", **elements))


def test_colour_that_is_called_gray_is_refused(tmp_path: Path) -> None:
    colour = np.zeros((15, 20, 3), np.uint8)
    path = changed(tmp_path / "a.dcm", colour, PhotometricInterpretation="MONOCHROME2")
    with pytest.raises(DataError, match="interpretation MONOCHROME2, but 3 values a pixel"):
        read_image(path)


def test_colour_without_planar_configuration_is_read(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (15, 20, 3)).astype(np.uint8)
    found = pixels(changed(tmp_path / "a.dcm", colour, PlanarConfiguration=None))
    np.testing.assert_array_equal(found, colour)


def test_overlays_in_unused_bits_are_no_part_of_the_picture(tmp_path: Path) -> None:
    low = (STORED & 0xFF).astype(np.uint16)
    overlaid = low | ((STORED % 2) << 12).astype(np.uint16)

    def edit(header: Dataset) -> None:
        header.BitsStored, header.HighBit = 8, 7
        header.add_new((0x6000, 0x0102), "US", 12)

    plain = edited(tmp_path / "a.dcm", low, edit)
    np.testing.assert_array_equal(edited(tmp_path / "b.dcm", overlaid, edit), plain)


def edited(path: Path, stored: np.ndarray, edit: Callable[[Dataset], None]) -> np.ndarray:
    write_dicom(path, stored)
    header = dcmread(path)
    edit(header)
    header.save_as(path)
    return pixels(path)
