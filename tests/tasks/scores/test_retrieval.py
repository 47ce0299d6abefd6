"""Retrieval and zero-shot numbers against cases small enough to count by hand."""

import math

import pytest
import torch

from fastht.tasks.scores.retrieval import (
    class_precision,
    retrieval_ranks,
    retrieval_recall,
    retrieval_scores,
    zero_shot_accuracy,
)


def unit(*degrees):
    angles = [math.radians(d) for d in degrees]
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles])


def test_recall_counts_ranks():
    images = unit(0, 10, 25, 90)
    texts = unit(9, 1, 26, 91)  # the first two are swapped
    recall = retrieval_recall(images, texts, ["a", "b", "c", "d"], (1, 2, 10))
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
    recall = retrieval_recall(images, texts, ["same", "same", "other"], (1,))
    assert recall == {"image_to_text_recall@1": 1.0, "text_to_image_recall@1": 1.0}
    wrong = retrieval_recall(unit(90, 90, 0), texts, ["same", "same", "other"], (1,))
    assert wrong == {"image_to_text_recall@1": 0.0, "text_to_image_recall@1": 0.0}


def test_scores_add_median_and_mean_rank_and_the_sum_of_recalls():
    images = unit(0, 10, 25, 90)
    texts = unit(9, 1, 26, 91)
    captions = ["a", "b", "c", "d"]
    image_ranks, text_ranks = retrieval_ranks(images, texts, captions)
    assert image_ranks.tolist() == [2, 2, 1, 1]
    assert text_ranks.tolist() == [2, 2, 1, 1]
    scores = retrieval_scores(images, texts, captions, (1, 2))
    assert scores == retrieval_recall(images, texts, captions, (1, 2)) | {
        "image_to_text_median_rank": 1.5,
        "image_to_text_mean_rank": 1.5,
        "text_to_image_median_rank": 1.5,
        "text_to_image_mean_rank": 1.5,
        "rsum": 3.0,
    }


def test_a_caption_ranks_by_its_best_image_and_an_image_among_different_captions():
    images = unit(0, 40, 90, 50)
    texts = unit(1, 1, 89, 10)  # the first two images share their caption
    image_ranks, text_ranks = retrieval_ranks(images, texts, ["same", "same", "other", "third"])
    # 40 degrees are nearer to the third caption, 50 to the other one.
    assert image_ranks.tolist() == [1, 2, 1, 2]
    # The third caption's image, at 50, comes after those at 0 and 40.
    assert text_ranks.tolist() == [1, 1, 3]


@pytest.mark.parametrize("value", [1.0, float("nan")])
def test_features_that_tell_nothing_apart_come_last(value):
    same = torch.full((4, 2), value)
    image_ranks, text_ranks = retrieval_ranks(same, same, ["a", "b", "c", "d"])
    assert image_ranks.tolist() == text_ranks.tolist() == [4, 4, 4, 4]
    assert retrieval_recall(same, same, ["a", "b", "c", "d"], (3,)) == {
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


def test_zero_shot_takes_the_nearest_class():
    classes = unit(0, 90)
    assert zero_shot_accuracy(unit(5, 80, 50, 1), classes, [0, 1, 0, 0]) == 0.75
