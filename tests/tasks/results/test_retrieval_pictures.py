"""The picture of what texts find: every image is there, and the right ones are framed."""

import numpy as np
import pytest
from PIL import Image

from fastht.tasks.results.figure_style import GREEN
from fastht.tasks.results.retrieval_pictures import Found, draw_found

RED = (255, 0, 0)
FRAME = tuple(int(GREEN[i : i + 2], 16) for i in (1, 3, 5))


def pixels(path, colour):
    """Count the pixels of a colour, but for antialiasing."""
    with Image.open(path) as picture:
        away = np.abs(np.asarray(picture.convert("RGB")).astype(int) - colour).max(axis=2)
    return int((away < 8).sum())


def found(right):
    return Found(Image.new("RGB", (30, 20), RED), 0.5, right)


def test_all_images_are_drawn_and_the_right_ones_framed(tmp_path):
    counts, reds = [], []
    for name, rights in {
        "none": (False, False, False),
        "one": (False, True, False),
        "two": (True, True, False),
    }.items():
        rows = [("A $5 caption", [found(right) for right in rights])]
        draw_found(tmp_path / f"{name}.png", rows, "title")
        counts.append(pixels(tmp_path / f"{name}.png", FRAME))
        reds.append(pixels(tmp_path / f"{name}.png", RED))
    assert counts[0] == 0
    assert counts[1] > 200
    assert counts[2] == pytest.approx(2 * counts[1], rel=0.1)
    assert min(reds) > 10_000


def test_unjudged_images_have_no_green_frame_and_rows_may_differ_in_length(tmp_path):
    rows = [("a", [found(None)] * 2), ("b" * 300, [found(None)] * 5)]
    draw_found(tmp_path / "found.png", rows, "title")
    assert pixels(tmp_path / "found.png", FRAME) == 0
    assert pixels(tmp_path / "found.png", RED) > 10_000


@pytest.mark.parametrize("rows", [[], [("text", [])]])
def test_nothing_to_draw_is_said(tmp_path, rows):
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_found(tmp_path / "found.png", rows, "title")
