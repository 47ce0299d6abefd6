"""Sums of the KL term, whose value is a small difference of large numbers where it is small.

A row's divergence is the mean of ``a - b`` under the targets' weights, plus ``log(B / W)``: a and b
are the wanted and the given logits, W and B their sums of exponentials. Where the distributions are
alike, the two cancel. So a and b are the rounded numbers that the exponentials have too: an error
of theirs then moves the divergence no more than the distributions differ.

:class:`Shared` has exponentials that rows and columns share, and can tell where its sums were
rounded by too much for their difference. :class:`Divergences` keeps the digits everywhere, with
twice the exponentials and more passes.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.blocked.exponentials import Sums, add
from fastht.losses.blocked.pairs import Block, Pairs
from fastht.losses.sweeps import COLUMNS, ROWS
from fastht.losses.terms import wide_dtype

# How large the rounded parts may be that divergences are made of, by these. The mean over rows is
# off by at most an eighth of an epsilon of them (measured: many roundings, most of which cancel),
# and the rule of correctness allows two epsilons of the divergence, beside plain PyTorch's own
# error, which is not relied on: where it is as large as here, this is cautious by a factor of 40.
_LARGEST_PARTS = 16.0


class Shifts(NamedTuple):
    """The one shift of all logits, and that of all targets."""

    logits: float
    targets: float


class _Found(NamedTuple):
    divergence: Tensor  # of each row or column
    parts: Tensor  # the sum of what was rounded and makes it up


def sides(pairs: Pairs, directions: int) -> list[tuple[int, int]]:
    """Return along which dimension sums run and how many they are, of each direction."""
    operands = pairs.operands
    found = ((ROWS, 1, len(operands.rows)), (COLUMNS, 0, len(operands.columns)))
    return [(dim, size) for d, dim, size in found if directions & d]


class Shared:
    """Divergences from exponentials with one shift for all.

    Without keys the own pair is kept apart, and has its exponentials in float64: most often it
    leads, and then what is rounded is the sum of the others, as small as the divergence.
    """

    def __init__(self, pairs: Pairs, shifts: Shifts) -> None:
        like, dtype = pairs.operands.rows, pairs.dtype
        self.pairs, self.shifts, self.apart = pairs, shifts, not pairs.form.keys
        each = sides(pairs, pairs.form.kl)
        self.logits = [Sums(dim, n, like, dtype, shifts.logits) for dim, n in each]
        # Targets are few different numbers, and a sum of one number many times is rounded one way.
        self.targets = [Sums(dim, n, like, dtype, shifts.targets, wide=True) for dim, n in each]
        # Of the targets' exponentials times a - b; the own pair's a and b, where it is apart.
        self.gaps = [torch.zeros_like(s.shift) for s in self.logits]
        self.own = [torch.full_like(s.shift.expand(2, -1), -torch.inf) for s in self.logits]

    def add(self, cosines: Tensor, targets: Tensor, block: Block) -> None:
        """Add a block's pairs; ``targets`` are used up."""
        pairs, apart = self.pairs, self.apart
        logits, wanted = pairs.over_temperature(cosines, targets, block)
        e, gap = pairs.buffer("exponentials", block), pairs.buffer("gap", block)
        add(logits, self.logits, block, self.shifts.logits, e, apart=apart)
        add(wanted, self.targets, block, self.shifts.targets, e, apart=apart)
        e *= torch.sub(wanted, logits, out=gap)
        for s, total, own in zip(self.targets, self.gaps, self.own, strict=True):
            total[block.side(s.dim)] += e.sum(s.dim)
            if apart and block.diagonal is not None:
                for numbers, x in zip(own, (wanted, logits), strict=True):
                    numbers[block.own(s.dim)] = x.diagonal(block.diagonal)

    def whole(self, terms: int) -> bool:
        """Whether no sum of so many terms lost some of them."""
        finite = all(bool(gap.isfinite().all()) for gap in self.gaps)
        return finite and all(s.whole(terms) for s in (*self.logits, *self.targets))

    def kept(self) -> bool:
        """Whether divergences are large enough beside what they are made of.

        Own rows and columns are judged together, as the loss takes their mean; and by themselves
        the columns of other processes, of whose pairs those here may be the unlikely ones.
        """
        given = self.pairs.operands.rows.dtype
        if given == torch.float64:
            return True
        limit = _LARGEST_PARTS * torch.finfo(given).eps / torch.finfo(self.pairs.dtype).eps
        first = self.pairs.operands.offset
        own = slice(max(0, first), max(0, first + len(self.pairs.operands.rows)))
        excess: list[Tensor] = []
        others: list[Tensor] = []
        for s, (divergence, parts) in zip(self.logits, self._found, strict=True):
            x = parts - limit * divergence
            here = (x if s.dim == 1 else x[own]).sum()
            excess.append(here)
            others.append(x.sum() - here)
        return not any(bool(sum(group) > 0) for group in (excess, others))

    @functools.cached_property
    def _found(self) -> list[_Found]:
        """What the sums say; no block can be added after it."""
        found = []
        sums = zip(self.logits, self.targets, self.gaps, self.own, strict=True)
        for logits, targets, gaps, own in sums:
            wide = wide_dtype(gaps)
            b, w, g = (x.to(wide) for x in (logits.total, targets.total, gaps))
            wanted, given = own.to(wide)
            weight = (wanted - self.shifts.targets).exp()
            all_b = b + (given - self.shifts.logits).exp()
            all_w = w + weight
            all_g = g + torch.where(weight > 0, weight * (wanted - given), 0.0)
            mean = all_g / all_w
            log = (self.shifts.logits - self.shifts.targets) + (all_b / all_w).log()
            parts = (g.abs() + (1 + mean.abs()) * w) / all_w + b / all_b
            found.append(_Found(mean + log, parts))
        return found

    def statistics(self) -> list[Tensor]:
        """Return ``[5, n]`` of each direction: shifts, sums, divergences."""
        each = zip(self.logits, self.targets, self._found, strict=True)
        return [
            torch.stack(
                [
                    y.to(x.shift.dtype)
                    for y in (x.shift, x.total + x.extra, w.shift, w.total + w.extra, f.divergence)
                ]
            )
            for x, w, f in each
        ]


class Divergences:
    """Divergences that keep their digits, of any size.

    Both logits have their row's largest value taken off, each block's mean of a - b is taken in two
    steps, the second of which sums what the first left over, and what comes after is in float64.
    The shift is each row's own: the largest exponential is then exactly 1, and of a row that is
    certain nothing is left of B and W that could differ.
    """

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.sides = [_Side(pairs, dim, n) for dim, n in sides(pairs, pairs.form.kl)]

    def add(self, cosines: Tensor, targets: Tensor, block: Block) -> None:
        """Add a block's pairs; ``targets`` are used up."""
        logits, wanted = self.pairs.over_temperature(cosines, targets, block)
        for side in self.sides:
            side.add(logits, wanted, block)

    def whole(self, terms: int) -> bool:
        """Whether no sum of so many terms lost some of them."""
        return True

    def kept(self) -> bool:
        """Whether divergences are large enough beside what they are made of."""
        return True

    def statistics(self) -> list[Tensor]:
        """Return ``[5, n]`` of each direction: shifts, sums, divergences."""
        return [side.statistics() for side in self.sides]


class _Side:
    """The sums of rows (``dim`` 1) or columns over the blocks that were added."""

    def __init__(self, pairs: Pairs, dim: int, size: int) -> None:
        like = pairs.operands.rows
        self.pairs, self.dim = pairs, dim
        shift = torch.full((size,), -torch.inf, dtype=pairs.dtype, device=like.device)
        self.logit_shift, self.target_shift = shift, shift.clone()
        # Of exponentials of logits and targets, and of the targets' times a - b, from the shifts.
        wide = wide_dtype(like)
        self.logits, self.targets, self.gap = (
            torch.zeros_like(shift, dtype=wide) for _ in range(3)
        )

    def add(self, logits: Tensor, wanted: Tensor, block: Block) -> None:
        pairs, side, dim = self.pairs, block.side(self.dim), self.dim
        e, gap = pairs.buffer("exponentials", block), pairs.buffer("gap", block)
        self._move(logits, wanted, side)
        torch.sub(logits, self.logit_shift[side].unsqueeze(dim), out=gap)
        wide = self.gap.dtype
        self.logits[side] += torch.exp(gap, out=e).sum(dim, dtype=wide)
        scratch = pairs.buffer("scratch", block)
        torch.sub(wanted, self.target_shift[side].unsqueeze(dim), out=scratch)
        torch.sub(scratch, gap, out=gap)
        weight = torch.exp(scratch, out=e).sum(dim, dtype=wide)
        none = weight == 0  # beside the rest of its row the block is too small for its dtype

        def mean(products: Tensor) -> Tensor:
            return (products.sum(dim) / weight).masked_fill(none, 0.0).to(products.dtype)

        rough = mean(torch.mul(e, gap, out=scratch))
        rest = mean(torch.sub(gap, rough.unsqueeze(dim), out=scratch).mul_(e))
        self.targets[side] += weight
        self.gap[side] += weight * (rough.to(wide) + rest.to(wide))

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
        divergence = self.gap / self.targets + (self.logits / self.targets).log()
        parts = (self.logit_shift, self.logits, self.target_shift, self.targets, divergence)
        return torch.stack([x.to(self.logit_shift.dtype) for x in parts])
