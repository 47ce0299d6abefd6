"""Sums of the KL term, whose value is a small difference of large numbers where it is small.

A row's divergence is the mean of ``a - b`` under the targets' weights plus ``log(B / W)``, with a
and b the wanted and the given logits and W and B their sums of exponentials. Where the two
distributions are alike, both are the distance between a and b, and cancel. So a and b have their
row's largest value taken off first, each block's mean is taken in two steps, the second of which
sums what the first left over, and what comes after is in float64.

The shift is each row's own, not one for all: the largest exponential of a row is then exactly 1,
and of a row that is certain nothing is left of W and B that could differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastht.losses.blocked.pairs import Block, Pairs
from fastht.losses.terms import wide_dtype


class Divergences:
    """The sums of rows (``dim`` 1) or columns over the blocks that were added."""

    def __init__(self, dim: int, size: int, like: Tensor, dtype: torch.dtype) -> None:
        self.dim = dim
        shift = torch.full((size,), -torch.inf, dtype=dtype, device=like.device)
        self.logit_shift, self.target_shift = shift, shift.clone()
        # Of exponentials of logits and targets, and of the targets' times a - b, from the shifts.
        wide = wide_dtype(like)
        self.logits, self.targets, self.gap = (
            torch.zeros_like(shift, dtype=wide) for _ in range(3)
        )

    def add(self, logits: Tensor, wanted: Tensor, block: Block, pairs: Pairs) -> None:
        """Add a block's pairs, ``wanted`` and ``logits`` already divided by the temperature."""
        side, dim = block.side(self.dim), self.dim
        e, gap = pairs.buffer("exponentials", block), pairs.buffer("gap", block)
        self._move(logits, wanted, side)
        torch.sub(logits, self.logit_shift[side].unsqueeze(dim), out=gap)
        self.logits[side] += torch.exp(gap, out=e).sum(dim)
        scratch = pairs.buffer("scratch", block)
        torch.sub(wanted, self.target_shift[side].unsqueeze(dim), out=scratch)
        torch.sub(scratch, gap, out=gap)
        weight = torch.exp(scratch, out=e).sum(dim)
        none = weight == 0  # beside the rest of its row the block is too small for its dtype

        def mean(products: Tensor) -> Tensor:
            return (products.sum(dim) / weight).masked_fill(none, 0.0)

        rough = mean(torch.mul(e, gap, out=scratch))
        rest = mean(torch.sub(gap, rough.unsqueeze(dim), out=scratch).mul_(e))
        weight, rough, rest = (x.to(self.gap.dtype) for x in (weight, rough, rest))
        self.targets[side] += weight
        self.gap[side] += weight * (rough + rest)

    def _move(self, logits: Tensor, wanted: Tensor, side: slice) -> None:
        """Move shifts to the largest values so far, and sums with them."""
        moves = []
        for x, shifts in ((logits, self.logit_shift), (wanted, self.target_shift)):
            before, now = shifts[side], torch.maximum(shifts[side], x.amax(self.dim))
            moves.append(before.to(self.gap.dtype) - now.to(self.gap.dtype))
            shifts[side] = now
        by_logits, by_targets = moves
        # What has no pair yet has a shift from minus infinity, and a sum that stays 0.
        apart = torch.where(by_targets.isneginf(), 0.0, by_targets - by_logits)
        self.logits[side] *= by_logits.exp()
        self.gap[side] += self.targets[side] * apart
        for sums in (self.targets, self.gap):
            sums[side] *= by_targets.exp()

    def statistics(self) -> Tensor:
        """Return shift and sum of logits and of targets, and the divergence: ``[5, size]``."""
        divergence = self.gap / self.targets + (self.logits / self.targets).log()
        parts = (self.logit_shift, self.logits, self.target_shift, self.targets, divergence)
        return torch.stack([x.to(self.logit_shift.dtype) for x in parts])
