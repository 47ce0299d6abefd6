"""Signs that contrastive training has collapsed: embeddings that differed no longer do.

A collapsed run goes on without an error, its loss at what guessing costs, and the best of its
epochs may even score above chance on a test of few classes. A run that has not begun to learn has
the same loss and as little between matched and unmatched pairs. What tells the two apart is where
they come from: a collapse loses a spread, or a lower loss, that was there before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fastht.tasks.scores.alignment import Pairs, effective_rank

State = Literal["learning", "at guessing", "collapsed", "not judged"]

_REMEDY = (
    "lower --lr, above all where whole towers train, or train less of the model (--method ht); "
    "then start anew in another --out"
)
_SLOW_REMEDY = "more epochs, another --lr, or towers of pretrained weights"
_EPOCHS = 2  # in a row: one may be the price of a first large step
_ENOUGH = 10  # held-out pairs, below which ranks and gaps say little
_NEAR_CHANCE = 0.01  # of the loss of guessing
_BELOW_CHANCE = 0.05  # of it: what a run must have been below to fall back
_GAP = 1e-3  # between the cosines of matched and unmatched pairs
_SAME = 1e-6  # spread of embeddings that are the same but for rounding
_LOST = 0.25  # of the largest spread so far
_RANK = 2.0
_WORSE = 1.05  # times the lowest training loss
_TOWERS = ("image", "text")


def spread_of_pairs(images: Tensor, texts: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Return what :class:`CollapseAlarm` needs to know of held-out embeddings, in O(n E^2).

    Args:
        images: ``[n, E]``, normalised; row i of both is a pair.
        texts: ``[n, E]``, normalised.
        captions: n of them; equal ones make no unmatched pair.

    Returns:
        ``paired`` and ``unmatched``, the mean cosines; of each tower ``image_spread`` and
        ``text_spread``, 1 less the mean cosine over all pairs of rows, 0 where all rows are the
        same; ``image_effective_rank`` and ``text_effective_rank``, 1 where they are.
    """
    paired, unmatched = Pairs(images, texts, captions).cosines()
    found = {"paired": paired, "unmatched": unmatched}
    for tower, features in zip(_TOWERS, (images, texts), strict=True):
        rank = effective_rank(features)
        mean = features.double().mean(dim=0)
        found[f"{tower}_spread"] = max(0.0, 1 - mean.square().sum().item())
        found[f"{tower}_effective_rank"] = 1.0 if math.isnan(rank) else rank
    return found


@dataclass
class CollapseAlarm:
    """Watches the epochs of a contrastive run: whether it learns, stands still or has collapsed.

    An epoch is at guessing where its training loss is no lower than what guessing costs and, held
    out, matched pairs are no nearer than unmatched ones. It is collapsed where, besides, the
    embeddings of a tower are the same, or have lost three quarters of their spread or fallen below
    an effective rank of 2, or the loss had been lower before; and where a rank has fallen below 2
    while the training loss rose. A rank that falls with the loss is none: images that differ in
    their class alone come to lie so.

    Args:
        chance: training loss of guessing, ``ln(batch size)`` of InfoNCE, whatever its positives;
            ``None`` for a loss that has no such number.
        pairs: how many are held out.

    Attributes:
        states: of each epoch so far.
        alarms: what was told: the epoch after which, the signs, and the epoch that withdrew it.
    """

    chance: float | None
    pairs: int
    states: list[State] = field(default_factory=list)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    _highest: dict[str, float] = field(default_factory=dict)
    _lowest: float = math.inf
    _signs: tuple[str, ...] = ()

    def begin(self, spread: Mapping[str, float]) -> None:
        """Take what :func:`spread_of_pairs` returns before the first step, which may be lost."""
        self._remember(spread)

    def watch(self, row: Mapping[str, float]) -> str | None:
        """Return what there is to tell after an epoch: of a collapse, or of one that has passed.

        A collapse is told once it is there for two epochs, with its remedy.

        Args:
            row: of an epoch: ``epoch``, ``train_loss`` and what :func:`spread_of_pairs` returns.
        """
        guessing = self._guessing(row)
        signs = self._collapse(row, guessing)
        if guessing and self._state == "collapsed":
            signs = signs or guessing  # a spread that comes back has taught nothing yet
        state: State = "not judged" if guessing is None else "learning"
        if guessing:
            state = "at guessing"
        if signs:
            state = "collapsed"
        self.states.append(state)
        self._signs = tuple(signs or guessing or ())
        self._remember(row)
        epoch = int(row["epoch"])
        if self._stands:
            if state == "collapsed":
                return None
            alarm = self.alarms[-1]
            alarm["recovered"] = epoch
            return (
                f"After epoch {epoch} the run is no longer collapsed, as was told after epoch "
                f"{alarm['epoch']}."
            )
        if self.states[-_EPOCHS:] != ["collapsed"] * _EPOCHS:
            return None
        return self._tell(epoch, "has collapsed")

    def conclude(self, best_epoch: int) -> str | None:
        """Return what there is to tell at the end: of a collapse, or of nothing learnt.

        Args:
            best_epoch: the epoch, from 1, whose weights are kept.
        """
        if self._state == "at guessing":
            return (
                f"The run ended at guessing: {'; '.join(self._signs)}. It has not collapsed, it "
                f"has not begun to learn. What may help: {_SLOW_REMEDY}."
            )
        if self._state != "collapsed":
            return None
        if self._stands:
            said = (
                f"WARNING: the run ended collapsed, as was told after epoch "
                f"{self.alarms[-1]['epoch']}."
            )
        else:
            said = self._tell(len(self.states), "ended collapsed")
        kept = "collapsed too" if self.states[best_epoch - 1] == "collapsed" else "before that"
        return f"{said} The weights that are kept are of epoch {best_epoch}, {kept}."

    def record(self, best_epoch: int) -> dict[str, Any]:
        """Return the states and what was told, as plain JSON types.

        Args:
            best_epoch: the epoch, from 1, whose weights are kept.

        Returns:
            ``state``, of the last epoch; ``best_epoch_state``; and ``alarms``.
        """
        best = self.states[best_epoch - 1]
        return {"state": self._state, "best_epoch_state": best, "alarms": self.alarms}

    @property
    def _state(self) -> State:
        return self.states[-1] if self.states else "not judged"

    @property
    def _stands(self) -> bool:
        return bool(self.alarms) and self.alarms[-1]["recovered"] is None

    def _tell(self, epoch: int, what: str) -> str:
        self.alarms.append({"epoch": epoch, "signs": [*self._signs], "recovered": None})
        return f"WARNING: the run {what}: {'; '.join(self._signs)}. What helps: {_REMEDY}."

    def _remember(self, row: Mapping[str, float]) -> None:
        self._lowest = min(self._lowest, row.get("train_loss", math.inf))
        for tower in _TOWERS:
            for name in (f"{tower}_spread", f"{tower}_effective_rank"):
                if name in row:
                    self._highest[name] = max(row[name], self._highest.get(name, 0.0))

    def _judges_pairs(self, row: Mapping[str, float]) -> bool:
        # Runs that an older version began have epochs without these numbers, and captions that
        # are all equal make no unmatched pair.
        unmatched = row.get("unmatched", math.nan)
        return self.pairs >= _ENOUGH and not math.isnan(unmatched)

    def _guessing(self, row: Mapping[str, float]) -> list[str] | None:
        """Return the signs that nothing is told apart, if all are there; ``None``: not known."""
        loss = row["train_loss"]
        if self.chance is None and not self._judges_pairs(row):
            return None
        signs = []
        if self.chance is not None:
            if loss < (1 - _NEAR_CHANCE) * self.chance:
                return []
            signs.append(f"the training loss is {loss:.3f}, and guessing costs {self.chance:.3f}")
        if self._judges_pairs(row):
            paired, unmatched = row["paired"], row["unmatched"]
            if paired - unmatched >= _GAP:
                return []
            signs.append(f"matched pairs have mean cosine {paired:.4f}, others {unmatched:.4f}")
        return signs

    def _collapse(self, row: Mapping[str, float], guessing: list[str] | None) -> list[str]:
        """Return the signs of a collapse; none where there is none."""
        loss = row["train_loss"]
        spreads, ranks = self._fallen(row)
        if not guessing:
            if ranks and loss > _WORSE * self._lowest:
                return [*ranks, f"the training loss rose to {loss:.3f} from {self._lowest:.3f}"]
            return []
        lost = spreads + ranks
        if self.chance is not None and self._lowest < (1 - _BELOW_CHANCE) * self.chance:
            lost.append(f"it had been {self._lowest:.3f}")
        return guessing + lost if lost else []

    def _fallen(self, row: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Return the signs that spreads, and that ranks, have fallen."""
        spreads: list[str] = []
        ranks: list[str] = []
        if not self._judges_pairs(row):
            return spreads, ranks
        for tower in _TOWERS:
            name = f"{tower}_spread"
            spread, most = row.get(name, math.nan), self._highest.get(name, math.nan)
            if spread < _SAME:
                spreads.append(f"the {tower} embeddings are all the same")
            elif spread < _LOST * most:
                spreads.append(
                    f"the {tower} embeddings' spread fell to {spread:.2g} from {most:.2g}"
                )
            name = f"{tower}_effective_rank"
            rank, most = row[name], self._highest.get(name, math.nan)
            if rank < _RANK <= most:
                ranks.append(
                    f"the {tower} embeddings' effective rank fell to {rank:.2f} from {most:.1f}"
                )
        return spreads, ranks
