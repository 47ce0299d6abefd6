"""The losses of segmentation and classification, and their scores of batches."""

import math

import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("torchmetrics")

from fastht.tasks.images.goals import ClassificationGoal, SegmentationGoal


def logits_of(mask, sure):
    return sure * torch.stack([1.0 - 2 * mask, 2.0 * mask - 1], dim=1)


def test_dice_and_cross_entropy_by_hand():
    mask = torch.tensor([[[1, 0], [0, 0]]])
    logits = torch.zeros(1, 2, 2, 2)  # one half everywhere
    found = SegmentationGoal().loss(logits, {"mask": mask}).item()
    # 1 - 2 p y / (p^2 + y^2) of each class, and ln 2
    background = 1 - 2 * 1.5 / (4 * 0.25 + 3)
    lesion = 1 - 2 * 0.5 / (4 * 0.25 + 1)
    assert found == pytest.approx((background + lesion) / 2 + math.log(2))


def test_the_loss_of_a_sure_and_right_segmentation_vanishes():
    mask = torch.randint(2, (2, 6, 6))
    goal = SegmentationGoal()
    assert goal.loss(logits_of(mask, 50.0), {"mask": mask}).item() == pytest.approx(0, abs=1e-6)
    assert goal.loss(logits_of(1 - mask, 50.0), {"mask": mask}).item() > 10


def test_segmentations_are_judged_image_by_image():
    mask = torch.zeros(2, 6, 6, dtype=torch.int64)
    mask[:, 1:4, 1:4] = 1
    predicted = mask.clone()
    predicted[1] = 0
    goal = SegmentationGoal()
    judged = goal.judge(logits_of(predicted, 3.0), {"mask": mask})
    assert judged["dice"] == [1, 0]
    assert goal.summarise(judged)["empty_predictions"] == 1


def test_focal_loss_by_hand():
    # sigmoid focal loss with gamma 2, of both classes: -(1 - p)^2 ln p with p = 1/2
    found = ClassificationGoal().loss(torch.zeros(3, 2), {"label": torch.tensor([0, 1, 1])})
    assert found.item() == pytest.approx(0.25 * math.log(2))


def test_classifications_are_judged_over_all_images():
    goal = ClassificationGoal()
    batches = [
        (torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1])),
        (torch.tensor([[2.0, 0.0]]), torch.tensor([1])),
    ]
    judged = {"probabilities": [], "label": []}
    for logits, label in batches:
        for name, values in goal.judge(logits, {"label": label}).items():
            judged[name] += values
    assert goal.summarise(judged)["accuracy"] == pytest.approx(2 / 3)
    assert goal.monitor in goal.summarise(judged)


def bordered(logits, mask, inside):
    return SegmentationGoal().loss(logits, {"mask": mask, "inside": inside})


def test_the_border_of_a_letterbox_counts_in_no_loss():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    mask = torch.randint(2, (2, 8, 8), generator=generator)
    inside = torch.zeros(2, 8, 8, dtype=torch.bool)
    inside[:, 2:7] = True
    mask = mask * inside
    within = SegmentationGoal().loss(logits[:, :, 2:7], {"mask": mask[:, 2:7]})
    torch.testing.assert_close(bordered(logits, mask, inside), within)
    wild = logits.clone()
    wild[:, 0, :2], wild[:, 1, :2], wild[:, :, 7:] = -30.0, 30.0, -40.0
    wild.requires_grad_()
    found = bordered(wild, mask, inside)
    torch.testing.assert_close(found, within)
    found.backward()
    assert not wild.grad[:, :, ~inside[0]].any()
    assert wild.grad[:, :, inside[0]].all()
    # Without knowing of the border the loss is another.
    assert abs(SegmentationGoal().loss(wild, {"mask": mask}) - within) > 0.1


def test_narrow_images_count_as_much_as_wide_ones():
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    inside = torch.ones(2, 8, 8, dtype=torch.bool)
    inside[1, :, 2:] = False
    alone = [
        SegmentationGoal().loss(logits[:1], {"mask": mask[:1]}),
        SegmentationGoal().loss(logits[1:, :, :, :2], {"mask": mask[1:, :, :2]}),
    ]
    torch.testing.assert_close(bordered(logits, mask, inside), sum(alone) / 2)


def test_the_border_counts_in_no_score():
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[:, 3:5, 2:6] = 1
    inside = torch.zeros(1, 8, 8, dtype=torch.bool)
    inside[:, 2:6] = True
    predicted = mask.clone()
    predicted[:, :2] = 1
    logits = logits_of(predicted, 3.0)
    judged = SegmentationGoal().judge(logits, {"mask": mask, "inside": inside})
    assert (judged["dice"], judged["hd95"]) == ([1], [0])
    assert judged["predicted_pixels"] == [8]
    assert SegmentationGoal().judge(logits, {"mask": mask})["dice"] != [1]
