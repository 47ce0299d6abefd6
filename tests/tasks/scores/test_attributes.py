"""Scores of attributes against counting by hand, and what a linear probe can and cannot tell."""

import pytest
import torch

from fastht.tasks.scores.attributes import (
    AttributeScores,
    fit_probe,
    probe_logits,
    standardised,
)

OWNED = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]]).bool()
SIMILAR = torch.tensor(
    [
        [0.9, 0.1, 0.0],  # right
        [0.9, 0.1, 0.0],  # wrong
        [0.1, 0.9, 0.5],  # right: it has either
        [0.9, 0.1, 0.0],  # has no value
        [0.2, 0.5, 0.5],  # as high as another: wrong
    ]
)


def test_scores_are_those_of_counting():
    none = torch.zeros(5, 2).bool()
    found = AttributeScores(
        {"Shape": SIMILAR, "Margins": SIMILAR[:, :2]}, {"Shape": OWNED, "Margins": none}
    )
    scores = found.scores()
    assert scores["Shape_accuracy"] == pytest.approx(2 / 4)
    # Of the first value both are right, of the second one of three; the third does not occur.
    assert scores["Shape_recall"] == pytest.approx((1 + 1 / 3) / 2)
    assert scores["mean_accuracy"] == scores["Shape_accuracy"]
    assert not any(name.startswith("Margins") for name in scores)


def test_features_that_tell_nothing_apart_are_right_nowhere():
    flat = AttributeScores({"Shape": torch.zeros(5, 3)}, {"Shape": OWNED})
    assert flat.scores()["Shape_accuracy"] == 0
    whole = AttributeScores({"Shape": OWNED.double()}, {"Shape": OWNED})
    assert whole.scores()["mean_recall"] == 1


def test_a_resample_counts_records_as_often_as_it_drew_them():
    found = AttributeScores({"Shape": SIMILAR}, {"Shape": OWNED})
    weights = torch.tensor([[2, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 1, 0]]).double()
    scores = found.resampled(weights)
    assert scores["Shape_accuracy"].tolist()[:2] == pytest.approx([2 / 3, 0])
    assert scores["Shape_recall"].tolist()[:2] == pytest.approx([0.5, 0])
    assert scores["mean_recall"].isnan().tolist() == [False, False, True]


def test_a_probe_learns_what_is_linear_and_leaves_out_values_it_never_saw():
    torch.manual_seed(0)
    x = torch.randn(200, 4)
    labels = (x[:, 0] > 0).long() * 2  # values 0 and 2; nobody has 1
    owned = torch.nn.functional.one_hot(labels, 3).bool()
    train, test = standardised(x[:100], [x[100:]])
    weight = fit_probe(train, owned[:100])
    found = AttributeScores({"a": probe_logits(test, weight)}, {"a": owned[100:]})
    assert found.scores()["a_accuracy"] > 0.9
    assert torch.equal(weight, fit_probe(train, owned[:100]))
    assert probe_logits(test, weight)[:, 1].max() == -torch.inf
    # A control: labels that have nothing to do with the features.
    chance = owned[torch.randperm(200)]
    weight = fit_probe(train, chance[:100])
    by_chance = AttributeScores({"a": probe_logits(test, weight)}, {"a": chance[100:]})
    assert by_chance.scores()["a_accuracy"] < 0.7
    assert fit_probe(train, owned[:100] & (labels[:100] == 0)[:, None]) is None
