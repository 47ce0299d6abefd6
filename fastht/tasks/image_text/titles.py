"""Captions of training samples that have several: one an epoch, drawn by a keyed hash."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastht.data import Record
from fastht.data.draws import draw
from fastht.tasks.training.sampler import GlobalBatchSampler, mean_multiplicity


class EpochCaptions:
    """The different captions of samples, and which each sample has in an epoch.

    Of k captions a sample has each once in k epochs, in an order that follows from the seed and the
    name of its image; then in another order.

    Args:
        records: the samples.
        seed: of the order.

    Attributes:
        texts: all captions, each once.
        several: whether any sample has more than one.
    """

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        numbers: dict[str, int] = {}
        self._rows = [
            [numbers.setdefault(text, len(numbers)) for text in (record.caption, *record.others)]
            for record in records
        ]
        self._names = [record.name or record.image for record in records]
        self._seed = seed
        self.texts = tuple(numbers)
        self.several = any(len(rows) > 1 for rows in self._rows)

    def rows(self, epoch: int) -> Tensor:
        """Return the place in ``texts`` of each sample's caption in an epoch, int64 ``[n]``."""
        return self._drawn(epoch if self.several else 0)

    @lru_cache(maxsize=2)  # noqa: B019 (as long as the training)
    def _drawn(self, epoch: int) -> Tensor:
        chosen = []
        for name, rows in zip(self._names, self._rows, strict=True):
            count = len(rows)
            place = 0
            if count > 1:
                place = draw(self._seed, name, f"epochs {epoch // count}", count, count)[
                    epoch % count
                ]
            chosen.append(rows[place])
        return torch.tensor(chosen)


def spread_record(sampler: GlobalBatchSampler, captions: EpochCaptions) -> dict[str, Any]:
    """Return how often a caption is in its batch, spread and merely shuffled, in the first epoch.

    Both are means over the samples: 1 where all captions of each batch differ.
    """
    numbers = captions.rows(0)
    return {
        "multiplicity": mean_multiplicity(sampler.batches(0), numbers),
        "multiplicity_shuffled": mean_multiplicity(sampler.batches(0, spread=False), numbers),
    }


def repeats(captions: EpochCaptions) -> bool:
    """Return whether two samples have one caption in the first epoch, or may later."""
    first = captions.rows(0)
    return captions.several or len(first.unique()) < len(first)


def describe_spread(record: dict[str, Any]) -> str:
    """Say how often a caption is in its batch."""
    return (
        f"Equal captions are spread over the batches: a sample's caption is "
        f"{record['multiplicity']:.2f} times in its batch, its own time among them, and would be "
        f"{record['multiplicity_shuffled']:.2f} times by shuffling alone."
    )
