"""read_mask on files of every kind, sound and damaged."""

from pathlib import Path

import numpy as np
import pytest
from miniature_sets import HEIGHT, WIDTH, blob, draw, picture
from PIL import Image

from fastht.data import Case, DataError, read_mask

MASK = blob(3, 2)


@pytest.fixture
def image(tmp_path: Path) -> str:
    picture(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def masked(image: str, *masks: Path) -> Case:
    return Case("image", image, tuple(map(str, masks)))


@pytest.mark.parametrize("foreground", [1, 128, 255])
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
def test_values_of_foreground(image: str, tmp_path: Path, foreground: int, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    draw(path, MASK, foreground)
    found = read_mask(masked(image, path))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, MASK)


def test_one_bit_16_bit_colour_and_transparency(image: str, tmp_path: Path) -> None:
    colour = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colour[..., 0] = 255 * MASK  # red: a luminance of 76
    clear = np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), 255 * MASK])
    kinds = {
        "bit.png": Image.fromarray(MASK.astype(bool)),
        "deep.png": Image.fromarray(MASK.astype(np.uint16) * 65535),
        "colour.png": Image.fromarray(colour),
        "clear.png": Image.fromarray(clear),
    }
    for name, kind in kinds.items():
        kind.save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(masked(image, tmp_path / name)), MASK, name)


def test_jpeg_noise_and_soft_edges_do_no_harm(image: str, tmp_path: Path) -> None:
    large = np.kron(MASK, np.ones((7, 7), np.uint8))  # not in step with JPEG's blocks
    Image.fromarray(large * 255).save(tmp_path / "m.jpg", quality=75)
    stored = np.asarray(Image.open(tmp_path / "m.jpg"))
    assert ((stored > 0) & (stored < 255)).any()
    case = masked(image, tmp_path / "m.jpg")
    np.testing.assert_array_equal(read_mask(case, size=large.shape[::-1]), large)


def test_union_of_several(image: str, tmp_path: Path) -> None:
    parts = [draw(tmp_path / f"{i}.png", blob(4 * i, i), (255, 1, 255)[i]) for i in range(3)]
    found = read_mask(masked(image, *(tmp_path / f"{i}.png" for i in range(3))))
    np.testing.assert_array_equal(found, parts[0] | parts[1] | parts[2])


def test_empty_mask(image: str, tmp_path: Path) -> None:
    draw(tmp_path / "m.png", 0 * MASK)
    assert not read_mask(masked(image, tmp_path / "m.png")).any()


def test_damage_is_named(image: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image\.png: no mask; add one, all black"):
        read_mask(Case("image", image))
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        read_mask(masked(image, tmp_path / "gone.png"))
    draw(tmp_path / "turned.png", MASK.T)
    message = rf"turned\.png: the mask has {HEIGHT} x {WIDTH} .*image\.png has {WIDTH} x {HEIGHT};"
    with pytest.raises(DataError, match=message):
        read_mask(masked(image, tmp_path / "turned.png"))
    draw(tmp_path / "classes.png", MASK, foreground=3)
    with pytest.raises(DataError, match=r"classes\.png: .* 0 to 3, neither 0/1 nor 0/255; write"):
        read_mask(masked(image, tmp_path / "classes.png"))
    (tmp_path / "broken.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        read_mask(masked(image, tmp_path / "broken.png"))


# Masks of several values


def regions(*values: int | tuple[int, int, int]) -> np.ndarray:
    """A picture with a square of 6 x 6 pixels of each value."""
    squares = [np.zeros((12, 12, 3), np.uint8) for _ in values]
    for square, value in zip(squares, values, strict=True):
        square[3:9, 3:9] = value
    return np.hstack(squares)


def read(tmp_path: Path, drawn: np.ndarray, name: str = "m.png", **options: int) -> np.ndarray:
    Image.fromarray(drawn).save(tmp_path / name, **options)
    picture_of = tmp_path / "i.png"
    Image.fromarray(np.zeros(drawn.shape[:2], np.uint8)).save(picture_of)
    return read_mask(masked(str(picture_of), tmp_path / name))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ((85, 170, 255), "255, 170, 85"),
        ((128, 255), "255, 128"),
        ((100, 200), "200, 100"),
        (((255, 0, 0), (0, 255, 0)), "255/0/0, 0/255/0"),
        (((128, 0, 0), (0, 128, 0)), "128/0/0, 0/128/0"),
    ],
)
def test_regions_of_several_values_are_refused(
    tmp_path: Path, values: tuple[int, ...], told: str
) -> None:
    with pytest.raises(DataError, match=rf"m\.png: the mask has regions of several .*\({told}\)"):
        read(tmp_path, regions(*values))


def test_gray_masks_of_several_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"regions of several values \(255, 100\); write the"):
        read(tmp_path, regions(100, 255)[..., 0])


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_the_noise_of_jpeg_is_no_region(tmp_path: Path, quality: int) -> None:
    y, x = np.mgrid[:200, :300]
    disc = ((y - 90) ** 2 + (x - 140) ** 2 < 50**2).astype(np.uint8)
    found = read(tmp_path, disc * np.uint8(255), "m.jpg", quality=quality)
    assert (found != disc).mean() < 0.002


def test_soft_edges_are_no_region(tmp_path: Path) -> None:
    large = Image.fromarray(regions(255, 255)).resize((480, 240), Image.Resampling.BICUBIC)
    found = read(tmp_path, np.asarray(large))
    assert found.mean() == pytest.approx(0.25, abs=0.01)


def test_a_mask_of_one_odd_value_is_its_foreground(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, regions(0, 200)[..., 0]), regions(0, 1)[..., 0])


def test_exif_that_turned_the_image_alone_is_told(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "i.jpg", exif=exif)
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match="EXIF turns the image by 90 degrees: was the mask drawn"):
        read_mask(masked(str(tmp_path / "i.jpg"), tmp_path / "m.png"))
