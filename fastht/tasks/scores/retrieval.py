"""Numbers that say how well images and texts find each other."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

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
    image_ranks, text_ranks = retrieval_ranks(image_features, text_features, captions)
    return _recall("image_to_text", image_ranks, ks) | _recall("text_to_image", text_ranks, ks)


def retrieval_scores(
    image_features: Tensor, text_features: Tensor, captions: Sequence[str], ks: Sequence[int]
) -> dict[str, float]:
    """Compute recall@k, the median and the mean rank in both directions, and ``rsum``.

    Args:
        image_features: ``[n, E]``, normalised.
        text_features: ``[n, E]``, normalised, row i of ``captions[i]``.
        captions: n texts.
        ks: the ranks k.

    Returns:
        What :func:`retrieval_recall` returns; ``..._median_rank`` and ``..._mean_rank``, at best 1;
        and the sum of all recalls, at best twice the number of ranks k.
    """
    result: dict[str, float] = {}
    directions = ("image_to_text", "text_to_image")
    ranks = retrieval_ranks(image_features, text_features, captions)
    for direction, found in zip(directions, ranks, strict=True):
        result |= _recall(direction, found, ks)
        result[f"{direction}_median_rank"] = found.double().quantile(0.5).item()
        result[f"{direction}_mean_rank"] = found.double().mean().item()
    return result | {"rsum": sum(result[f"{d}_recall@{k}"] for d in directions for k in ks)}


def retrieval_ranks(
    image_features: Tensor, text_features: Tensor, captions: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the rank of each image's caption, and that of each different caption's best image.

    Ranks start at 1. What scores as well as the right answer counts as found before it, so that
    features that do not tell anything apart come last and not first; so does NaN.

    Args:
        image_features: ``[n, E]``, normalised.
        text_features: ``[n, E]``, normalised, row i of ``captions[i]``.
        captions: n texts.

    Returns:
        ``[n]`` and ``[different captions]``, int64, on the CPU; the captions in the order of
        their first occurrence.
    """
    first: dict[str, int] = {}
    for row, caption in enumerate(captions):
        first.setdefault(caption, row)
    group = {caption: number for number, caption in enumerate(first)}
    owner = torch.tensor([group[caption] for caption in captions])
    # [n, different captions]
    scores = (image_features @ text_features[list(first.values())].T).cpu()
    right = owner[:, None] == torch.arange(len(first))
    of_images = scores.gather(1, owner[:, None])
    image_ranks = (~(scores < of_images) & ~right).sum(dim=1) + 1
    of_captions = scores.masked_fill(~right, -torch.inf).amax(dim=0)
    text_ranks = (~(scores < of_captions) & ~right).sum(dim=0) + 1
    return image_ranks, text_ranks


def class_precision(
    features: Tensor, labels: Sequence[str], patients: Sequence[str | None], ks: Sequence[int]
) -> dict[str, float]:
    """Compute the share of an image's k nearest images that are of its class.

    Images of the same patient are no candidates: they look alike whatever their class. Where
    there are fewer than k candidates, all of them count; an image without any is left out.

    Args:
        features: ``[n, E]``, normalised.
        labels: n classes.
        patients: n patients; ``None`` where it is not known, which is nobody else's.
        ks: the numbers k.

    Returns:
        ``image_to_image_precision@k``, means over the images in [0, 1]; NaN if none has candidates.
    """
    label = _numbered(labels)
    patient = _numbered([(i,) if name is None else name for i, name in enumerate(patients)])
    scores = (features @ features.T).cpu()
    scores = scores.masked_fill(patient[:, None] == patient, -torch.inf)
    found = scores.topk(min(max(ks), len(labels)), dim=1)
    counted = found.values != -torch.inf
    right = (label[found.indices] == label[:, None]) & counted
    result = {}
    for k in ks:
        candidates = counted[:, :k].sum(dim=1).double()
        share = right[:, :k].sum(dim=1)[candidates > 0] / candidates[candidates > 0]
        result[f"image_to_image_precision@{k}"] = share.mean().item()
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


def _recall(direction: str, ranks: Tensor, ks: Sequence[int]) -> dict[str, float]:
    return {f"{direction}_recall@{k}": (ranks <= k).double().mean().item() for k in ks}


def _numbered(names: Sequence[Hashable]) -> Tensor:
    """Return the same number for the same name."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
