"""Held-out samples of contrastive fine-tuning: how each is told apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastht.data import Record
from fastht.tasks.image_text.pair_scores import of_plain_text
from fastht.tasks.scores.collapse import spread_of_pairs
from fastht.tasks.scores.intervals import Resampling, weighted_means
from fastht.tasks.scores.retrieval import Retrieval

RECALL_AT = (1, 5, 10)


class HeldOut:
    """What a model makes of held-out samples.

    An image with several captions is one image, as in ``fastht retrieve``: it is right if any
    caption of its own is found, and counts once in every score.

    Args:
        records: the n samples.
        images: ``[n, E]``, normalised.
        texts: ``[n, E]``, normalised.
        right: ``[n]``, 1 where the nearest class is the sample's, else 0; NaN without label.
            ``None``: there are no classes to tell apart.
        plain: ``[n, E]``, the texts without their tags, where a tag graph changes them; the scores
            of these are called ``plain_text_...``.

    Attributes:
        records: a sample of each of the m different images.
        retrieval: the ranks of their right answers.
        right: ``[m]``, of these.
        spread: whether the embeddings still differ, by :func:`spread_of_pairs`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        images: Tensor,
        texts: Tensor,
        right: Tensor | None,
        plain: Tensor | None = None,
    ) -> None:
        captions = [record.caption for record in records]
        files = [(record.image, record.frame) for record in records]
        self.retrieval = Retrieval(images, texts, captions, files)
        self._plain = None if plain is None else Retrieval(images, plain, captions, files)
        self.spread = spread_of_pairs(images, texts, captions)
        first = self.retrieval.first
        self.records = [records[i] for i in first.tolist()]
        self.right = None if right is None else right[first]

    def scores(self) -> dict[str, float]:
        """Return recalls of both directions, and the zero-shot accuracy if there are labels."""
        result = self.retrieval.recall(RECALL_AT)
        if self.right is not None:
            result["zero_shot_accuracy"] = self.right.nanmean().item()
        if self._plain is not None:
            result |= of_plain_text(self._plain.recall(RECALL_AT))
        return result

    def resampled(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the same scores ``[r]`` of resamples that count each image ``[r, m]`` times."""
        found = self.retrieval.resampled(weights, RECALL_AT)
        result = {name: found[name] for name in self.retrieval.recall(RECALL_AT)}
        if self.right is not None:
            result["zero_shot_accuracy"] = weighted_means(self.right, weights)
        if self._plain is not None:
            found = self._plain.resampled(weights, RECALL_AT)
            result |= of_plain_text({name: found[name] for name in self._plain.recall(RECALL_AT)})
        return result

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each image; their means are the scores of images."""
        rows = []
        for i, (record, rank) in enumerate(
            zip(self.records, self.retrieval.image_ranks.tolist(), strict=True)
        ):
            row: dict[str, Any] = {"file": _name(record), "patient": record.patient}
            row |= {"caption": record.caption, "image_to_text_rank": rank}
            row |= {f"image_to_text_recall@{k}": int(rank <= k) for k in RECALL_AT}
            if self.right is not None:
                known = record.label is not None
                row["label"] = record.label
                row["zero_shot_accuracy"] = int(self.right[i]) if known else None
            rows.append(row)
        return rows


def _name(record: Record) -> str:
    return record.image if record.frame is None else f"{record.image}::{record.frame}"


def resample_records(records: Sequence[Record]) -> Resampling:
    """Return resamples of patients; samples of an image without patient are drawn together."""
    return Resampling([r.patient for r in records], [r.image for r in records])


def held_out_intervals(before: HeldOut, after: HeldOut) -> dict[str, Any]:
    """Return the intervals of the scores and of their paired differences."""
    made = resample_records(before.records)
    return made.record(
        before=made.statistics(before.resampled), after=made.statistics(after.resampled)
    )
