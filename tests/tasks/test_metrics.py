"""Retrieval and zero-shot numbers against cases small enough to count by hand."""

import math

import torch

from fastht.tasks.metrics import retrieval_recall, zero_shot_accuracy


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


def test_zero_shot_takes_the_nearest_class():
    classes = unit(0, 90)
    assert zero_shot_accuracy(unit(5, 80, 50, 1), classes, [0, 1, 0, 0]) == 0.75
