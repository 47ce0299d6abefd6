"""Scores at the image's own size: planted distances, spacing of both axes, MONAI's own metrics."""

import math

import pytest
import torch

pytest.importorskip("monai")

from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)

from fastht.tasks.scores.native import Tolerances, native_scores
from fastht.tasks.scores.segmentation import REFUSED, score_names, summarise

DEFAULT = Tolerances()
NSD_PX, NSD_MM = DEFAULT.names


def disc(shape, centre, radius):
    y, x = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).long()


def border(mask):
    padded = torch.nn.functional.pad(mask.bool(), (1, 1, 1, 1))
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return (mask.bool() & ~inner).nonzero().double()


def by_hand(prediction, truth, tolerance, spacing=(1.0, 1.0)):
    """HD95, ASD and surface Dice from all distances of border pixels."""
    scale = torch.tensor(spacing, dtype=torch.float64)
    distances = torch.cdist(border(prediction) * scale, border(truth) * scale)
    there, back = distances.min(dim=1).values, distances.min(dim=0).values
    hd95 = max(torch.quantile(one, 0.95).item() for one in (there, back))
    near = torch.cat([there, back]) <= tolerance + 1e-9
    return hd95, there.mean().item(), near.double().mean().item()


def test_names_state_the_tolerances():
    assert DEFAULT.names == ("nsd_native@2px", "nsd@1mm")
    assert Tolerances(1.5, 0.25).names == ("nsd_native@1.5px", "nsd@0.25mm")
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"tolerance_mm is .*; it must be a number from 0"):
            Tolerances(2, wrong)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.2, 0.05), (0.05, 0.2), (0.3, 0.3)])
def test_distances_are_those_by_hand(spacing):
    generator = torch.Generator().manual_seed(0)
    truth = disc((60, 90), (25, 40), 14)
    prediction = disc((60, 90), (28.5, 45), 11)
    prediction |= (torch.rand(60, 90, generator=generator) < 0.01).long()  # specks
    scores = native_scores(prediction, truth, DEFAULT, spacing)
    found = [scores[name] for name in ("hd95_mm", "asd_mm", NSD_MM)]
    assert found == pytest.approx(by_hand(prediction, truth, 1.0, spacing), rel=1e-5)
    found = [scores[name] for name in ("hd95_native_px", "asd_native_px", NSD_PX)]
    assert found == pytest.approx(by_hand(prediction, truth, 2.0), rel=1e-5)
    if spacing[0] != spacing[1]:
        swapped = native_scores(prediction, truth, DEFAULT, spacing[::-1])
        for name in ("hd95_mm", "asd_mm", NSD_MM):
            assert abs(swapped[name] - scores[name]) > 0.005, name  # 500 times what may differ


def test_a_disc_moved_by_known_pixels():
    shape, spacing = (200, 300), (0.2, 0.05)
    truth = disc(shape, (90, 120), 40)
    for (down, right), mm in (((0, 10), 0.5), ((10, 0), 2.0)):
        moved = disc(shape, (90 + down, 120 + right), 40)
        scores = native_scores(moved, truth, DEFAULT, spacing)
        # Of a rim moved by d, 5 % has moved more than 0.997 d along its normal.
        assert scores["hd95_native_px"] == pytest.approx(10, abs=0.3)
        assert scores["asd_native_px"] == pytest.approx(10 * 2 / math.pi, abs=0.4)
        # In millimetres the rims are ellipses, whose points are no farther apart than they moved.
        assert 0.5 * mm < scores["hd95_mm"] <= 1.001 * mm
        assert scores["hd95_mm"] == pytest.approx(by_hand(moved, truth, 1, spacing)[0], rel=1e-5)


@pytest.mark.parametrize("spacing", [None, (0.2, 0.05)])
def test_the_crop_changes_nothing_and_all_numbers_are_those_of_monai(spacing):
    # In a corner and at the border, where a crop or a margin could go wrong.
    cases = [
        (disc((120, 150), (5, 8), 14), disc((120, 150), (9, 4), 12)),
        (disc((120, 150), (60, 149), 20), disc((120, 150), (64, 140), 25)),
        (disc((120, 150), (10, 10), 3), disc((120, 150), (100, 140), 3)),
        (torch.ones(120, 150, dtype=torch.int64), disc((120, 150), (60, 75), 30)),
    ]
    for prediction, truth in cases:
        scores = native_scores(prediction, truth, Tolerances(2, 0.5), spacing)
        one, other = (
            torch.stack([1 - mask, mask])[None].float() for mask in (prediction, truth)
        )  # the whole image
        assert scores["dice_native"] == pytest.approx(
            compute_dice(one, other, include_background=False).item(), rel=1e-6
        )
        assert scores["iou_native"] == pytest.approx(
            compute_iou(one, other, include_background=False).item(), rel=1e-6
        )
        units = [("hd95_native_px", "asd_native_px", "nsd_native@2px", None, 2.0)]
        if spacing is not None:
            units.append(("hd95_mm", "asd_mm", "nsd@0.5mm", spacing, 0.5))
        for hd95, asd, nsd, scale, tolerance in units:
            options = {"include_background": False, "spacing": scale}
            whole = {
                hd95: compute_hausdorff_distance(one, other, percentile=95, **options),
                asd: compute_average_surface_distance(one, other, **options),
                nsd: compute_surface_dice(one, other, [tolerance], **options),
            }
            for name, value in whole.items():
                assert scores[name] == value.item(), name


def test_empty_masks_are_as_at_the_models_size():
    empty, filled = torch.zeros(9, 7, dtype=torch.int64), disc((9, 7), (4, 3), 2)
    for prediction, truth, agreement in (
        (empty, empty, 1),
        (empty, filled, 0),
        (filled, empty, 0),
        (filled, filled, 1),
    ):
        scores = native_scores(prediction, truth, DEFAULT, (0.1, 0.1))
        for name in ("dice_native", "iou_native", NSD_PX, NSD_MM):
            assert scores[name] == agreement
        distance = 0 if truth.any() and prediction.any() else math.nan
        for name in ("hd95_native_px", "asd_native_px", "hd95_mm", "asd_mm"):
            assert scores[name] == pytest.approx(distance, nan_ok=True)
        assert scores["predicted_pixels_native"] == int(prediction.sum())


def test_without_spacing_nothing_is_in_millimetres():
    mask = disc((9, 7), (4, 3), 2)
    scores = native_scores(mask, mask, DEFAULT)
    assert all(math.isnan(scores[name]) for name in ("hd95_mm", "asd_mm", NSD_MM))


def test_tolerances_are_inclusive_and_count_each_outline():
    truth = torch.zeros(40, 40, dtype=torch.int64)
    truth[10:20, 10:20] = 1
    moved = truth.roll(3, 1)
    at = {px: native_scores(moved, truth, Tolerances(px, px / 10), (0.1, 0.1)) for px in (2, 3)}
    assert at[3]["nsd_native@3px"] == at[3]["nsd@0.3mm"] == 1
    assert 0.5 < at[2]["nsd_native@2px"] < 1


def entries(*images):
    """What native scoring gathers of images: mask, truth and spacing of each."""
    found = []
    for prediction, truth, spacing in images:
        scores = native_scores(prediction, truth, DEFAULT, spacing)
        row = None if spacing is None else spacing[0]
        source = "" if spacing is None else "Pixel Spacing"
        found.append(scores | {"row_spacing_mm": row, "spacing": source})
    judged = {name: [entry[name] for entry in found] for name in found[0]}
    return judged | {"true_pixels": [1] * len(images), "predicted_pixels": [1] * len(images)}


def test_the_summary_is_image_by_image_and_counts_the_spacings():
    mask = disc((30, 40), (15, 20), 8)
    empty = torch.zeros_like(mask)
    judged = entries(
        (mask, mask.roll(2, 1), (0.2, 0.1)),
        (mask, mask, None),
        (empty, mask, (0.2, 0.1)),
    )
    judged["spacing"][1] = f"{REFUSED}it contradicts itself"
    assert score_names(judged) == [
        *("dice_native", "iou_native", "hd95_native_px", "asd_native_px", NSD_PX),
        *("hd95_mm", "asd_mm", NSD_MM),
    ]
    summary = summarise(judged)
    assert summary["dice_native"] == pytest.approx(sum(judged["dice_native"]) / 3)
    assert summary["hd95_mm"] == judged["hd95_mm"][0] > 0  # of the one image that has both
    assert summary["hd95_native_px"] == judged["hd95_native_px"][0] / 2
    assert summary[NSD_MM] == judged[NSD_MM][0] / 2  # the empty prediction counts as 0
    counts = ("with_spacing", "spacing_refused", "empty_predictions_native", "empty_truths_native")
    assert [summary[name] for name in counts] == [2, 1, 1, 0]
    assert summary["without_distance_native"] == 1


def test_without_any_spacing_there_are_no_scores_in_millimetres():
    mask = disc((30, 40), (15, 20), 8)
    judged = entries((mask, mask, None))
    assert not [name for name in (*score_names(judged), *summarise(judged)) if "mm" in name]
    assert summarise(judged)["with_spacing"] == 0
