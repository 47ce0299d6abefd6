"""Retrieval and zero-shot numbers against cases small enough to count by hand."""

import math

import pytest
import torch

from fastht.tasks.scores.retrieval import (
    Retrieval,
    class_precision,
)


def unit(*degrees):
    angles = [math.radians(d) for d in degrees]
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_recall_counts_ranks():
    images = unit(0, 10, 25, 90)
    texts = unit(9, 1, 26, 91)  # the first two are swapped
    recall = Retrieval(images, texts, ["a", "b", "c", "d"]).recall((1, 2, 10))
    assert recall == {
        "image_to_text_recall@1": 0.5,
        "image_to_text_recall@2": 1.0,
        "image_to_text_recall@10": 1.0,
        "text_to_image_recall@1": 0.5,
        "text_to_image_recall@2": 1.0,
        "text_to_image_recall@10": 1.0,
    }


def test_images_of_one_caption_are_all_right_answers():
    images = unit(0, 40, 90)
    texts = unit(1, 1, 89)
    recall = Retrieval(images, texts, ["same", "same", "other"]).recall((1,))
    assert recall == {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0}
    wrong = Retrieval(unit(90, 90, 0), texts, ["same", "same", "other"]).recall((1,))
    assert wrong == {"image_to_text_recall@1": 0.0, "text_to_image_recall@1": 0.0}


def test_scores_add_median_and_mean_rank_and_the_sum_of_recalls():
    images = unit(0, 10, 25, 90)
    texts = unit(9, 1, 26, 91)
    captions = ["a", "b", "c", "d"]
    retrieval = Retrieval(images, texts, captions)
    assert retrieval.image_ranks.tolist() == [2, 2, 1, 1]
    assert retrieval.caption_ranks.tolist() == [2, 2, 1, 1]
    scores = retrieval.scores((1, 2))
    assert scores == Retrieval(images, texts, captions).recall((1, 2)) | {
        "image_to_text_median_rank": 1.5,
        "image_to_text_mean_rank": 1.5,
        "text_to_image_median_rank": 1.5,
        "text_to_image_mean_rank": 1.5,
        "rsum": 3.0,
        "text_to_image_exact_recall@1": 0.5,
        "text_to_image_exact_recall@2": 1.0,
    }


def test_a_caption_ranks_by_its_best_image_and_an_image_among_different_captions():
    images = unit(0, 40, 90, 50)
    texts = unit(1, 1, 89, 10)  # the first two images share their caption
    retrieval = Retrieval(images, texts, ["same", "same", "other", "third"])
    # 40 degrees are nearer to the third caption, 50 to the other one.
    assert retrieval.image_ranks.tolist() == [1, 2, 1, 2]
    # The third caption's image, at 50, comes after those at 0 and 40.
    assert retrieval.caption_ranks.tolist() == [1, 1, 3]
    # Its own image: that of the second row is found after its twin's, at 0.
    assert retrieval.exact_ranks.tolist() == [1, 2, 1, 3]
    assert retrieval.patient_image_ranks is None
    gallery = "gallery: 4 images, 3 captions; ties count against the right answer"
    assert retrieval.describe() == gallery


def test_an_image_with_several_captions_is_one_image():
    """Counted as several, its copies would be wrong answers as near as the right one."""
    images = unit(0, 0, 0, 90)
    texts = unit(1, 2, 3, 89)
    captions = ["one", "two", "three", "other"]
    retrieval = Retrieval(images, texts, captions, ["i", "i", "i", "j"])
    assert (retrieval.images, retrieval.captions) == (2, 4)
    assert retrieval.first.tolist() == [0, 3]
    assert retrieval.caption_ranks.tolist() == retrieval.exact_ranks.tolist() == [1, 1, 1, 1]
    assert retrieval.image_ranks.tolist() == [1, 1]  # any of its captions will do
    assert Retrieval(images, texts, captions).caption_ranks.tolist() == [3, 3, 3, 1]


def test_patients_find_each_other():
    images = unit(0, 40, 90, 50)
    texts = unit(39, 1, 91, 50)
    patients = ["p", "p", "q", None]
    retrieval = Retrieval(images, texts, ["a", "b", "c", "d"], patients=patients)
    # 0 finds the caption at 1 and 40 the one at 39: not their own, but their patient's.
    assert retrieval.image_ranks.tolist()[:3] == [2, 3, 1]
    assert retrieval.patient_image_ranks.tolist()[:3] == [1, 1, 1]
    assert retrieval.patient_caption_ranks.tolist()[:3] == [1, 1, 1]
    assert math.isnan(retrieval.patient_image_ranks[3])
    scores = retrieval.scores((1,))
    assert scores["image_to_text_patient_recall@1"] == 1  # of the three whose patient is known
    assert scores["text_to_image_patient_recall@1"] == 1
    assert scores["image_to_text_recall@1"] == 0.5


def test_a_weight_is_a_copy_of_the_query():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(2, 12, 5, generator=generator)).unbind()
    captions = [f"caption {i // 2 % 5}" for i in range(12)]
    patients = [None if i == 3 else f"p{i // 3}" for i in range(12)]
    retrieval = Retrieval(images, texts, captions, patients=patients)
    weights = torch.randint(1, 4, (6, 12), generator=generator)
    found = retrieval.resampled(weights, (1, 3))
    for row, counts in enumerate(weights):
        ranks = retrieval.image_ranks.repeat_interleave(counts).double()
        assert found["image_to_text_mean_rank"][row].item() == pytest.approx(ranks.mean().item())
        median = ranks.quantile(0.5).item()
        assert found["image_to_text_median_rank"][row].item() == pytest.approx(median)
        hits = (ranks <= 3).double().mean().item()
        assert found["image_to_text_recall@3"][row].item() == pytest.approx(hits)
        exact = (retrieval.exact_ranks.repeat_interleave(counts) <= 1).double().mean().item()
        assert found["text_to_image_exact_recall@1"][row].item() == pytest.approx(exact)
        known = retrieval.patient_image_ranks.repeat_interleave(counts)
        known = (known[~known.isnan()] <= 1).double().mean().item()
        assert found["image_to_text_patient_recall@1"][row].item() == pytest.approx(known)


def test_blocks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(2, 23, 5, generator=generator)).unbind()
    captions = [f"caption {i % 9}" for i in range(23)]
    patients = [f"p{i // 3}" for i in range(23)]
    whole = Retrieval(images, texts, captions, patients=patients).scores((1, 3))
    near = class_precision(images, captions, patients, (1, 4))
    monkeypatch.setattr("fastht.tasks.scores.retrieval._BLOCK", 50)
    assert Retrieval(images, texts, captions, patients=patients).scores((1, 3)) == whole
    assert class_precision(images, captions, patients, (1, 4)) == near


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_features_that_tell_nothing_apart_come_last(value):
    same = torch.full((4, 2), value)
    retrieval = Retrieval(same, same, ["a", "b", "c", "d"], patients=["p", "p", None, "q"])
    assert retrieval.image_ranks.tolist() == retrieval.caption_ranks.tolist() == [4, 4, 4, 4]
    assert retrieval.exact_ranks.tolist() == [4, 4, 4, 4]
    assert retrieval.patient_image_ranks.tolist()[:2] == [3, 3]
    assert Retrieval(same, same, ["a", "b", "c", "d"]).recall((3,)) == {
        "image_to_text_recall@3": 0.0,
        "text_to_image_recall@3": 0.0,
    }


def test_class_precision_counts_the_nearest_of_other_patients():
    features = unit(0, 10, 15, 90, 95)
    labels = ["a", "a", "b", "b", "b"]
    precision = class_precision(features, labels, [None] * 5, (1, 2, 10))
    # Nearest to 0: 10 and 15; to 10: 15 and 0; to 15: 10 and 0; to 90: 95 and 15; to 95: 90, 15.
    assert precision == pytest.approx(
        {
            "image_to_image_precision@1": 3 / 5,
            "image_to_image_precision@2": (1 / 2 + 1 / 2 + 0 + 1 + 1) / 5,
            "image_to_image_precision@10": (1 / 4 + 1 / 4 + 2 / 4 * 3) / 5,
        }
    )
    # 90 and 95 are of one patient: the nearest of others is 15 for both.
    precision = class_precision(features, labels, [None, None, None, "p", "p"], (1, 2))
    assert precision == pytest.approx(
        {
            "image_to_image_precision@1": 3 / 5,
            "image_to_image_precision@2": (1 / 2 + 1 / 2 + 0 + 1 / 2 + 1 / 2) / 5,
        }
    )
    alone = class_precision(unit(0, 1), ["a", "a"], ["p", "p"], (1,))
    assert math.isnan(alone["image_to_image_precision@1"])
