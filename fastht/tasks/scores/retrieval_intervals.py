"""Retrieval scores of resampled queries, for their intervals.

Queries are resampled, the gallery they search stays whole: an interval is of other patients who
ask, not of a larger or smaller archive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastht.tasks.scores.intervals import shared_weights, weighted_means

_CHUNK = 256  # resamples whose sums are held at a time


def resampled_ranks(
    image_ranks: Tensor,
    text_ranks: Tensor,
    captions: Sequence[str],
    ks: Sequence[int],
    weights: Tensor,
) -> dict[str, Tensor]:
    """Return what ``retrieval_scores`` does, for each of some resamples of the images.

    A caption counts as often as its images do on average.

    Args:
        image_ranks: ``[n]``, as ``retrieval_ranks`` gives them.
        text_ranks: ``[different captions]``, likewise.
        captions: n texts.
        ks: the ranks k.
        weights: ``[r, n]``.

    Returns:
        ``[r]`` each, float64: ``{direction}_recall@k``, ``..._median_rank``, ``..._mean_rank``,
        and ``rsum``.
    """
    numbers: dict[str, int] = {}
    owner = torch.tensor([numbers.setdefault(caption, len(numbers)) for caption in captions])
    of_captions = shared_weights(weights, owner, len(numbers))
    result: dict[str, Tensor] = {}
    recalls = []
    for direction, ranks, queries in (
        ("image_to_text", image_ranks, weights),
        ("text_to_image", text_ranks, of_captions),
    ):
        found = torch.stack([ranks <= k for k in ks], dim=1)
        recalls.append(weighted_means(found, queries))
        result |= {f"{direction}_recall@{k}": r for k, r in zip(ks, recalls[-1].T, strict=True)}
        result[f"{direction}_median_rank"] = weighted_medians(ranks, queries)
        result[f"{direction}_mean_rank"] = weighted_means(ranks, queries)
    return result | {"rsum": sum(recalls, torch.zeros(())).sum(dim=1)}


def weighted_medians(values: Tensor, weights: Tensor) -> Tensor:
    """Return the median in each resample, the mean of the two middle ones where there are two.

    Args:
        values: ``[n]``.
        weights: ``[r, n]``.

    Returns:
        ``[r]``, float64.
    """
    ordered, order = values.double().sort()
    parts = []
    for chunk in weights.split(_CHUNK):
        reached = chunk[:, order].cumsum(dim=1)
        half = reached[:, -1:] / 2
        # Sums of thirds and such miss the half by a hair; the slack is far below any weight.
        slack = 1e-9 * half
        lower = (reached >= half - slack).int().argmax(dim=1)
        upper = (reached > half + slack).int().argmax(dim=1)
        parts.append((ordered[lower] + ordered[upper]) / 2)
    return torch.cat(parts)
