"""Scores of resampled queries are those of the queries repeated."""

import pytest
import torch

from fastht.tasks.scores.intervals import Resampling
from fastht.tasks.scores.retrieval import retrieval_ranks, retrieval_scores
from fastht.tasks.scores.retrieval_intervals import resampled_ranks, weighted_medians

CAPTIONS = ["a", "b", "c", "a", "d", "e", "f", "b"]
KS = (1, 2, 3)


def features(seed):
    made = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(made, dim=1)


def test_a_resample_of_each_image_once_is_the_score():
    images, texts = features(0), features(1)
    ranks = retrieval_ranks(images, texts, CAPTIONS)
    found = resampled_ranks(*ranks, CAPTIONS, KS, torch.ones(2, 8).double())
    expected = retrieval_scores(images, texts, CAPTIONS, KS)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.tolist() == pytest.approx([expected[name]] * 2), name


def test_queries_count_as_often_as_they_are_drawn():
    image_ranks, text_ranks = (
        torch.tensor([1, 5, 2, 9, 1, 1, 4, 3]),
        torch.tensor([2, 1, 7, 1, 3, 8]),
    )
    weights = Resampling([0, 0, 1, 2, 2, 3, 4, 5], resamples=40).weights
    found = resampled_ranks(image_ranks, text_ranks, CAPTIONS, KS, weights)
    for row, counts in enumerate(weights.long()):
        repeated = image_ranks.repeat_interleave(counts).double()
        assert found["image_to_text_mean_rank"][row].item() == pytest.approx(repeated.mean().item())
        median = repeated.quantile(0.5).item()
        assert found["image_to_text_median_rank"][row].item() == pytest.approx(median)
        recall = (repeated <= 2).double().mean().item()
        assert found["image_to_text_recall@2"][row].item() == pytest.approx(recall)
    # Captions a and b have two images each, the others one.
    shares = torch.stack([(weights[:, 0] + weights[:, 3]) / 2, (weights[:, 1] + weights[:, 7]) / 2])
    others = weights[:, [2, 4, 5, 6]].T
    of_captions = torch.cat([shares, others]).T
    mean = (of_captions * text_ranks).sum(1) / of_captions.sum(1)
    torch.testing.assert_close(found["text_to_image_mean_rank"], mean)
    recalls = [values for name, values in found.items() if "recall" in name]
    torch.testing.assert_close(found["rsum"], torch.stack(recalls).sum(0))


def test_the_median_of_fractions_is_in_their_middle():
    values = torch.tensor([3.0, 1.0, 2.0, 9.0])
    thirds = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [3, 0, 0, 0], [1, 2, 4, 0]]).double() / 3
    assert weighted_medians(values, thirds).tolist() == [2.5, 2, 3, 2]
