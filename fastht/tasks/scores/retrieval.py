"""Numbers that say how well images and texts find each other.

The tie rule of all ranks: what scores as well as the right answer counts as found before it, so
that features that tell nothing apart come last and not first; so does NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastht.tasks.scores.grouping import numbered
from fastht.tasks.scores.intervals import shared_weights, weighted_means

TIE_RULE = "ties count against the right answer"
_BLOCK = 4_000_000  # similarities at a time


class Retrieval:
    """Ranks of the right answers, of every query in both directions.

    The candidates are the different captions, so that an image whose caption occurs twice is not
    counted wrong for finding its twin; a caption finds its image if it finds any that has it.

    Args:
        image_features: ``[n, E]``, normalised.
        text_features: ``[n, E]``, normalised, row i of ``captions[i]``.
        captions: n texts; equal ones are one.
        images: what tells images apart, as an image with several captions is one; default: each
            row has another one.
        patients: the patient of each row; ``None`` where it is not known. Default: none is known.

    Attributes:
        images: number of different images, the gallery of texts.
        captions: number of different captions, the gallery of images.
        image_of: ``[n]``, which of the different images is that of each row.
        caption_of: ``[n]``, likewise which caption.
        first: ``[images]``, a row of each image.
        image_ranks: ``[images]``, from 1: how near an image has any caption of its own.
        caption_ranks: ``[captions]``: how near a caption has any image of its own.
        exact_ranks: ``[n]``: how near the text of a row has the image of that row, where images of
            equal captions are wrong.
        patient_image_ranks: ``[images]``: how near an image has any caption of its patient; NaN
            where the patient is not known. ``None`` if no patient is.
        patient_caption_ranks: ``[captions]``: how near a caption has any image of the patients
            whose it is; likewise.
    """

    def __init__(
        self,
        image_features: Tensor,
        text_features: Tensor,
        captions: Sequence[str],
        images: Sequence[Hashable] | None = None,
        patients: Sequence[Hashable | None] | None = None,
    ) -> None:
        self.image_of = numbered(range(len(captions)) if images is None else images)
        self.caption_of = numbered(captions)
        self.first = _first_rows(self.image_of)
        shown, written = self.first, _first_rows(self.caption_of)
        self.images, self.captions = len(shown), len(written)
        seen, texts = image_features[shown], text_features[written]
        own = (self.image_of, self.caption_of)
        self.image_ranks, self.caption_ranks = _ranks(seen, texts, own)
        rows = torch.arange(len(captions))
        self.exact_ranks = _ranks(seen, text_features, (self.image_of, rows))[1]
        self.patient_image_ranks: Tensor | None = None
        self.patient_caption_ranks: Tensor | None = None
        if patients is not None and any(patient is not None for patient in patients):
            found = _ranks(seen, texts, self._of_patients(patients))
            known = torch.tensor([patient is not None for patient in patients])
            self.patient_image_ranks = _where_any(found[0], self.image_of, known)
            self.patient_caption_ranks = _where_any(found[1], self.caption_of, known)

    def recall(self, ks: Sequence[int]) -> dict[str, float]:
        """Return ``image_to_text_recall@k`` and ``text_to_image_recall@k``, each in [0, 1]."""
        return {name: values.mean().item() for name, values in self._hits(ks).items()}

    def scores(self, ks: Sequence[int]) -> dict[str, float]:
        """Return recall@k, the median and the mean rank in both directions, and more.

        Args:
            ks: the ranks k.

        Returns:
            What :meth:`recall` returns; ``..._median_rank`` and ``..._mean_rank``, at
            best 1; ``rsum``, the sum of all recalls, at best twice the number of ranks k; and
            beside these, which count equal captions as right,
            ``text_to_image_exact_recall@k`` and, where patients are known,
            ``..._patient_recall@k`` in both directions, over the queries whose patient is.
        """
        weights = torch.ones(1, self.images, dtype=torch.float64)
        return {name: values.item() for name, values in self.resampled(weights, ks).items()}

    def resampled(self, weights: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
        """Return :meth:`scores` for weights of the images, of the queries among one gallery.

        Args:
            weights: ``[R, images]``, how often each image counts. A caption counts as its images
                do on average. The gallery stays whole.
            ks: the ranks k.

        Returns:
            ``[R]`` of each score, float64.
        """
        of_rows = weights.double()[:, self.image_of]
        of_images = weights.double()
        of_captions = shared_weights(of_rows, self.caption_of, self.captions)
        result: dict[str, Tensor] = {}
        for direction, ranks, counted in (
            ("image_to_text", self.image_ranks, of_images),
            ("text_to_image", self.caption_ranks, of_captions),
        ):
            result |= {
                name: weighted_means(hit, counted)
                for name, hit in _recalled(direction, ranks, ks).items()
            }
            result[f"{direction}_median_rank"] = _weighted_median(ranks, counted)
            result[f"{direction}_mean_rank"] = weighted_means(ranks, counted)
        directions = ("image_to_text", "text_to_image")
        total = sum(result[f"{d}_recall@{k}"] for d in directions for k in ks)
        result["rsum"] = torch.as_tensor(total)
        for direction, beside, counted in (
            ("text_to_image_exact", self.exact_ranks, of_rows),
            ("image_to_text_patient", self.patient_image_ranks, of_images),
            ("text_to_image_patient", self.patient_caption_ranks, of_captions),
        ):
            if beside is not None:
                result |= {
                    name: weighted_means(hit, counted)
                    for name, hit in _recalled(direction, beside, ks).items()
                }
        return result

    def gallery(self) -> dict[str, Any]:
        """Return among how many candidates is searched, and the tie rule, as plain JSON types."""
        return {"images": self.images, "captions": self.captions, "ties": TIE_RULE}

    def describe(self) -> str:
        """Say in a line among how many candidates is searched, and the tie rule."""
        return f"gallery: {self.images:,} images, {self.captions:,} captions; {TIE_RULE}"

    def _hits(self, ks: Sequence[int]) -> dict[str, Tensor]:
        """Return which queries find a right answer among the first k."""
        images = _recalled("image_to_text", self.image_ranks, ks)
        return images | _recalled("text_to_image", self.caption_ranks, ks)

    def _of_patients(self, patients: Sequence[Hashable | None]) -> tuple[Tensor, Tensor]:
        """Return the images and captions that are of one patient, pair by pair."""
        of: dict[Hashable, tuple[set[int], set[int]]] = {}
        rows = zip(self.image_of.tolist(), self.caption_of.tolist(), patients, strict=True)
        for image, caption, patient in rows:
            if patient is not None:
                images, captions = of.setdefault(patient, (set(), set()))
                images.add(image)
                captions.add(caption)
        pairs = {
            (image, caption)
            for images, captions in of.values()
            for image in images
            for caption in captions
        }
        found = torch.tensor(sorted(pairs))
        return found[:, 0], found[:, 1]


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
    found = class_shares(features, labels, patients, ks)
    return {name: values.nanmean().item() for name, values in found.items()}


def class_shares(
    features: Tensor, labels: Sequence[str], patients: Sequence[str | None], ks: Sequence[int]
) -> dict[str, Tensor]:
    """Return the shares of each image whose means :func:`class_precision` gives.

    Returns:
        ``image_to_image_precision@k``, ``[n]``, float64; NaN for images without candidates.
    """
    label = numbered(labels)
    patient = numbered([(i,) if name is None else name for i, name in enumerate(patients)])
    parts: dict[str, list[Tensor]] = {f"image_to_image_precision@{k}": [] for k in ks}
    for rows in _blocks(len(features), len(features)):
        scores = (features[rows] @ features.T).cpu()
        scores = scores.masked_fill(patient[rows, None] == patient, -torch.inf)
        found = scores.topk(min(max(ks), len(labels)), dim=1)
        counted = found.values != -torch.inf
        right = (label[found.indices] == label[rows, None]) & counted
        for k, shares in zip(ks, parts.values(), strict=True):
            shares.append(right[:, :k].sum(dim=1) / counted[:, :k].sum(dim=1).double())
    return {name: torch.cat(shares) for name, shares in parts.items()}


def _ranks(images: Tensor, texts: Tensor, right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the rank of the best right answer of each image and of each text, from 1.

    Args:
        images: ``[a, E]``.
        texts: ``[b, E]``.
        right: the pairs that are right answers, each once or more, as indexes of both.
    """
    order = right[0].argsort(stable=True)
    rows, columns = right[0][order], right[1][order]
    best_of_texts = torch.full((len(texts),), -torch.inf, dtype=images.dtype)
    image_ranks = torch.ones(len(images), dtype=torch.int64)
    text_ranks = torch.ones(len(texts), dtype=torch.int64)

    def block(part: Tensor) -> tuple[Tensor, Tensor]:
        scores = (images[part] @ texts.T).cpu()
        inside = slice(*torch.searchsorted(rows, torch.stack([part[0], part[-1] + 1])).tolist())
        mask = torch.zeros_like(scores, dtype=torch.bool)
        mask[rows[inside] - part[0], columns[inside]] = True
        return scores, mask

    for part in _blocks(len(images), len(texts)):
        scores, mask = block(part)
        own = scores.masked_fill(~mask, -torch.inf)
        # NaN passes through amax and maximum, and then is below nothing.
        best = own.amax(dim=1)
        image_ranks[part] += (~(scores < best[:, None]) & ~mask).sum(dim=1)
        best_of_texts = torch.maximum(best_of_texts, own.amax(dim=0))
    for part in _blocks(len(images), len(texts)):
        scores, mask = block(part)
        text_ranks += (~(scores < best_of_texts) & ~mask).sum(dim=0)
    return image_ranks, text_ranks


def _where_any(ranks: Tensor, owner: Tensor, known: Tensor) -> Tensor:
    """Return ranks as float64, NaN for those none of whose rows is known."""
    some = torch.zeros(len(ranks), dtype=torch.bool)
    some[owner[known]] = True
    return ranks.double().masked_fill(~some, torch.nan)


def _recalled(direction: str, ranks: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Return 1 for queries that find a right answer among the first k, NaN for those left out."""
    ranks = ranks.double()
    undefined = ranks.isnan()
    return {
        f"{direction}_recall@{k}": (ranks <= k).double().masked_fill(undefined, torch.nan)
        for k in ks
    }


def _weighted_median(values: Tensor, weights: Tensor) -> Tensor:
    """Return the median of each resample, the mean of both middle values of an even number."""
    order = values.argsort()
    values = values[order].double()
    below = weights[:, order].cumsum(dim=1)
    half = below[:, -1:] / 2
    # Weights of captions are means: sums of them round.
    close = 1e-9 * half
    last = len(values) - 1
    lower = (below < half - close).sum(dim=1).clamp_max(last)
    upper = (below <= half + close).sum(dim=1).clamp_max(last)
    return (values[lower] + values[upper]) / 2


def _blocks(rows: int, columns: int) -> Iterator[Tensor]:
    yield from torch.arange(rows).split(max(1, _BLOCK // max(1, columns)))


def _first_rows(numbers: Tensor) -> Tensor:
    """Return the first row of each number; they are numbered by their first occurrence."""
    first = torch.full((int(numbers.max()) + 1,), len(numbers))
    return first.scatter_reduce(0, numbers, torch.arange(len(numbers)), "amin")
