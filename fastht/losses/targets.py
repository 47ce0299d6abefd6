"""Semantic soft labels: how alike two samples are, as a product of two thin matrices.

A sample has tags in K dimensions (organ, shape, margins, ...), V tags in all. With S_k the
similarity of dimension k's tags and p_ik the distribution of sample i over them (all zero where it
has none), the mean similarity over pairs of tags is bilinear, ``p_ik . S_k p_jk``, and so

    missing="zero":    T_ij = sum_k w_k p_ik . S_k p_jk / sum_k w_k
    missing="ignore":  the same over the dimensions that both samples have; 0 where there is none

are ``Q P^T``, over ``U W^T`` for "ignore". Positives have T = 1. Source: Ultrasound-CLIP (arXiv
2604.01749), section on semantic soft labels, whose published code is "zero" with equal weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Missing = Literal["zero", "ignore"]


@dataclass(frozen=True)
class SoftTargets:
    """Soft targets of a batch; made by :meth:`from_factors` or :meth:`from_tags`.

    Attributes:
        rows: what belongs to a sample as an image: Q ``[B, V]`` and U ``[B, K]``, or tags.
        columns: what belongs to it as a text: P ``[B, V]`` and W ``[B, K]``, or tags.
        table: what belongs to no sample: the similarity of tags, and which dimension has which.
    """

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    table: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.rows[0])

    @staticmethod
    def from_factors(
        q: Tensor, p: Tensor, shares: tuple[Tensor, Tensor] | None = None
    ) -> SoftTargets:
        """Take targets ``T = Q P^T``, or ``Q P^T / (U W^T)`` with ``shares = (U, W)``.

        Args:
            q: ``[B, V]``, floating: multi-hot tags times their similarity, for instance.
            p: ``[B, V]``.
            shares: two ``[B, K]``, not negative; where their product is 0, so is T.

        Raises:
            ValueError: shapes do not fit, or a factor wants a gradient: targets have none.
        """
        pairs = [(q, p)] if shares is None else [(q, p), shares]
        for left, right in pairs:
            for x in (left, right):
                if x.ndim != 2 or not x.is_floating_point():
                    raise ValueError(
                        f"a factor of soft targets is {tuple(x.shape)} of {x.dtype}; it has to be "
                        "[B, V] and floating"
                    )
                if x.requires_grad:
                    raise ValueError("soft targets get no gradient: detach() their factors")
            if left.shape != right.shape or len(left) != len(q):
                raise ValueError(
                    f"factors of soft targets are {tuple(left.shape)} and {tuple(right.shape)}, "
                    f"of {len(q)} samples; both have to be [B, V]"
                )
        return SoftTargets(tuple(x for x, _ in pairs), tuple(x for _, x in pairs))

    @staticmethod
    def from_tags(
        tags: Tensor,
        similarity: Tensor,
        dimensions: Sequence[int] | Tensor,
        *,
        missing: Missing = "ignore",
        weights: Sequence[float] | Tensor | None = None,
    ) -> SoftTargets:
        """Take targets from tag numbers and the similarity of tags.

        Args:
            tags: ``[B, L]`` integers from 0 to V - 1, filled up with -1; one that is named twice
                counts twice.
            similarity: ``[V, V]``, symmetric; only tags of one dimension are compared.
            dimensions: the dimension of each tag, ``[V]`` integers from 0 to K - 1.
            missing: what a dimension counts that one of two samples lacks: 0, or nothing.
            weights: of the dimensions, ``[K]``; default: equal.

        Raises:
            ValueError: shapes do not fit, the similarity is not symmetric, or an option is unknown.
                (Numbers out of range are found when the loss is computed.)
        """
        dimensions = torch.as_tensor(dimensions, device=similarity.device)
        if tags.ndim != 2 or tags.is_floating_point() or tags.dtype == torch.bool:
            raise ValueError(
                f"tags are {tuple(tags.shape)} of {tags.dtype}; they have to be [B, L] integers"
            )
        v = len(similarity)
        if similarity.shape != (v, v) or dimensions.shape != (v,):
            raise ValueError(
                f"similarity is {tuple(similarity.shape)} and dimensions {tuple(dimensions.shape)};"
                " they have to be [V, V] and [V]"
            )
        if similarity.requires_grad:
            raise ValueError("soft targets get no gradient: detach() the similarity")
        if missing not in ("zero", "ignore"):
            raise ValueError(f"missing is {missing!r}; choose 'zero' or 'ignore'")
        return SoftTargets((tags,), (tags,), _table(similarity, dimensions, missing, weights))


def _table(
    similarity: Tensor,
    dimensions: Tensor,
    missing: Missing,
    weights: Sequence[float] | Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the similarity as it is multiplied, the tags' dimensions, and shares' weights."""
    if not torch.equal(similarity, similarity.T):
        raise ValueError(
            "the similarity of tags is not symmetric, so that targets would depend on the order "
            "of samples; give (S + S.T) / 2"
        )
    whole = not dimensions.is_floating_point() and dimensions.dtype != torch.bool
    if len(dimensions) == 0 or not whole or int(dimensions.min()) < 0:
        raise ValueError("dimensions have to be whole numbers from 0, one of each tag")
    k = int(dimensions.max()) + 1
    w = similarity.new_ones(k) if weights is None else torch.as_tensor(weights).to(similarity)
    if w.shape != (k,) or not bool((w >= 0).all()) or not 0 < float(w.sum()) < math.inf:
        raise ValueError(
            f"weights are {w.tolist()}; they have to be {k} finite numbers, none negative and not "
            "all zero"
        )
    member = torch.nn.functional.one_hot(dimensions.long(), k).to(similarity)
    inside = similarity * (member @ member.T) * w[dimensions.long()]
    if missing == "zero":
        return inside / w.sum(), member
    return inside, member, w


def factors(
    rows: Sequence[Tensor], columns: Sequence[Tensor], table: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Return Q, P, U and W of a sweep from what :class:`SoftTargets` holds.

    Raises:
        ValueError: a tag's number is out of range (on a GPU: a device assertion).
    """
    if not rows:
        return None, None, None, None
    if not table:
        (q, *u), (p, *w) = ([x.to(dtype).contiguous() for x in side] for side in (rows, columns))
        return q, p, u[0] if u else None, w[0] if w else None
    similarity, member, *weights = (x.to(dtype) for x in table)
    row_p, row_has = _distribution(rows[0], member)
    column_p, column_has = _distribution(columns[0], member)
    if not weights:
        return row_p @ similarity, column_p, None, None
    return row_p @ similarity, column_p, row_has * weights[0], column_has


def _distribution(tags: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
    """Return each sample's distribution over the tags of a dimension, and whether it has any."""
    v = len(member)
    outside = ((tags < -1) | (tags >= v)).any()
    message = f"a tag's number is out of range: it has to be from 0 to {v - 1}, or -1 for none"
    if tags.device.type == "cpu":
        if bool(outside):
            raise ValueError(message)
    else:  # without waiting for it
        torch._assert_async(~outside, message)
    counts = member.new_zeros(len(tags), v + 1)
    # One column of tags at a time, so that no two additions meet: the same bits each time.
    ones = member.new_ones(len(tags), 1)
    for column in tags.long().split(1, dim=1):
        counts.scatter_add_(1, torch.where(column < 0, v, column), ones)
    number = counts[:, :v] @ member
    return counts[:, :v] / (number.clamp(min=1) @ member.T), (number > 0).to(member.dtype)
