"""Mask scores against values computed by hand, and nothing dropped in silence."""

import math

import pytest
import torch

pytest.importorskip("monai")

from fastht.tasks.scores.segmentation import image_scores, summarise

SIZE = 8


def mask(*pixels):
    made = torch.zeros(SIZE, SIZE, dtype=torch.int64)
    for row, column in pixels:
        made[row, column] = 1
    return made


EMPTY, FULL = mask(), torch.ones(SIZE, SIZE, dtype=torch.int64)
SQUARE = mask(*((r, c) for r in range(2, 6) for c in range(2, 6)))
SHIFTED = mask(*((r, c) for r in range(2, 6) for c in range(3, 7)))


@pytest.mark.parametrize(
    ("prediction", "truth", "dice", "iou", "hd95", "asd"),
    [
        (EMPTY, EMPTY, 1, 1, math.nan, math.nan),
        (EMPTY, SQUARE, 0, 0, math.nan, math.nan),
        (SQUARE, EMPTY, 0, 0, math.nan, math.nan),
        (FULL, FULL, 1, 1, 0, 0),
        (SQUARE, SQUARE, 1, 1, 0, 0),
        (mask((2, 2)), mask((2, 2)), 1, 1, 0, 0),
        (mask((2, 2)), mask((5, 6)), 0, 0, 5, 5),  # a 3-4-5 triangle
        (mask((0, 0)), FULL, 2 / 65, 1 / 64, None, 0),
        # 12 of 16 pixels in common; of the square's 12 border pixels four are one pixel away.
        (SQUARE, SHIFTED, 2 * 12 / 32, 12 / 20, 1, None),
    ],
)
def test_scores_of_one_image(prediction, truth, dice, iou, hd95, asd):
    scores = image_scores(prediction[None], truth[None])
    for name, expected in {"dice": dice, "iou": iou, "hd95": hd95, "asd": asd}.items():
        if expected is not None:
            assert scores[name] == pytest.approx([expected], nan_ok=True), name


def test_surface_distance_by_hand():
    def border(square):
        rows, columns = square.nonzero().unbind(1)
        edge = (rows == rows.min()) | (rows == rows.max())
        edge |= (columns == columns.min()) | (columns == columns.max())
        return torch.stack([rows[edge], columns[edge]], 1).double()

    nearest = torch.cdist(border(SQUARE), border(SHIFTED)).min(dim=1).values
    scores = image_scores(SQUARE[None], SHIFTED[None])
    assert scores["asd"] == pytest.approx([nearest.mean().item()])


def test_a_batch_is_its_images_and_the_summary_counts_what_has_no_distance():
    predictions = torch.stack([SQUARE, EMPTY, SQUARE, EMPTY])
    truths = torch.stack([SQUARE, SQUARE, EMPTY, EMPTY])
    scores = image_scores(predictions, truths)
    assert scores["dice"] == [1, 0, 0, 1]
    summary = summarise(scores)
    assert summary["dice"] == 0.5
    assert summary["dice_std"] == 0.5
    assert summary["hd95"] == 0  # of the one image that has a distance
    counts = ("images", "empty_predictions", "empty_truths", "without_distance")
    assert [summary[name] for name in counts] == [4, 1, 2, 3]


def test_summary_of_images_without_any_distance_is_nan_and_not_perfect():
    summary = summarise(image_scores(EMPTY[None], SQUARE[None]))
    assert math.isnan(summary["hd95"])
    assert math.isnan(summary["asd_std"])
    assert summary["dice"] == 0
