"""The final scoring of segmentation on files of every kind, with discs planted in them."""

import math

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image
from torch.utils.data import default_collate

pytest.importorskip("monai")

from fastht.data import Case, TaskDataset
from fastht.tasks.images.goals import SegmentationGoal
from fastht.tasks.images.native import NativeSegmentation, spacing_sentence
from fastht.tasks.scores.native import Tolerances

SIZE = 64
MOVED = (3.0, 5.0)  # rows, columns
NORMAL = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
# height, width; where the disc's centre is; its radius
SHAPES = {
    "wide": ((90, 160), (40, 70), 20),
    "tall": ((150, 60), (80, 28), 15),
    "bare": ((100, 100), (50, 52), 25),
    "slice": ((80, 120), (35, 66), 18),
    "torn": ((90, 70), (44, 33), 16),
}


def disc(shape, centre, radius):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.uint8)


@pytest.fixture
def cases(tmp_path):
    """A PNG, DICOM of known and impossible spacing, a frame without, and a slice of a volume."""
    made = []
    for name, (shape, centre, radius) in SHAPES.items():
        mask = disc(shape, centre, radius)
        image = mask * np.uint8(150) + np.uint8(50)
        if name == "slice":
            files = []
            for kind, pixels in (("scan", image), ("mask", mask)):
                stack = np.stack([np.zeros_like(pixels), pixels])
                volume = nibabel.Nifti1Image(stack.T, np.diag([0.1, 0.3, 1, 1]))
                nibabel.save(volume, tmp_path / f"{kind}.nii.gz")
                files.append(f"{tmp_path / kind}.nii.gz::1")
            made.append(Case("slice-001", files[0], (files[1],)))
            continue
        if name == "wide":
            Image.fromarray(image).save(tmp_path / f"{name}.png")
            file = tmp_path / f"{name}.png"
        else:
            elements = {
                "tall": {"PixelSpacing": [0.2, 0.05]},
                "bare": {"NumberOfFrames": 3},
                "torn": {"PixelSpacing": [0.2, -1]},
            }
            stored = np.stack([image // 2, image, image // 3]) if name == "bare" else image
            file = write_dicom(tmp_path / f"{name}.dcm", stored, **elements[name])
        drawn = tmp_path / f"{name}-mask.png"
        Image.fromarray(mask * np.uint8(255)).save(drawn)
        part = "::1" if name == "bare" else ""
        made.append(Case(name, f"{file}{part}", (str(drawn),)))
    return made


def ideal(shape, centre, radius, resize):
    """Logits of a model that sees a disc perfectly, of SIZE x SIZE pixels."""
    axes = []
    for side, place in zip(shape, centre, strict=True):
        placed = SIZE if resize == "squash" else round(SIZE * side / max(shape))
        start = (SIZE - placed) // 2
        axes.append((torch.arange(SIZE) + 0.5 - start) * side / placed - 0.5 - place)
    y, x = torch.meshgrid(*axes, indexing="ij")
    margin = radius - (y**2 + x**2).sqrt()
    return torch.stack([-margin, margin])


def judge(cases, folder, resize, moved=MOVED, swap=False, tolerances=None):
    folder.mkdir()
    data = TaskDataset(cases, SIZE, with_masks=True, resize=resize, **NORMAL)
    logits = []
    for shape, centre, radius in SHAPES.values():
        there = (centre[0] + moved[0], centre[1] + moved[1])
        made = ideal(shape, there, radius, resize)
        logits.append(made.mT if swap else made)
    batch = default_collate([data[i] for i in range(len(data))])
    goal = NativeSegmentation(data, folder, SegmentationGoal(tolerances))
    judged = goal.judge(torch.stack(logits), batch)
    return goal, {name: dict(zip(SHAPES, values, strict=True)) for name, values in judged.items()}


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_planted_distances_in_pixels_and_millimetres(cases, tmp_path, resize):
    _, judged = judge(cases, tmp_path / "masks", resize)
    spacings = {"tall": (0.2, 0.05), "slice": (0.3, 0.1)}
    for case, (name, (shape, centre, radius)) in zip(cases, SHAPES.items(), strict=True):
        with Image.open(tmp_path / "masks" / f"{case.name}.png") as picture:
            mask = np.asarray(picture)
        assert mask.shape == shape == (judged["height"][name], judged["width"][name])
        assert set(np.unique(mask)) == {0, 255}
        there = (centre[0] + MOVED[0], centre[1] + MOVED[1])
        right = disc(shape, there, radius)
        assert (mask // 255 != right).sum() < 0.03 * right.sum()
        found = [position.mean() for position in mask.nonzero()]
        assert found == pytest.approx(there, abs=0.1)
        assert judged["predicted_pixels_native"][name] == (mask > 0).sum()
        assert judged["true_pixels_native"][name] == disc(shape, centre, radius).sum()
        assert judged["hd95_native_px"][name] == pytest.approx(math.hypot(*MOVED), abs=0.5)
        if name in spacings:
            row, column = spacings[name]
            assert judged["row_spacing_mm"][name] == row
            assert judged["column_spacing_mm"][name] == column
            # No point is farther from the true rim than it was moved.
            longest = math.hypot(row * MOVED[0], column * MOVED[1])
            assert judged["hd95_mm"][name] == pytest.approx(longest, rel=0.25)
            swapped = math.hypot(column * MOVED[0], row * MOVED[1])
            assert judged["hd95_mm"][name] != pytest.approx(swapped, rel=0.25)
        else:
            assert judged["row_spacing_mm"][name] is None
            assert math.isnan(judged["hd95_mm"][name])
    # What the model's own size says is another thing: its pixels are larger.
    assert judged["hd95"]["wide"] < judged["hd95_native_px"]["wide"] - 1


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_a_perfect_prediction_is_perfect_at_both_sizes(cases, tmp_path, resize):
    _, judged = judge(cases, tmp_path / "masks", resize, moved=(0.0, 0.0))
    for name in SHAPES:
        assert judged["dice"][name] > 0.95
        assert judged["dice_native"][name] > 0.985
        assert judged["hd95_native_px"][name] <= 1
        assert judged["nsd_native@2px"][name] == 1
    # The check sees swapped axes.
    _, swapped = judge(cases, tmp_path / "swapped", resize, moved=(0.0, 0.0), swap=True)
    assert swapped["dice_native"]["wide"] < 0.9
    assert swapped["dice_native"]["tall"] < 0.9


def test_the_summary_counts_what_has_a_spacing_and_what_contradicts_itself(cases, tmp_path):
    goal, judged = judge(cases, tmp_path / "masks", "squash", tolerances=Tolerances(7, 0.5))
    lists = {name: [*values.values()] for name, values in judged.items()}
    summary = goal.summarise(lists)
    assert summary["images"] == 5
    assert (summary["with_spacing"], summary["spacing_refused"]) == (2, 1)
    both = [judged["hd95_mm"][name] for name in ("tall", "slice")]
    assert summary["hd95_mm"] == pytest.approx(sum(both) / 2)
    assert summary["nsd_native@7px"] == 1
    assert 0 < summary["nsd@0.5mm"] < 1
    assert judged["spacing"]["tall"] == "Pixel Spacing"
    assert judged["spacing"]["slice"].startswith("NIfTI pixdim")
    assert judged["spacing"]["wide"] == judged["spacing"]["bare"] == ""
    sentence = spacing_sentence(lists)
    assert sentence.startswith("scores in mm are of 2 of 5 images, whose spacing is known; 1 is")
    assert "torn.dcm: Pixel Spacing is [0.2, -1" in sentence
    assert spacing_sentence({"spacing": ["", ""]}) == ""


def test_scores_at_the_models_size_are_those_of_training(cases, tmp_path):
    _, judged = judge(cases, tmp_path / "masks", "letterbox")
    data = TaskDataset(cases, SIZE, with_masks=True, resize="letterbox", **NORMAL)
    batch = default_collate([data[i] for i in range(len(data))])
    logits = []
    for shape, centre, radius in SHAPES.values():
        there = (centre[0] + MOVED[0], centre[1] + MOVED[1])
        logits.append(ideal(shape, there, radius, "letterbox"))
    for name, values in SegmentationGoal().judge(torch.stack(logits), batch).items():
        assert [*judged[name].values()] == pytest.approx(values, nan_ok=True)


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_what_lies_in_the_border_is_no_part_of_the_mask(cases, tmp_path, resize):
    data = TaskDataset(cases[:1], SIZE, with_masks=True, resize=resize, **NORMAL)
    inside = data.placement(SHAPES["wide"][0]).inside()
    margin = torch.where(inside, -1.0, 1.0)
    goal = NativeSegmentation(data, tmp_path, SegmentationGoal())
    judged = goal.judge(torch.stack([-margin, margin])[None], default_collate([data[0]]))
    assert judged["predicted_pixels_native"] == [0]
    assert judged["predicted_pixels"] == [0]
    assert goal.summarise(judged)["empty_predictions_native"] == 1
