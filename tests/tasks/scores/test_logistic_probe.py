"""Logistic probes against scikit-learn written out, and how C is chosen."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from fastht.tasks.scores.logistic_probe import (
    STRENGTHS,
    Strength,
    _fit,
    choose_inside,
    choose_on,
    fit_probe,
)


def simulated(n=120, width=30, signal=1.0, seed=0, classes=3):
    """Features of which the first ones tell the class, on scales of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    features = torch.randn(n, width, generator=generator)
    features[torch.arange(n), labels] += signal
    return features * torch.logspace(-2, 2, width), labels


def test_a_probe_is_a_balanced_regression_on_scaled_features():
    features, labels = simulated()
    labels = torch.where(torch.arange(120) % 7 > 0, 0, labels)  # mostly of one class
    others, _ = simulated(seed=1)
    found = fit_probe(features, labels, Strength(0.1, "given")).probabilities(others, 3)
    x, y = features.double().numpy(), labels.numpy()
    mean, spread = x.mean(axis=0), x.std(axis=0)
    weights = len(y) / (3 * np.bincount(y))
    model = LogisticRegression(C=0.1, max_iter=3000).fit(
        (x - mean) / spread, y, sample_weight=weights[y]
    )
    expected = model.predict_proba((others.double().numpy() - mean) / spread)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    plain = LogisticRegression(C=0.1, max_iter=3000).fit((x - mean) / spread, y)
    unbalanced = plain.predict_proba((others.double().numpy() - mean) / spread)
    assert np.abs(found.numpy() - unbalanced).max() > 0.1


def test_a_class_that_nothing_was_learned_of_has_no_probability():
    features, labels = simulated(classes=2)
    found = fit_probe(features, labels * 2, Strength(1.0, "given")).probabilities(features, 4)
    assert found[:, [1, 3]].abs().max() == 0
    torch.testing.assert_close(found.sum(dim=1), torch.ones(120, dtype=torch.float64))


@pytest.mark.parametrize("signal", [0.8, 6.0])
def test_c_is_the_one_of_the_largest_weighted_f1_on_validation(signal):
    train, val = simulated(60, signal=signal), simulated(200, signal=signal, seed=1)
    chosen = choose_on(train, val)
    scores = {}
    for c in STRENGTHS:
        found = fit_probe(*train, Strength(c, "given")).probabilities(val[0], 3).argmax(dim=1)
        scores[c] = f1_score(val[1], found, average="weighted")
    assert scores[chosen.c] == max(scores.values())
    assert chosen.c == min(c for c in STRENGTHS if scores[c] == max(scores.values()))
    assert "200 images of val" in chosen.how
    assert choose_on(train, val, (10.0,)) == Strength(10.0, "given")


def test_c_within_the_shots_is_chosen_by_folds_that_part_no_patient(monkeypatch):
    features, labels = simulated(60, signal=0.5)
    chosen = choose_inside(features, labels, list(range(60)))
    assert chosen.how == "of 5 folds within the shots"
    assert chosen == choose_inside(features, labels, list(range(60)))
    copies, alike = features.repeat(4, 1), labels.repeat(4)
    learned = []

    def fit(x, y, c):
        learned.append(np.unique(x, axis=0, return_counts=True)[1])
        return _fit(x, y, c)

    monkeypatch.setattr("fastht.tasks.scores.logistic_probe._fit", fit)
    choose_inside(copies, alike, list(range(60)) * 4)
    assert len(learned) == 5 * len(STRENGTHS)
    assert all((counts == 4).all() and 40 < len(counts) < 60 for counts in learned)
    learned.clear()
    choose_inside(copies, alike, list(range(240)))  # as if each was of another patient
    assert not any((counts == 4).all() for counts in learned)


def test_too_few_shots_to_choose_by_take_a_fixed_c():
    features, labels = simulated(6)
    two = choose_inside(features, labels, list(range(6)))
    assert two.how == "of 2 folds within the shots"
    one = choose_inside(features[:3], labels[:3], list(range(3)))
    assert (one.c, one.how[:6]) == (1.0, "fixed:")
    # Two images of one patient are one shot to choose by.
    same = choose_inside(features, labels, [0, 1, 2, 0, 1, 2])
    assert (same.c, same.how) == (one.c, one.how)
    assert choose_inside(features[:3], labels[:3], list(range(3)), (0.1, 5.0, 20.0)).c == 5.0
