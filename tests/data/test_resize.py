"""Images into the square and maps back: nothing moves, nothing of the border comes along."""

import pytest
import torch
from torch import Tensor

from fastht.data.resize import Placement, Resize, place

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
