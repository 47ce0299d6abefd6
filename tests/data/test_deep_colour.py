"""Colour of 16 bits a channel: read as gray of 16 bits is, by the values and not the upper byte."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastht.data import DataError, read_image

RAMP = np.tile(np.linspace(0, 255, 64), (48, 1))[..., None].repeat(3, -1)
RGB, GRAY_ALPHA, RGB_ALPHA = 2, 4, 6  # PNG's colour types


def png(values: np.ndarray, kind: int, key: tuple[int, ...] = (), exif: int | None = None) -> bytes:
    """A PNG of 16 bits a channel, which PIL cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if key:
        parts.append(chunk(b"tRNS", struct.pack(">HHH", *key)))
    if exif is not None:
        turn = Image.Exif()
        turn[0x0112] = exif
        parts.append(chunk(b"eXIf", turn.tobytes().removeprefix(b"Exif\0\0")))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, order: str, compression: int = 1, photometric: int = 2) -> bytes:
    """A TIFF of 16 bits a channel; compression: 1 is none, 8 deflate."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compression == 8 else data
    data += b"\0" * (len(data) % 2)
    tags = [(256, width), (257, height), (258, None), (259, compression), (262, photometric)]
    tags += [(273, 8), (277, channels), (278, height), (279, len(data)), (284, 1)]
    if channels == 4 and photometric == 2:
        tags.append((338, 2))  # alpha that is not multiplied in
    table = struct.pack(f"{order}H", len(tags))
    after = 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, value in tags:
        count, kind = (channels, 3) if value is None else (1, 4)
        cell = after if value is None else value
        table += struct.pack(f"{order}HHII", tag, kind, count, cell)
    table += struct.pack(f"{order}I", 0) + struct.pack(f"{order}{channels}H", *[16] * channels)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}I", 8 + len(data)) + data + table


def pixels(content: bytes) -> np.ndarray:
    image = read_image(content, name="a.png")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(("factor", "top"), [(257, 65535), (16, 4095), (1, 255)])
def test_values_are_scaled_as_those_of_gray_are(factor: int, top: int) -> None:
    values = np.rint(RAMP * factor).astype(np.uint16)
    stream = io.BytesIO()
    Image.fromarray(values[..., 0]).save(stream, "PNG")
    gray = pixels(stream.getvalue())
    for content in (png(values, RGB), tiff(values, "<"), tiff(values, ">"), tiff(values, "<", 8)):
        found = pixels(content)
        np.testing.assert_array_equal(found, gray)
        np.testing.assert_array_equal(found, np.rint(values * (255 / top)).astype(np.uint8))


def test_channels_share_one_range() -> None:
    values = np.zeros((4, 5, 3), np.uint16)
    values[..., 0], values[..., 1] = 4000, 100
    assert pixels(png(values, RGB))[0, 0].tolist() == [249, 6, 0]


def test_every_bit_of_both_bytes_counts() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    values[0, 0] = 65535
    expected = np.rint(values / 257).astype(np.uint8)
    for content in (png(values, RGB), tiff(values, ">", 8)):
        np.testing.assert_array_equal(pixels(content), expected)
    assert (expected != values >> 8).any()  # the upper byte alone is something else


def test_transparency_is_composited_on_black() -> None:
    values = np.full((4, 6, 4), 65535, np.uint16)
    values[:, :2, 3], values[:, 2:4, 3] = 0, 32768
    for content in (png(values, RGB_ALPHA), tiff(values, "<")):
        assert pixels(content)[0, ::2, 1].tolist() == [0, 128, 255]
    gray = png(values[..., 2:], GRAY_ALPHA)
    assert pixels(gray)[0, ::2].tolist() == [[0] * 3, [128] * 3, [255] * 3]
    values[:, :3, :3] = (1000, 2000, 3000)
    assert pixels(png(values[..., :3], RGB, key=(1000, 2000, 3000)))[0, ::3, 0].tolist() == [0, 255]


def test_orientation_is_applied() -> None:
    values = np.zeros((3, 5, 3), np.uint16)
    values[0, 0] = 65535
    found = pixels(png(values, RGB, exif=6))  # turn by 90 degrees clockwise
    assert found.shape == (5, 3, 3)
    assert found[0, 2].tolist() == [255] * 3
    assert int(found.sum()) == 3 * 255


def test_what_cannot_be_read_whole_is_refused() -> None:
    printed = tiff(np.full((3, 4, 4), 99, np.uint16), "<", photometric=5)
    with pytest.raises(DataError, match=r"a\.tif: CMYK of 16 bits a channel cannot be read whole"):
        read_image(printed, name="a.tif")


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(np.rint(RAMP * 257).astype(np.uint16), RGB)[:200])
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        read_image(tmp_path / "a.png")
