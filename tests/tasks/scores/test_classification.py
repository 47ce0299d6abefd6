"""Class scores against values computed by hand."""

import math

import pytest
import torch

pytest.importorskip("torchmetrics")

from fastht.tasks.scores.classification import classification_scores, roc_curves


def probabilities(*positive):
    p = torch.tensor(positive)
    return torch.stack([1 - p, p], dim=1)


def test_two_classes_by_hand():
    # predicted 1 1 1 0 0 0, true 1 1 0 1 0 0
    scores = classification_scores(
        probabilities(0.9, 0.8, 0.7, 0.4, 0.2, 0.1), torch.tensor([1, 1, 0, 1, 0, 0])
    )
    expected = {"accuracy": 4 / 6, "recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "auc": 8 / 9}
    assert scores == pytest.approx(expected)


def test_three_classes_by_hand():
    p = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.6, 0.3], [0.1, 0.1, 0.8]])
    scores = classification_scores(p, torch.tensor([0, 1, 2, 2]))
    assert scores["accuracy"] == 0.75
    assert scores["recall"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert scores["precision"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert scores["auc"] == pytest.approx((1 + 1 + 1) / 3)


def test_a_class_that_does_not_occur_has_no_auc():
    scores = classification_scores(probabilities(0.9, 0.2), torch.tensor([1, 1]))
    assert math.isnan(scores["auc"])
    assert scores["accuracy"] == 0.5
    assert roc_curves(probabilities(0.9, 0.2), torch.tensor([1, 1])) == {}


def test_roc_curve_starts_and_ends_in_the_corners():
    curves = roc_curves(probabilities(0.9, 0.8, 0.3), torch.tensor([1, 0, 0]))
    (false, true) = curves[1]
    assert list(curves) == [1]
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (true[1], false[1]) == (1, 0)  # the highest score is a positive one
