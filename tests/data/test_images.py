"""read_image on files of every kind that it promises, sound and damaged."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG4HP41,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from fastht.data import DataError, read_image

RAMP8 = np.arange(256, dtype=np.uint8).reshape(16, 16)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def gray(image: Image.Image) -> np.ndarray:
    """The one channel of an image whose three must be equal."""
    values = pixels(image)
    assert (values == values[..., :1]).all()
    return values[..., 0]


def scaled(values: np.ndarray, top: int) -> np.ndarray:
    return np.rint(values.astype(float) * 255 / top)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


# Pictures


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "webp", "gif"])
def test_lossless_formats_gray(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(RAMP8), **options)
    np.testing.assert_array_equal(gray(read_image(path)), RAMP8)


def test_path_string_and_bytes_agree(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(rgb))
    for source in (path, str(path), path.read_bytes()):
        np.testing.assert_array_equal(pixels(read_image(source)), rgb)


def test_jpeg_gray_and_cmyk(tmp_path: Path) -> None:
    flat = save(tmp_path / "l.jpg", Image.new("L", (16, 16), 77))
    assert (gray(read_image(flat)) == 77).all()
    cmyk = save(tmp_path / "c.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=100)
    np.testing.assert_allclose(pixels(read_image(cmyk))[4, 4], (255, 0, 0), atol=3)


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RAMP8 > 99))
    np.testing.assert_array_equal(gray(read_image(path)), np.where(RAMP8 > 99, 255, 0))


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = save(tmp_path / "a.png", image)
    np.testing.assert_array_equal(pixels(read_image(path)), [[(10, 20, 30), (200, 100, 50)]])


def test_transparency_is_composited_on_black(tmp_path: Path) -> None:
    rgba = np.array([[(200, 100, 50, 255), (200, 100, 50, 0), (200, 100, 50, 51)]], np.uint8)
    path = save(tmp_path / "rgba.png", Image.fromarray(rgba))
    found = pixels(read_image(path))
    np.testing.assert_array_equal(found, [[(200, 100, 50), (0, 0, 0), (40, 20, 10)]])
    la = Image.fromarray(np.array([[(200, 255), (200, 0)]], np.uint8), "LA")
    np.testing.assert_array_equal(gray(read_image(save(tmp_path / "la.png", la))), [[200, 0]])
    palette = Image.new("P", (1, 1))
    palette.putpalette([250, 250, 250])
    path = save(tmp_path / "p.png", palette, transparency=0)
    assert (gray(read_image(path)) == 0).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8) * 30, 16).reshape(8, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    upright = read_image(save(tmp_path / "a.png", image, exif=exif))
    np.testing.assert_array_equal(gray(upright), np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("maximum", "top"), [(200, 255), (4095, 4095), (3000, 4095), (40000, 65535)]
)
def test_deep_gray_is_scaled_not_clipped(
    tmp_path: Path, suffix: str, maximum: int, top: int
) -> None:
    values = np.linspace(0, maximum, 64).astype(np.uint16).reshape(8, 8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(gray(read_image(path)), scaled(values, top))


def test_deep_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    # Tag 262 = 0: white is zero. PIL stores and returns the values as they are.
    path = save(tmp_path / "a.tif", Image.fromarray(values), tiffinfo={262: 0})
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0  # the file is what this test is about
    np.testing.assert_array_equal(gray(read_image(path)), 255 - scaled(values, 65535))


def test_integers_without_a_range_use_their_own(tmp_path: Path) -> None:
    values = np.array([[-100, 0, 100]], np.int32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    np.testing.assert_array_equal(gray(read_image(path)), [[0, 128, 255]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 0.25, 0.5], [0, 64, 128]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-60.0, -30.0, 0.0], [0, 128, 255]),  # decibels
        ([-5.0, -5.0, -5.0], [0, 0, 0]),
    ],
)
@pytest.mark.filterwarnings("error")  # as a division by zero would give
def test_float_tiff(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([values], np.float32)))
    np.testing.assert_array_equal(gray(read_image(path)), [expected])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_float_is_refused(tmp_path: Path, bad: float) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(np.array([[0.1, bad]], np.float32)))
    with pytest.raises(DataError, match=r"a\.tif.*NaN or Inf"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["tif", "gif"])
def test_frames_of_one_file(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("L", (4, 4), 10 * i) for i in range(5)]
    path = save(tmp_path / f"a.{suffix}", pages[0], save_all=True, append_images=pages[1:])
    assert gray(read_image(path))[0, 0] == 20
    assert gray(read_image(path, frame=4))[0, 0] == 40
    with pytest.raises(DataError, match=rf"a\.{suffix}: no frame 5; the file has frames 0 to 4"):
        read_image(path, frame=5)
    with pytest.raises(DataError, match="no frame -1"):
        read_image(path, frame=-1)


def test_frames_of_a_gif_are_whole_pictures(tmp_path: Path) -> None:
    """The file holds what changes from one to the next alone."""
    rng = np.random.default_rng(0)
    clip = np.repeat(rng.integers(0, 200, (1, 12, 16, 1), dtype=np.uint8), 4, axis=0)
    clip = np.repeat(clip, 3, axis=-1)
    for i in range(4):
        clip[i, 3:6, 2 + 3 * i : 4 + 3 * i] = (250, 10 * i, 0)
    first, *others = map(Image.fromarray, clip)
    path = save(tmp_path / "clip.gif", first, save_all=True, append_images=others)
    for i in range(4):
        np.testing.assert_array_equal(pixels(read_image(path, frame=i)), clip[i])
    np.testing.assert_array_equal(pixels(read_image(path)), clip[1])
    damaged = tmp_path / "cut.gif"
    damaged.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"cut\.gif: .*export it again"):
        read_image(damaged)


# Damage


def test_damaged_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    jpeg = save(tmp_path / "whole.jpg", Image.fromarray(noise)).read_bytes()
    png = save(tmp_path / "whole.png", Image.fromarray(noise)).read_bytes()
    damaged = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "corrupt.png": png[:200] + bytes(64) + png[264:],
        "empty.png": b"",
        "text.png": b"this is not an image",
        "text.dcm": b"this is not an image",
        "mark_only.dcm": bytes(128) + b"DICM",
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
        with pytest.raises(DataError, match=f"shard::{name}"):
            read_image(data, name=f"shard::{name}")


def test_empty_and_missing_files_and_directory(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png: the file is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match=str(tmp_path)):
        read_image(tmp_path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastht.data.pixels.MAX_PIXELS", 99)
    assert read_image(save(tmp_path / "fits.png", Image.new("L", (9, 11)))).size == (9, 11)
    with pytest.raises(DataError, match=r"large\.png: more than 99 pixels"):
        read_image(save(tmp_path / "large.png", Image.new("L", (10, 10))))
    with pytest.raises(DataError, match=r"large\.dcm: more than 99 pixels"):
        read_image(write_dicom(tmp_path / "large.dcm", np.zeros((10, 10), np.uint8)))
    pages = [Image.new("L", (2, 2)), Image.new("L", (10, 10))]
    path = save(tmp_path / "page.tif", pages[0], save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"page\.tif: more than 99 pixels"):
        read_image(path, frame=1)


def test_bomb_of_pillows_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.new("L", (10, 10)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match=r"a\.png: more than"):
        read_image(path)


# DICOM


@pytest.mark.parametrize("name", ["a.dcm", "a.IMA", "no_suffix"])
def test_dicom_8_bit_is_unchanged(tmp_path: Path, name: str) -> None:
    path = write_dicom(tmp_path / name, RAMP8)
    np.testing.assert_array_equal(gray(read_image(path)), RAMP8)
    np.testing.assert_array_equal(gray(read_image(path.read_bytes())), RAMP8)


def test_dicom_monochrome1_is_inverted(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(gray(read_image(path)), 255 - RAMP8)


def test_dicom_multiframe(tmp_path: Path) -> None:
    cine = np.repeat(np.arange(7, dtype=np.uint8) * 10, 16).reshape(7, 4, 4)
    path = write_dicom(tmp_path / "a.dcm", cine, NumberOfFrames=7)
    assert (gray(read_image(path)) == 30).all()
    assert (gray(read_image(path, frame=0)) == 0).all()
    assert (gray(read_image(path, frame=6)) == 60).all()
    for frame in (7, -1):
        with pytest.raises(DataError, match=rf"a\.dcm: no frame {frame}; .* 0 to 6"):
            read_image(path, frame=frame)
    even = write_dicom(tmp_path / "even.dcm", cine[:6], NumberOfFrames=6)
    assert (gray(read_image(even)) == 20).all()


def test_dicom_decodes_only_the_frame_asked_for(tmp_path: Path) -> None:
    frames = []
    for value in (40, 80, 120):
        stream = io.BytesIO()
        Image.new("L", (16, 16), value).save(stream, "JPEG")
        frames.append(stream.getvalue())
    frames[1] = bytes(len(frames[1]))
    path = write_dicom(
        tmp_path / "a.dcm",
        np.zeros((3, 16, 16), np.uint8),
        NumberOfFrames=3,
        TransferSyntaxUID=JPEGBaseline8Bit,
        PixelData=encapsulate(frames),
    )
    assert (gray(read_image(path, frame=2)) == 120).all()
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_image(path, frame=1)


@pytest.mark.parametrize("planar", [0, 1])
def test_dicom_rgb(tmp_path: Path, planar: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    stored = rgb if planar == 0 else np.moveaxis(rgb, -1, 0)
    path = write_dicom(
        tmp_path / "a.dcm", rgb, PlanarConfiguration=planar, PixelData=stored.tobytes()
    )
    np.testing.assert_array_equal(pixels(read_image(path)), rgb)


def test_dicom_ybr_full_is_converted(tmp_path: Path) -> None:
    rgb = np.array([[(200, 30, 60), (10, 240, 90), (128, 128, 128)]], np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(pixels(read_image(path)).astype(int), rgb, atol=3)


def test_dicom_ybr_full_422_native_and_jpeg(tmp_path: Path) -> None:
    rgb = np.full((8, 8, 3), (200, 30, 60), np.uint8)
    y, cb, cr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))[0, 0]
    path = write_dicom(
        tmp_path / "native.dcm",
        rgb,
        PhotometricInterpretation="YBR_FULL_422",
        PixelData=bytes([y, y, cb, cr] * 32),
    )
    np.testing.assert_allclose(pixels(read_image(path)).astype(int), rgb, atol=3)
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "JPEG", quality=95, subsampling="4:2:2")
    path = write_dicom(
        tmp_path / "jpeg.dcm",
        rgb,
        PhotometricInterpretation="YBR_FULL_422",
        TransferSyntaxUID=JPEGBaseline8Bit,
        PixelData=encapsulate([stream.getvalue()]),
    )
    np.testing.assert_allclose(pixels(read_image(path)).astype(int), rgb, atol=4)


@pytest.mark.parametrize(("depth", "factor"), [(8, 1), (16, 257), (16, 1)])
def test_dicom_palette(tmp_path: Path, depth: int, factor: int) -> None:
    """Factor 1 at depth 16: 8-bit entries in a 16-bit table, as some vendors write them."""
    dtype = np.uint8 if depth == 8 else np.uint16
    table = {"Red": np.arange(256), "Green": 255 - np.arange(256), "Blue": np.full(256, 7)}
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, entries in table.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, depth]
        data = (entries * factor).astype(dtype).tobytes()
        elements[f"{colour}PaletteColorLookupTableData"] = data
    path = write_dicom(tmp_path / "a.dcm", RAMP8 // 2, **elements)
    expected = np.stack([entries[RAMP8 // 2] for entries in table.values()], -1)
    np.testing.assert_array_equal(pixels(read_image(path)), expected)


def test_dicom_12_bit_without_window_uses_bits_stored(tmp_path: Path) -> None:
    stored = np.arange(0, 2048, 32, dtype=np.uint16).reshape(8, 8)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12)
    np.testing.assert_array_equal(gray(read_image(path)), scaled(stored, 4095))


def test_dicom_12_bit_with_window(tmp_path: Path) -> None:
    stored = np.array([[0, 1000, 1500, 1999, 2000, 4095]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm", stored, BitsStored=12, WindowCenter=[1500, 40], WindowWidth=[1000, 80]
    )
    # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5), from x = 1000 to 1999
    np.testing.assert_array_equal(gray(read_image(path)), [[0, 0, 128, 255, 255, 255]])
    path = write_dicom(
        tmp_path / "exact.dcm",
        stored,
        BitsStored=12,
        WindowCenter=1500,
        WindowWidth=1000,
        VOILUTFunction="LINEAR_EXACT",
        PhotometricInterpretation="MONOCHROME1",
    )
    np.testing.assert_array_equal(gray(read_image(path)), [[255, 255, 127, 0, 0, 0]])


def test_dicom_sigmoid_window(tmp_path: Path) -> None:
    stored = np.array([[0, 100, 150, 4095]], np.uint16)
    path = write_dicom(
        tmp_path / "a.dcm",
        stored,
        BitsStored=12,
        WindowCenter=100,
        WindowWidth=200,
        VOILUTFunction="SIGMOID",
    )
    expected = [[round(255 / (1 + np.exp(-4 * (x - 100) / 200))) for x in (0, 100, 150, 4095)]]
    np.testing.assert_array_equal(gray(read_image(path)), expected)


@pytest.mark.filterwarnings("error")
def test_dicom_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8, WindowCenter=100, WindowWidth=1)
    np.testing.assert_array_equal(gray(read_image(path)), np.where(RAMP8 >= 100, 255, 0))


def test_dicom_window_without_width_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8, WindowCenter=100, WindowWidth=0)
    with pytest.raises(DataError, match=r"a\.dcm: Window Width is 0"):
        read_image(path)


def test_dicom_rescale_comes_before_the_window(tmp_path: Path) -> None:
    stored = np.array([[0, 500, 1000]], np.uint16)
    rescale = {"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": -1000}
    window = {"WindowCenter": 0.5, "WindowWidth": 1001, **rescale}  # -500..500
    path = write_dicom(tmp_path / "a.dcm", stored, **window)
    np.testing.assert_array_equal(gray(read_image(path)), [[0, 128, 255]])
    path = write_dicom(tmp_path / "plain.dcm", stored, **rescale)
    np.testing.assert_array_equal(gray(read_image(path)), scaled(stored, 4095))
    rescale["RescaleSlope"] = -2  # large stored values are dark then
    path = write_dicom(tmp_path / "falling.dcm", stored, **rescale)
    np.testing.assert_array_equal(gray(read_image(path)), 255 - scaled(stored, 4095))


def test_dicom_signed(tmp_path: Path) -> None:
    stored = np.array([[-2048, 0, 2047]], np.int16)
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12)
    np.testing.assert_array_equal(gray(read_image(path)), [[0, 128, 255]])


def test_dicom_voi_lut(tmp_path: Path) -> None:
    lut = Dataset()
    lut.LUTDescriptor = [4, 10, 8]
    lut.LUTData = [200, 100, 50, 25]
    lut["LUTData"].VR = "US"
    stored = np.array([[0, 10, 11, 13, 99]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, VOILUTSequence=[lut])
    np.testing.assert_array_equal(gray(read_image(path)), [[200, 200, 100, 25, 25]])


@pytest.mark.parametrize("identity", [{}, {"RescaleSlope": 1, "RescaleIntercept": 0}])
def test_dicom_16_stored_bits_may_hold_12(tmp_path: Path, identity: dict[str, int]) -> None:
    stored = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
    path = write_dicom(tmp_path / "a.dcm", stored, **identity)
    np.testing.assert_array_equal(gray(read_image(path)), scaled(stored, 4095))


def test_dicom_rle(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8)
    ds = pydicom.dcmread(path)
    ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(path)
    np.testing.assert_array_equal(gray(read_image(path)), RAMP8)


def test_dicom_missing_decoder_names_syntax_and_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pydicom.pixels.get_decoder", lambda syntax: SimpleNamespace(is_available=False)
    )
    path = write_dicom(
        tmp_path / "a.dcm",
        RAMP8,
        TransferSyntaxUID=JPEGLSLossless,
        PixelData=encapsulate([b"\xff\xd8"]),
    )
    with pytest.raises(DataError, match=r"a\.dcm.*JPEG-LS.*1\.2\.840.*\.80.*pip install .*pylibj"):
        read_image(path)


def test_dicom_video_names_the_syntax(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", RAMP8, TransferSyntaxUID=MPEG4HP41, PixelData=encapsulate([b"\0\0"])
    )
    with pytest.raises(DataError, match=r"a\.dcm.*MPEG-4.*1\.2\.840\.10008\.1\.2\.4\.102.*export"):
        read_image(path)


def test_dicom_truncated_or_without_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_image(path)
    path = write_dicom(tmp_path / "b.dcm", RAMP8)
    ds = pydicom.dcmread(path)
    del ds.PixelData
    ds.save_as(path)
    with pytest.raises(DataError, match=r"b\.dcm"):
        read_image(path)


def test_dicom_unknown_photometric_interpretation(tmp_path: Path) -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", rgb, PhotometricInterpretation="HSV")
    with pytest.raises(DataError, match=r"a\.dcm.*HSV"):
        read_image(path)


def test_dicom_without_pydicom_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP8)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r'a\.dcm.*pip install "fastht\[train\]"'):
        read_image(path)
