"""Class scores against values computed by hand, scikit-learn's and torchmetrics', and weighted."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning
from torchmetrics.functional import accuracy, auroc, f1_score, precision, recall

from fastht.tasks.scores.classification import (
    chance_accuracy,
    classification_scores,
    confusion_matrix,
    prediction_warnings,
    resampled,
    roc_curves,
)

NAMES = ("a", "b", "c", "d")


def probabilities(*positive):
    p = torch.tensor(positive)
    return torch.stack([1 - p, p], dim=1)


def simulated(n=200, classes=3, seed=0, ties=False):
    """Probabilities that tell something of labels, and how often each image counts."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator).double()
    logits[torch.arange(n), labels] += 1
    if ties:
        logits = logits.round()
    weights = torch.randint(0, 4, (5, n), generator=generator)
    return logits.softmax(dim=1), labels, weights


def sensitivity_at(specificity, own, values, weights):
    """The largest sensitivity of a threshold that is at least so specific, by trying them all."""
    best = 0.0
    for threshold in [*values, math.inf]:
        passed = values >= threshold
        if (weights * ~own * ~passed).sum() >= specificity / 100 * (weights * ~own).sum() - 1e-9:
            best = max(best, (weights * own * passed).sum() / (weights * own).sum())
    return best


def expected(p, labels, weights, classes):
    """All scores by scikit-learn, of images that count as often as their weights say."""
    predicted = p.argmax(1)
    counted = {"sample_weight": weights, "zero_division": 0}
    average = {"average": "macro"} if classes > 2 else {"pos_label": 1}
    scores = {
        "accuracy": metrics.accuracy_score(labels, predicted, sample_weight=weights),
        "balanced_accuracy": metrics.balanced_accuracy_score(
            labels, predicted, sample_weight=weights
        ),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro", **counted),
        "weighted_f1": metrics.f1_score(labels, predicted, average="weighted", **counted),
        "recall": metrics.recall_score(labels, predicted, **average, **counted),
        "precision": metrics.precision_score(labels, predicted, **average, **counted),
        "f1": metrics.f1_score(labels, predicted, **average, **counted),
    }
    areas = []
    for k, name in enumerate(NAMES[:classes]):
        own, made = labels == k, predicted == k
        areas.append(metrics.roc_auc_score(own, p[:, k], sample_weight=weights))
        scores |= {
            f"sensitivity/{name}": metrics.recall_score(own, made, sample_weight=weights),
            f"specificity/{name}": metrics.recall_score(~own, ~made, sample_weight=weights),
            f"ppv/{name}": metrics.precision_score(own, made, sample_weight=weights),
            f"auc/{name}": areas[-1],
        }
        for percent in (90, 95):
            scores[f"sensitivity_at_{percent}_specificity/{name}"] = sensitivity_at(
                percent, own, p[:, k], weights
            )
    return scores | {"auc": areas[1] if classes == 2 else np.mean(areas)}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_every_score_is_scikit_learns_also_weighted(classes, ties):
    p, labels, weights = simulated(classes=classes, ties=ties)
    found = resampled(p, labels, weights, NAMES[:classes])
    for row in range(len(weights)):
        wanted = expected(p.numpy(), labels.numpy(), weights[row].numpy(), classes)
        assert {name: found[name][row].item() for name in wanted} == pytest.approx(
            wanted, abs=1e-12
        )
        assert found.keys() - wanted.keys() == {"ece", "brier"}
        # Negative control: images that count once each have other scores.
        alone = classification_scores(p, labels, NAMES[:classes])
        assert alone["auc"] != pytest.approx(wanted["auc"], abs=1e-4)
    once = expected(p.numpy(), labels.numpy(), np.ones(len(labels)), classes)
    assert {name: alone[name] for name in once} == pytest.approx(once, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_overall_scores_are_torchmetrics_where_classes_are_absent_too(classes):
    """What earlier versions wrote under these names."""
    p, labels, _ = simulated(n=40, classes=classes)
    for absent in (None, *range(classes)):
        for collapsed in (False, True):
            kept = torch.ones_like(labels, dtype=torch.bool) if absent is None else labels != absent
            chosen, truth = p[kept].clone(), labels[kept]
            if collapsed:
                chosen = chosen * 0.1 + torch.tensor([0.9, *[0.0] * (classes - 1)])
            if classes == 2:
                task = {"task": "binary"}
            else:
                task = {"task": "multiclass", "num_classes": classes, "average": "macro"}
            made = chosen.argmax(1)
            micro = {"task": "multiclass", "num_classes": classes, "average": "micro"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = {
                    "accuracy": accuracy(made, truth, **micro),
                    "recall": recall(made, truth, **task),
                    "precision": precision(made, truth, **task),
                    "f1": f1_score(made, truth, **task),
                }
            found = classification_scores(chosen, truth)
            assert {n: found[n] for n in wanted} == pytest.approx(
                {name: value.item() for name, value in wanted.items()}, abs=1e-6
            )
            assert math.isnan(found["auc"]) == (absent is not None)
            if absent is None:
                area = auroc(chosen[:, 1] if classes == 2 else chosen, truth, **task)
                assert found["auc"] == pytest.approx(area.item(), abs=1e-6)


def test_resampling_is_the_same_as_repeating_images():
    p, labels, weights = simulated(n=60, ties=True)
    found = resampled(p, labels, weights, NAMES[:3])
    for row, counts in enumerate(weights):
        repeated = torch.arange(60).repeat_interleave(counts)
        alone = classification_scores(p[repeated], labels[repeated], NAMES[:3])
        del alone["ece"]  # of more images there are more bins
        assert alone == pytest.approx({name: found[name][row].item() for name in alone})


def test_many_resamples_are_those_of_each_alone():
    p, labels, _ = simulated(n=30)
    weights = torch.randint(0, 3, (70, 30), generator=torch.Generator().manual_seed(3))
    together = resampled(p, labels, weights, NAMES[:3])
    for row in (0, 31, 32, 69):
        alone = resampled(p, labels, weights[row : row + 1], NAMES[:3])
        assert {n: v[row].item() for n, v in together.items()} == pytest.approx(
            {n: v.item() for n, v in alone.items()}, rel=1e-12
        )


def test_two_classes_by_hand():
    # predicted 1 1 1 0 0 0, true 1 1 0 1 0 0
    scores = classification_scores(
        probabilities(0.9, 0.8, 0.7, 0.4, 0.2, 0.1), torch.tensor([1, 1, 0, 1, 0, 0]), ("no", "yes")
    )
    overall = {"accuracy": 4 / 6, "recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "auc": 8 / 9}
    assert {name: scores[name] for name in overall} == pytest.approx(overall)
    assert scores["sensitivity/yes"] == scores["specificity/no"] == pytest.approx(2 / 3)
    assert scores["sensitivity_at_90_specificity/yes"] == pytest.approx(2 / 3)  # above 0.7
    assert scores["sensitivity_at_90_specificity/no"] == pytest.approx(2 / 3)  # below 0.4


def test_a_specificity_that_is_just_reached_counts():
    """Nine of ten others below: 1 - 0.9 in floating point is less than a tenth."""
    p = probabilities(0.9, *[0.95], *[0.1] * 9)
    labels = torch.tensor([1, *[0] * 10])
    scores = classification_scores(p, labels, ("no", "yes"))
    assert scores["sensitivity_at_90_specificity/yes"] == 1
    assert scores["sensitivity_at_95_specificity/yes"] == 0


def test_images_that_tie_pass_a_threshold_together():
    p = probabilities(0.8, 0.8, 0.5, *[0.1] * 8)  # one of the two at 0.8 is not of the class
    scores = classification_scores(p, torch.tensor([1, 0, 1, *[0] * 8]), ("no", "yes"))
    assert scores["sensitivity_at_90_specificity/yes"] == 0
    assert scores["auc"] == pytest.approx(((8 + 0.5) + 8) / 18)


def test_what_cannot_be_divided_is_undefined_and_never_zero():
    p = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    scores = classification_scores(p, torch.tensor([0, 1, 1]), ("a", "b", "never"))
    undefined = {name for name, value in scores.items() if math.isnan(value)}
    assert undefined == {
        "auc",
        "sensitivity/never",
        "ppv/never",
        "auc/never",
        "sensitivity_at_90_specificity/never",
        "sensitivity_at_95_specificity/never",
    }
    assert scores["specificity/never"] == 1
    assert scores["balanced_accuracy"] == 0.75
    only = classification_scores(probabilities(0.9, 0.2), torch.tensor([1, 1]), ("a", "b"))
    assert math.isnan(only["specificity/b"])
    assert math.isnan(only["sensitivity_at_90_specificity/b"])
    assert math.isnan(only["auc"])
    assert only["accuracy"] == only["balanced_accuracy"] == only["sensitivity/b"] == 0.5
    assert roc_curves(probabilities(0.9, 0.2), torch.tensor([1, 1])) == {}


def test_a_class_that_a_resample_lacks_is_undefined_in_that_one_alone():
    p, labels, weights = simulated(n=30)
    weights[0][labels == 2] = 0
    found = resampled(p, labels, weights, NAMES[:3])
    assert found["sensitivity/c"].isnan().tolist() == [True, False, False, False, False]
    assert found["auc"].isnan().tolist() == [True, False, False, False, False]
    assert not found["balanced_accuracy"].isnan().any()


def test_single_classes_are_left_out_without_names_and_need_one_each():
    p, labels, _ = simulated(n=10)
    assert not any("/" in name for name in classification_scores(p, labels))
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        classification_scores(p, labels, ("a", "b"))


def test_roc_curves_are_scikit_learns_and_hold_the_auc():
    for classes in (2, 3):
        p, labels, _ = simulated(n=50, classes=classes, ties=True)
        scores = classification_scores(p, labels, NAMES[:classes])
        curves = roc_curves(p, labels)
        assert list(curves) == ([1] if classes == 2 else [0, 1, 2])
        for k, (false, true) in curves.items():
            x, y, _ = metrics.roc_curve(labels == k, p[:, k], drop_intermediate=False)
            assert false.tolist() == pytest.approx(x.tolist())
            assert true.tolist() == pytest.approx(y.tolist())
            assert torch.trapezoid(true, false) == pytest.approx(scores[f"auc/{NAMES[k]}"])


def test_roc_curve_starts_and_ends_in_the_corners():
    curves = roc_curves(probabilities(0.9, 0.8, 0.3), torch.tensor([1, 0, 0]))
    (false, true) = curves[1]
    assert list(curves) == [1]
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (true[1], false[1]) == (1, 0)  # the highest score is a positive one


def test_confusion_matrix_has_the_truth_in_rows():
    p, labels, _ = simulated(classes=4)
    found = confusion_matrix(p, labels)
    assert found.tolist() == metrics.confusion_matrix(labels, p.argmax(1)).tolist()
    assert found.tolist() != found.T.tolist()


def test_chance_is_what_dummies_score():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    found = chance_accuracy(labels, ("a", "b", "c"))
    assert found == {
        "majority": 0.6,
        "majority_class": "a",
        "prior_matched": pytest.approx(0.36 + 0.09 + 0.01),
    }
    guesses = labels[torch.randint(10, (4000, 10), generator=torch.Generator().manual_seed(0))]
    assert (guesses == labels).double().mean() == pytest.approx(found["prior_matched"], abs=0.01)


def test_predictions_of_one_class_are_warned_of():
    labels = torch.tensor([0, 1, 1, 2])
    one = torch.tensor([[0.2, 0.5, 0.3]]).expand(4, 3)
    assert prediction_warnings(one, labels, ("a", "b", "c")) == [
        "predicts one class: all 4 images are taken for 'b'"
    ]
    two = one.clone()
    two[0] = torch.tensor([0.8, 0.1, 0.1])
    assert prediction_warnings(two, labels, ("a", "b", "c")) == [
        "never predicts 'c', which 1 of 4 images are"
    ]
    assert prediction_warnings(torch.eye(3)[labels], labels, ("a", "b", "c")) == []
    # Where all images are of one class, predicting it is right.
    assert prediction_warnings(one, torch.ones(4, dtype=torch.int64), ("a", "b", "c")) == []


def test_a_class_that_scikit_learn_warns_of_is_undefined_here():
    own = np.array([False, False])
    with pytest.warns(UndefinedMetricWarning):
        assert metrics.recall_score(own, [True, False]) == 0
    found = classification_scores(probabilities(0.9, 0.2), torch.tensor([0, 0]), ("a", "b"))
    assert math.isnan(found["sensitivity/b"])
