"""Signs that contrastive training has collapsed: every image as near to every text as to its own.

A collapsed run goes on without an error, its loss at what guessing costs, and the best of its
epochs may even score above chance on a test of few classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastht.tasks.scores.alignment import Pairs, effective_rank

REMEDY = (
    "lower --lr, above all where whole towers train, or train less of the model (--method ht); "
    "then start anew in another --out"
)
_EPOCHS = 2  # in a row: a model that starts from random weights passes through its first one so
_ENOUGH = 10  # held-out pairs, below which ranks and gaps say little
_NEAR_CHANCE = 0.01  # of the loss of guessing
_CLOSE = 0.95  # mean cosine of unmatched pairs
_GAP = 1e-3  # between the cosines of matched and unmatched pairs
_RANK = 2.0


def spread_of_pairs(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return what :class:`CollapseAlarm` needs to know of held-out embeddings, in O(n E^2).

    Args:
        images: ``[n, E]``, normalised; row i of both is a pair.
        texts: ``[n, E]``, normalised.
        captions: n of them; equal ones make no unmatched pair.

    Returns:
        ``paired`` and ``unmatched``, the mean cosines; ``image_effective_rank`` and
        ``text_effective_rank``, 1 where all rows are the same.
    """
    paired, unmatched = Pairs(images, texts, captions).cosines()
    ranks = [effective_rank(features) for features in (images, texts)]
    ranks = [1.0 if math.isnan(rank) else rank for rank in ranks]
    return {
        "paired": paired,
        "unmatched": unmatched,
        "image_effective_rank": ranks[0],
        "text_effective_rank": ranks[1],
    }


@dataclass
class CollapseAlarm:
    """Watches the epochs of a contrastive run and tells once that it has collapsed.

    Args:
        chance: training loss of guessing, ``ln(batch size)`` of InfoNCE, whatever its positives;
            ``None`` for a loss that has no such number.
        pairs: how many are held out.

    Attributes:
        epoch: the epoch after which it was told; ``None``: it was not.
        signs: what was seen.
    """

    chance: float | None
    pairs: int
    epoch: int | None = None
    signs: tuple[str, ...] = ()
    _bad: int = 0

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Return a warning with its remedy, if the run has collapsed and it was not yet told.

        Args:
            row: of an epoch: ``epoch``, ``train_loss`` and what :func:`spread_of_pairs` returns.
        """
        signs = self._signs(row)
        self._bad = self._bad + 1 if signs else 0
        if self._bad < _EPOCHS or self.epoch is not None:
            return None
        self.epoch, self.signs = int(row["epoch"]), tuple(signs)
        return f"WARNING: the run has collapsed: {'; '.join(signs)}. What helps: {REMEDY}"

    def record(self) -> dict[str, object] | None:
        """Return what was told, as plain JSON types; ``None``: nothing."""
        return None if self.epoch is None else {"epoch": self.epoch, "signs": list(self.signs)}

    def _signs(self, row: Mapping[str, float]) -> list[str]:
        signs = []
        loss = row["train_loss"]
        if self.chance and abs(loss - self.chance) <= _NEAR_CHANCE * self.chance:
            signs.append(f"the training loss is {loss:.3f}, and guessing costs {self.chance:.3f}")
        # Runs that an older version began have epochs without these numbers.
        if self.pairs < _ENOUGH or "paired" not in row:
            return signs
        paired, unmatched = row["paired"], row["unmatched"]
        if unmatched > _CLOSE:
            signs.append(f"unmatched images and texts have a mean cosine of {unmatched:.3f}")
        if abs(paired - unmatched) < _GAP:
            signs.append(f"matched pairs have mean cosine {paired:.4f}, others {unmatched:.4f}")
        for tower in ("image", "text"):
            if (rank := row[f"{tower}_effective_rank"]) < _RANK:
                signs.append(f"the {tower} embeddings have an effective rank of {rank:.2f}")
        return signs
