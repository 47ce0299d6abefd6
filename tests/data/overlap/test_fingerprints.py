"""Hashes of images: pHash as the library has it, of windows too; written and read again."""

from importlib import resources
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image

from fastht.data import DataError
from fastht.data.cases import Case
from fastht.data.overlap import fingerprints
from fastht.data.overlap.fingerprints import (
    BITS,
    SIDE,
    WINDOWS,
    Fingerprints,
    fingerprint,
    flatten,
    square_of,
    window_hashes,
)

SAMPLE = Path(str(resources.files("fastht.data"))) / "sample" / "images"


def square(number: int) -> np.ndarray:
    with Image.open(SAMPLE / f"{number:04d}.jpg") as image:
        return square_of(image)


def test_windows_have_the_hash_of_the_library() -> None:
    picture = fingerprints._as_picture(flatten(square(3)))
    bits = np.unpackbits(window_hashes(square(3)[None])[0], axis=1)
    for window, (top, bottom, left, right) in enumerate(WINDOWS):
        box = (left * SIDE, top * SIDE, (1 - right) * SIDE, (1 - bottom) * SIDE)
        part = picture.resize((64, 64), Image.Resampling.LANCZOS, box=box)
        expected = imagehash.phash(part, hash_size=16).hash.ravel()
        differing = int((bits[window] != expected).sum())
        assert differing <= (0 if window == 0 else 6), window  # gray levels are rounded
    assert int((bits[0] != bits[-1]).sum()) > BITS // 8  # windows do have hashes of their own


def test_brightness_and_contrast_change_little_of_a_flattened_square() -> None:
    plain = square(5)
    changed = (plain * 0.7 + 20).astype(np.uint8)
    correlation = np.corrcoef(flatten(plain).ravel(), flatten(changed).ravel())[0, 1]
    assert correlation > 0.98
    assert np.corrcoef(flatten(plain).ravel(), flatten(square(9)).ravel())[0, 1] < 0.5


def test_what_is_kept_reads_as_written_and_holds_no_picture(tmp_path: Path) -> None:
    cases = [Case(str(n), str(SAMPLE / f"{n:04d}.jpg")) for n in (1, 2)]
    made = fingerprint(cases, squares=False)
    made.save(tmp_path / "prints.npz")
    read = Fingerprints.load(tmp_path / "prints.npz")
    assert read.images == made.images == tuple(case.image for case in cases)
    for name in ("contents", "pixels", "hashes", "plain"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    assert read.squares is None
    assert (tmp_path / "prints.npz").stat().st_size < 2 * 4000


def test_damaged_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "prints.npz").write_bytes(b"PK broken")
    with pytest.raises(DataError, match=r"prints\.npz: cannot be read .* copy the run again"):
        Fingerprints.load(tmp_path / "prints.npz")


def test_images_that_cannot_be_read_are_told_and_match_nothing(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    found = fingerprint([Case("bad", str(bad)), Case("gone", str(tmp_path / "gone.png"))])
    assert len(found.unreadable) == 2
    assert not found.pixels.any()
    assert found.plain.all()


def test_hashes_do_not_depend_on_what_is_hashed_together() -> None:
    """To a few bits that rounding decides: of the nearest pair of 256 differ up to 72."""
    squares = np.stack([square(seed) for seed in range(3, 8)])
    together = np.unpackbits(window_hashes(squares), axis=2)
    for alone, found in zip(squares, together, strict=True):
        differing = np.unpackbits(window_hashes(alone[None])[0], axis=1) != found
        assert differing.sum(axis=1).max() <= 2
    assert (together[0] != together[1]).sum(axis=1).min() > BITS // 8
    assert window_hashes(squares[:0]).shape == (0, len(WINDOWS), BITS // 8)
