"""How well two sets of embeddings are aligned, and whether either has collapsed.

Nothing here makes an ``n x n`` matrix: means over all pairs follow from sums of vectors, the rest
goes through blocks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fastht.tasks.scores.grouping import numbered

_BLOCK = 4_000_000  # similarities at a time
_PARTS = 20  # of the jackknife, at most
_FEW = 8  # rows of a group whose pairs are taken one by one
_TEMPERATURE = 2  # t of uniformity


def alignment_scores(
    images: Tensor,
    texts: Tensor,
    captions: Sequence[Hashable] | None = None,
    within: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Measure how images and their texts lie to each other; row i of both is a pair.

    A pair that is not of one row is unmatched, unless the captions are equal: an image has nothing
    to be told from the twin of its own caption.

    Args:
        images: ``[n, E]``, normalised.
        texts: ``[n, E]``, normalised.
        captions: what makes texts equal; default: all of them differ, as in the published score.
        within: a set or an organ of each row. Where there are several, pairs that are unmatched
            are also taken from the same one alone: telling organs apart is easy.

    Returns:
        - ``paired``, the mean cosine of the pairs; ``unmatched``, that of unmatched ones; ``gap``,
          their difference (the "paired alignment score" of arXiv 2605.02126 is ``paired``);
        - ``rank_percentile``, the chance that an image is nearer to its own text than to an
          unmatched one, ties counting half: 0.5 where nothing is learnt, 1 at best;
        - ``modality_gap``, the distance of the two means;
        - ``alignment``, the mean squared distance of the pairs (Wang & Isola 2020, alpha = 2);
        - ``image_uniformity`` and ``text_uniformity``, the logarithm of the mean of
          ``exp(-2 |x - x'|^2)`` over different rows (the same, t = 2): 0 where all are equal;
        - ``image_effective_rank`` and ``text_effective_rank``, the exponential of the entropy of
          the centred embeddings' normalised singular values (Roy & Vetterli 2007): near 1 after
          a collapse;
        - with ``within``, ``within_unmatched``, ``within_gap`` and ``within_rank_percentile``.

        NaN where there are no such pairs.

    Raises:
        ValueError: the rows do not agree in number, or there are none.
    """
    pairs = Pairs(images, texts, captions)
    scores = pairs.scores(torch.ones(1, len(images), dtype=torch.float64))
    result = {name: values.item() for name, values in scores.items()}
    if within is not None and len(set(within)) > 1:
        inside = Pairs(images, texts, captions, within)
        found = inside.scores(torch.ones(1, len(images), dtype=torch.float64))
        result |= {f"within_{name}": found[name].item() for name in WITHIN}
    for name, features in (("image", images), ("text", texts)):
        result[f"{name}_uniformity"] = uniformity(features)
        result[f"{name}_effective_rank"] = effective_rank(features)
    return result


WITHIN = ("unmatched", "gap", "rank_percentile")


class Pairs:
    """Pairs of embeddings whose scores can be computed for many weightings of the rows at once.

    Args:
        images: as of :func:`alignment_scores`.
        texts: likewise.
        captions: likewise.
        within: unmatched pairs are those whose rows agree in this; default: all.
    """

    def __init__(
        self,
        images: Tensor,
        texts: Tensor,
        captions: Sequence[Hashable] | None = None,
        within: Sequence[Hashable] | None = None,
    ) -> None:
        _check(images, texts)
        count = len(images)
        # Sums over all pairs are differences of large numbers.
        self.images, self.texts = images.double().cpu(), texts.double().cpu()
        rows = list(range(count))
        self.captions = numbered(rows if captions is None else captions)
        self.within = numbered([0] * count if within is None else within)
        # Equal captions of two sets are no pair of either.
        both = list(zip(self.captions.tolist(), self.within.tolist(), strict=True))
        self._twins = numbered(both)
        self.paired = (self.images * self.texts).sum(dim=1)

    def cosines(self) -> tuple[float, float]:
        """Return the mean cosines of matched and of unmatched pairs, in O(n E)."""
        once = torch.ones(1, len(self.paired), dtype=torch.float64)
        return self.paired.mean().item(), self._unmatched(once).item()

    def scores(self, weights: Tensor) -> dict[str, Tensor]:
        """Return ``paired``, ``unmatched``, ``gap``, ``rank_percentile``, and so on.

        Args:
            weights: ``[R, n]``, how often each row counts. A row that counts twice is not unmatched
                with itself. Rank percentiles are those among all rows and only weighted.

        Returns:
            ``[R]``, float64, of each score that needs no other row's features.
        """
        weights = weights.double()
        total = weights.sum(dim=1)
        paired = weights @ self.paired / total
        unmatched = self._unmatched(weights)
        means = [weights @ features / total[:, None] for features in (self.images, self.texts)]
        defined = ~self.percentiles.isnan()
        counted = weights[:, defined]
        return {
            "paired": paired,
            "unmatched": unmatched,
            "gap": paired - unmatched,
            "rank_percentile": counted @ self.percentiles[defined] / counted.sum(dim=1),
            "modality_gap": (means[0] - means[1]).norm(dim=1),
            "alignment": 2 - 2 * paired,
        }

    def _unmatched(self, weights: Tensor) -> Tensor:
        """Return the weighted mean cosine of unmatched pairs: all pairs without those of twins."""
        sums, counts = self._pair_sums(weights, self.within)
        twins, twin_counts = self._pair_sums(weights, self._twins)
        # Where every pair is one of twins, what is left is rounding.
        counts = counts - twin_counts
        return torch.where(counts > 0, (sums - twins) / counts, math.nan)

    def _pair_sums(self, weights: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Sum cosines and weights over the pairs ``(i, j)`` whose rows are of one group."""
        sizes = groups.bincount()
        order = groups.argsort(stable=True)
        small = order[sizes[groups[order]] <= _FEW]  # groups side by side
        sums = torch.zeros(len(weights), dtype=torch.float64)
        counts = torch.zeros(len(weights), dtype=torch.float64)
        for shift in range(min(_FEW, len(small))):
            first, second = small[: len(small) - shift], small[shift:]
            same = groups[first] == groups[second]
            first, second = first[same], second[same]
            products = weights[:, first] * weights[:, second]
            similar = (self.images[first] * self.texts[second]).sum(dim=1)
            if shift:  # (i, j) and (j, i)
                similar = similar + (self.images[second] * self.texts[first]).sum(dim=1)
            sums += products @ similar
            counts += products.sum(dim=1) * (2 if shift else 1)
        # Of large groups, all pairs at once by the sums of their vectors.
        for group in sizes.gt(_FEW).nonzero()[:, 0].tolist():
            rows = (groups == group).nonzero()[:, 0]
            own = weights[:, rows]
            images, texts = own @ self.images[rows], own @ self.texts[rows]
            sums += (images * texts).sum(dim=1)
            counts += own.sum(dim=1) ** 2
        return sums, counts

    @cached_property
    def percentiles(self) -> Tensor:
        """The share of unmatched texts that each image is farther from than from its own."""
        result = []
        for rows in _blocks(len(self.images), len(self.images)):
            similar = self.images[rows] @ self.texts.T
            own = similar.gather(1, rows[:, None])  # of the same product: equal texts are ties
            apart = self.captions[rows, None] != self.captions
            apart &= self.within[rows, None] == self.within
            won = ((similar < own).double() + 0.5 * (similar == own)) * apart
            result.append(won.sum(dim=1) / apart.sum(dim=1))
        return torch.cat(result)


def uniformity(features: Tensor) -> float:
    """Return ``log mean exp(-2 |x - x'|^2)`` over the pairs of different rows; NaN for one row.

    Args:
        features: ``[n, E]``, normalised.
    """
    return _uniformity(_kernel_sums(features, torch.zeros(len(features), dtype=torch.int64)))


def effective_rank(features: Tensor) -> float:
    """Return the exponential of the entropy of the centred rows' singular values.

    Args:
        features: ``[n, E]``.

    Returns:
        From 1, all rows on one line, to ``min(n - 1, E)``; NaN where all rows are the same.
    """
    features = features.double().cpu()
    return _spectrum_rank(_scatter(features - features.mean(dim=0)))


@dataclass(frozen=True)
class Jackknifed:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def spread_scores(features: Tensor, groups: Sequence[Hashable]) -> dict[str, Jackknifed]:
    """Return ``uniformity`` and ``effective_rank`` with 95 % intervals by the jackknife.

    Not by the bootstrap: rows drawn twice would themselves make the set less uniform and of lower
    rank. The groups are dealt to at most twenty parts, each of which is left out once.

    Args:
        features: ``[n, E]``, normalised.
        groups: n patients, whose rows are left out together.
    """
    part = numbered(groups) % _PARTS
    features = features.double().cpu()
    parts = int(part.max()) + 1
    sums, counts = _kernel_sums(features, part)
    left_out = []
    for p in range(parts):
        # Rows and columns of the part go; its own square has gone twice then.
        without = [m.sum() - m[p].sum() - m[:, p].sum() + m[p, p] for m in (sums, counts)]
        left_out.append(_uniformity((without[0], without[1])))
    ranks = []
    for p in range(parts):
        kept = features[part != p]
        ranks.append(_spectrum_rank(_scatter(kept - kept.mean(dim=0))) if len(kept) else math.nan)
    whole = _uniformity((sums.sum(), counts.sum()))
    return {
        "uniformity": _jackknife(whole, left_out),
        "effective_rank": _jackknife(effective_rank(features), ranks),
    }


def _jackknife(value: float, left_out: Sequence[float]) -> Jackknifed:
    found = torch.tensor(left_out, dtype=torch.float64)
    parts = len(found)
    if parts < 2:
        return Jackknifed(value, math.nan, math.nan)
    error = ((parts - 1) / parts * ((found - found.mean()) ** 2).sum()).sqrt().item()
    return Jackknifed(value, value - 1.959964 * error, value + 1.959964 * error)


def _kernel_sums(features: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Sum ``exp(-2 |x - x'|^2)`` and count the pairs of different rows, by the parts of both."""
    features = features.double().cpu()
    parts = int(part.max()) + 1
    member = torch.nn.functional.one_hot(part, parts).double()  # [n, parts]
    sums = torch.zeros(parts, parts, dtype=torch.float64)
    squares = (features**2).sum(dim=1)
    for rows in _blocks(len(features), len(features)):
        distances = squares[rows, None] + squares - 2 * features[rows] @ features.T
        kernel = (-_TEMPERATURE * distances.clamp_min(0)).exp()
        kernel[torch.arange(len(rows)), rows] = 0  # a row with itself
        sums += member[rows].T @ kernel @ member
    sizes = member.sum(dim=0)
    return sums, sizes[:, None] * sizes - torch.diag(sizes)


def _uniformity(summed: tuple[Tensor, Tensor]) -> float:
    sums, counts = (tensor.sum() for tensor in summed)
    return (sums / counts).log().item() if counts > 0 else math.nan


def _scatter(centred: Tensor) -> Tensor:
    """Return the smaller one of the two products whose eigenvalues are the squared spectrum."""
    return centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T


def _spectrum_rank(scatter: Tensor) -> float:
    values = torch.linalg.eigvalsh(scatter).clamp_min(0)
    # What is left of zero after rounding is no direction.
    values = values[values > values.max() * len(values) * torch.finfo(values.dtype).eps].sqrt()
    if not len(values):
        return math.nan
    share = values / values.sum()
    return (-(share * share.log()).sum()).exp().item()


def _blocks(rows: int, columns: int) -> Iterator[Tensor]:
    yield from torch.arange(rows).split(max(1, _BLOCK // columns))


def _check(images: Tensor, texts: Tensor) -> None:
    if images.shape != texts.shape or images.ndim != 2 or not len(images):
        raise ValueError(
            f"images are {list(images.shape)} and texts {list(texts.shape)}: give a row of both "
            "for each pair, [n, E]"
        )
