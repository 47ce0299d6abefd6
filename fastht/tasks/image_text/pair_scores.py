"""Scores of images and their captions: retrieval, nearest images of a class, alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastht.data import Record
from fastht.tasks.scores.alignment import Pairs, spread_scores
from fastht.tasks.scores.intervals import Resampling, weighted_means
from fastht.tasks.scores.retrieval import Retrieval, class_shares

RANKS = (1, 5, 10)
_Score = TypeVar("_Score")


def of_plain_text(scores: Mapping[str, _Score]) -> dict[str, _Score]:
    """Return scores under the names of those of the text tower without the tags of texts."""
    return {f"plain_text_{name}": score for name, score in scores.items()}


class PairScores:
    """What a model makes of images and their captions.

    Args:
        records: the n pairs; an image with several captions is one image.
        images: ``[n, E]``, normalised.
        texts: ``[n, E]``, normalised.
        plain: likewise by the text tower alone, where tags have changed the others; what retrieval
            makes of them is called ``plain_text_...``.

    Attributes:
        retrieval: the ranks of the right answers.
        resampling: of the different images, by patient.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Tensor,
        texts: Tensor,
        plain: Tensor | None = None,
    ) -> None:
        captions = [record.caption for record in records]
        files = [(record.image, record.frame) for record in records]
        patients = [record.patient for record in records]
        self.retrieval = Retrieval(images, texts, captions, files, patients)
        self._plain = None if plain is None else Retrieval(images, plain, captions, files, patients)
        shown = [records[i] for i in self.retrieval.first.tolist()]
        self.resampling = Resampling([r.patient for r in shown], [r.image for r in shown])
        self._pairs = Pairs(images, texts, captions)
        units = [
            ("file", r.image) if r.patient is None else ("patient", r.patient) for r in records
        ]
        self._spread = {
            f"{tower}_{name}": found
            for tower, features in (("image", images), ("text", texts))
            for name, found in spread_scores(features, units).items()
        }
        self._shares = _shares(shown, images[self.retrieval.first])

    def scores(self) -> dict[str, float]:
        """Return those of :class:`Retrieval`, of ``class_precision`` and of alignment."""
        once = torch.ones(1, self.retrieval.images, dtype=torch.float64)
        scores = {name: values.item() for name, values in self._resampled(once).items()}
        return scores | {name: found.value for name, found in self._spread.items()}

    @property
    def percentiles(self) -> Tensor:
        """The share of unmatched texts that each pair's image is farther from, ``[n]``."""
        return self._pairs.percentiles

    def _resampled(self, weights: Tensor) -> dict[str, Tensor]:
        """Return scores ``[r]`` for weights of the images, ``[r, images]``."""
        found = self.retrieval.resampled(weights, RANKS)
        found |= {name: weighted_means(shares, weights) for name, shares in self._shares.items()}
        found |= self._pairs.scores(weights[:, self.retrieval.image_of])
        if self._plain is not None:
            plain = self._plain.resampled(weights, RANKS)
            found |= of_plain_text(plain)
        return found


def pair_intervals(versions: Mapping[str, PairScores]) -> dict[str, Any]:
    """Return the intervals of the scores, as :meth:`Resampling.record` gives them.

    Those of uniformity and effective rank are the jackknife's; see :func:`spread_scores`.

    Args:
        versions: of one set of pairs, ``before`` and perhaps ``after`` the model was adapted.
    """
    made = next(iter(versions.values())).resampling
    record = made.record(**{name: made.statistics(v._resampled) for name, v in versions.items()})
    for name, version in versions.items():
        record[name] |= {score: [s.low, s.high] for score, s in version._spread.items()}
    # Where nothing adapts the model, it is the same before and after.
    record.setdefault("after", record["before"])
    return record


def _shares(records: Sequence[Record], images: Tensor) -> dict[str, Tensor]:
    """Return ``class_shares`` of different images, NaN for those without label, if it has any."""
    labelled = [i for i, record in enumerate(records) if record.label is not None]
    labels = [str(records[i].label) for i in labelled]
    if len(set(labels)) < 2:
        return {}
    result = {}
    patients = [records[i].patient for i in labelled]
    for name, values in class_shares(images[labelled], labels, patients, RANKS).items():
        result[name] = torch.full((len(records),), torch.nan, dtype=torch.float64)
        result[name][labelled] = values
    return result
