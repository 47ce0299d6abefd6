"""Numbers that say how well images and texts find each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def retrieval_recall(
    image_features: Tensor, text_features: Tensor, captions: Sequence[str], ks: Sequence[int]
) -> dict[str, float]:
    """Compute recall@k of image-to-text and text-to-image retrieval.

    The candidates are the different captions, so that an image whose caption occurs twice is not
    counted wrong for finding its twin; a caption finds its image if it finds any that has it.

    Args:
        image_features: ``[n, E]``, normalised.
        text_features: ``[n, E]``, normalised, row i of ``captions[i]``.
        captions: n texts.
        ks: the ranks k.

    Returns:
        ``image_to_text_recall@k`` and ``text_to_image_recall@k``, each in [0, 1].
    """
    first: dict[str, int] = {}
    for row, caption in enumerate(captions):
        first.setdefault(caption, row)
    group = {caption: number for number, caption in enumerate(first)}
    owner = torch.tensor([group[caption] for caption in captions])
    scores = image_features @ text_features[list(first.values())].T  # [n, different captions]
    result = {}
    for k in ks:
        found = scores.topk(min(k, scores.shape[1]), dim=1).indices.cpu()
        hits = (found == owner[:, None]).any(dim=1)
        result[f"image_to_text_recall@{k}"] = hits.double().mean().item()
    for k in ks:
        found = scores.T.topk(min(k, scores.shape[0]), dim=1).indices.cpu()
        hits = (owner[found] == torch.arange(len(first))[:, None]).any(dim=1)
        result[f"text_to_image_recall@{k}"] = hits.double().mean().item()
    return result


def zero_shot_accuracy(
    image_features: Tensor, class_features: Tensor, labels: Sequence[int]
) -> float:
    """Compute the share of images whose nearest class text is their own.

    Args:
        image_features: ``[n, E]``, normalised.
        class_features: ``[classes, E]``, normalised.
        labels: n class indexes.
    """
    predicted = (image_features @ class_features.T).argmax(dim=1).cpu()
    return (predicted == torch.tensor(labels)).double().mean().item()
