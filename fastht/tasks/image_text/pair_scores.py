"""Scores of images and their captions: retrieval, nearest images of a class, alignment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastht.data import Record
from fastht.tasks.scores.alignment import Pairs, spread_scores
from fastht.tasks.scores.retrieval import Retrieval, class_shares

RANKS = (1, 5, 10)


class PairScores:
    """What a model makes of images and their captions.

    Args:
        records: the n pairs; an image with several captions is one image.
        images: ``[n, E]``, normalised.
        texts: ``[n, E]``, normalised.

    Attributes:
        retrieval: the ranks of the right answers.
    """

    def __init__(self, records: Sequence[Record], images: Tensor, texts: Tensor) -> None:
        captions = [record.caption for record in records]
        patients = [record.patient for record in records]
        files = [(record.image, record.frame) for record in records]
        self.retrieval = Retrieval(images, texts, captions, files, patients)
        self._pairs = Pairs(images, texts, captions)
        own = [
            file if patient is None else patient
            for file, patient in zip(files, patients, strict=True)
        ]
        self._spread = {
            f"{tower}_{name}": found
            for tower, features in (("image", images), ("text", texts))
            for name, found in spread_scores(features, own).items()
        }
        labelled = [i for i in self.retrieval.first.tolist() if records[i].label is not None]
        self._shares: dict[str, Tensor] = {}
        if len(labels := [str(records[i].label) for i in labelled]) and len(set(labels)) > 1:
            found = class_shares(images[labelled], labels, [patients[i] for i in labelled], RANKS)
            for name, values in found.items():
                self._shares[name] = torch.full((len(records),), torch.nan, dtype=torch.float64)
                self._shares[name][labelled] = values

    def scores(self) -> dict[str, float]:
        """Return those of :class:`Retrieval`, of ``class_precision`` and of alignment."""
        once = torch.ones(1, len(self._pairs.images), dtype=torch.float64)
        scores = self.retrieval.scores(RANKS)
        scores |= {name: shares.nanmean().item() for name, shares in self._shares.items()}
        scores |= {name: values.item() for name, values in self._pairs.scores(once).items()}
        return scores | {name: found.value for name, found in self._spread.items()}
