"""Images into the square and maps back: nothing moves, nothing of the border comes along."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fastht.data.resize import Placement, Resize, place, shrink_mask

SIZE = 112
RADIUS = 60.0


def centres(length: int, placed: int, start: int) -> Tensor:
    """Where the centres of the square's pixels lie in an image's own pixels, along one axis."""
    return (torch.arange(SIZE) + 0.5 - start) * length / placed - 0.5


def ideal(shape: tuple[int, int], centre: tuple[float, float], resize: Resize) -> Tensor:
    """What a perfect model puts out for a disc: the distance to its rim, sampled in the square."""
    height, width = shape
    if resize == "squash":
        rows, columns = centres(height, SIZE, 0), centres(width, SIZE, 0)
    else:
        tall, wide = round(SIZE * height / max(shape)), round(SIZE * width / max(shape))
        rows = centres(height, tall, (SIZE - tall) // 2)
        columns = centres(width, wide, (SIZE - wide) // 2)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return RADIUS - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt()


def rim_error(mask: Tensor, centre: tuple[float, float]) -> float:
    """By how many pixels the rim of a mask lies off the disc's, at the worst place."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in mask.shape), indexing="ij")
    off = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt() - RADIUS
    wrong = mask != (off < 0)
    return off[wrong].abs().max().item() if wrong.any() else 0.0


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
@pytest.mark.parametrize("shape", [(300, 400), (401, 203), (160, 160), (1000, 700)])
def test_a_disc_comes_back_to_half_a_pixel(shape: tuple[int, int], resize: Resize) -> None:
    centre = (0.45 * shape[0] + 0.3, 0.55 * shape[1] - 0.2)
    margin = ideal(shape, centre, resize)
    placement = place(shape, SIZE, resize)
    found = placement.restore(margin[None, None], shape)[0, 0]
    assert found.shape == shape
    assert rim_error(found > 0, centre) < 0.25
    # The check sees a pixel of the square, corners for centres, and swapped axes.
    shifted = placement.restore(margin.roll(1, 0)[None, None], shape)[0, 0]
    assert rim_error(shifted > 0, centre) > 0.5
    cut = placement.cut(margin)[None, None]
    corners = torch.nn.functional.interpolate(cut, shape, mode="bilinear", align_corners=True)
    if max(shape) > 2 * SIZE:
        assert rim_error(corners[0, 0] > 0, centre) > 0.45
    if shape[0] != shape[1]:
        swapped = place(shape[::-1], SIZE, resize).restore(margin[None, None], shape)[0, 0]
        assert resize == "squash" or rim_error(swapped > 0, centre) > 0.5
        turned = placement.restore(margin.T[None, None], shape)[0, 0]
        assert rim_error(turned > 0, centre) > 0.5


def test_letterboxes_keep_the_shape_and_lie_in_the_middle() -> None:
    assert place((300, 400), 112, "letterbox") == Placement(112, 14, 0, 84, 112)
    assert place((400, 300), 112, "letterbox") == Placement(112, 0, 14, 112, 84)
    assert place((50, 50), 112, "letterbox") == Placement(112, 0, 0, 112, 112)
    assert place((1, 1000), 112, "letterbox") == Placement(112, 55, 0, 1, 112)
    assert place((300, 400), 112, "squash") == Placement(112, 0, 0, 112, 112)


@pytest.mark.parametrize("shape", [(300, 400), (401, 203), (10, 9)])
def test_what_is_padded_is_cut_again_and_the_border_is_zero(shape: tuple[int, int]) -> None:
    placement = place(shape, SIZE, "letterbox")
    image = torch.rand(3, placement.height, placement.width) + 1
    square = placement.pad(image)
    assert square.shape == (3, SIZE, SIZE)
    assert torch.equal(placement.cut(square), image)
    assert torch.equal(placement.inside(), square[0] > 0)
    assert int(placement.inside().sum()) == placement.height * placement.width


def test_the_border_does_not_come_along() -> None:
    placement = place((60, 200), SIZE, "letterbox")
    maps = torch.where(placement.inside(), 1.0, float("nan"))
    found = placement.restore(maps[None, None], (60, 200))
    assert torch.equal(found, torch.ones(1, 1, 60, 200))


def test_fewer_pixels_are_averages() -> None:
    maps = (torch.arange(SIZE) % 2).float().expand(1, 1, SIZE, SIZE)
    found = place((8, 8), SIZE, "squash").restore(maps, (8, 8))
    torch.testing.assert_close(found, torch.full((1, 1, 8, 8), 0.5), atol=0.02, rtol=0)


# Masks


def lesion(height: int, width: int, row: int, column: int, size: int = 3) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[row : row + size, column : column + size] = 1
    return mask


@given(
    st.integers(8, 900),
    st.integers(8, 900),
    st.data(),
)
def test_no_lesion_vanishes(height: int, width: int, data: st.DataObject) -> None:
    row, column = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    small = shrink_mask(lesion(height, width, row, column, size=1), (56, 40))
    most = (1 + math.ceil(40 / height)) * (1 + math.ceil(56 / width))
    assert 1 <= small.sum() <= most
    rows, columns = small.nonzero()
    assert abs((rows.mean() + 0.5) * height / 40 - row - 0.5) <= max(1, height / 40)
    assert abs((columns.mean() + 0.5) * width / 56 - column - 0.5) <= max(1, width / 56)


def test_a_lesion_on_the_edge_of_two_pixels_stays() -> None:
    small = shrink_mask(lesion(132, 8, 49, 0, size=1), (56, 40))
    assert set(small.nonzero()[0]) <= {14, 15}
    assert small.any()


def test_a_small_lesion_beside_a_large_one_stays() -> None:
    mask = lesion(800, 1000, 405, 503) | lesion(800, 1000, 600, 100, size=80)
    by_nearest = np.array(Image.fromarray(mask).resize((112, 112), Image.Resampling.NEAREST))
    assert by_nearest[:75].sum() == 0  # the small one falls between the pixels
    small = shrink_mask(mask, (112, 112))
    assert 1 <= small[:75].sum() <= 2
    assert (small[75:] == by_nearest[75:]).all()  # the large one is as it was


def test_what_nearest_neighbour_keeps_is_not_changed() -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 2, (20, 30)).astype(np.uint8)
    mask = coarse.repeat(9, axis=0).repeat(9, axis=1)
    assert (shrink_mask(mask, (30, 20)) == coarse).all()
    assert (shrink_mask(coarse, (270, 180)) == mask).all()
    assert not shrink_mask(np.zeros((300, 300), np.uint8), (20, 20)).any()
