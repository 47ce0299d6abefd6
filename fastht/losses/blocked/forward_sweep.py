"""The forward sweep by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.blocked.divergences import Divergences, Shared, Shifts, sides
from fastht.losses.blocked.exponentials import Sums, add, one_shift
from fastht.losses.blocked.pairs import Block, Pairs, blocks
from fastht.losses.sweeps import COLUMNS, ROWS, Form, Operands, Statistics, sum_dtype


class _FirstShifts(NamedTuple):
    """The one shift of each kind of exponentials, or ``None`` for shifts by row and column."""

    softmax: float | None
    kl: Shifts | None


def forward(form: Form, operands: Operands, pairs: Pairs | None = None) -> Statistics:
    """Return the statistics of a rectangle; see :class:`fastht.losses.sweeps.Statistics`.

    ``pairs`` has the buffers, for those who go on with the last block.
    """
    pairs = pairs or Pairs(form, operands)
    sweep = ForwardSweep(pairs, _first_shifts(form, operands))
    for block in blocks(operands):
        sweep.add(block)
    if not sweep.whole():
        sweep = ForwardSweep(pairs, None)
        for block in blocks(operands):
            sweep.add(block)
    statistics = sweep.statistics()
    return statistics if sweep.kl.kept() else _with_digits(statistics, pairs)


def _with_digits(statistics: Statistics, pairs: Pairs) -> Statistics:
    """Replace divergences that a sweep left with few digits.

    The sums stay as they are, with one shift for all, which the backward sweep can share.
    """
    again = Divergences(pairs)
    for block in blocks(pairs.operands):
        positive = pairs.positive(block)
        again.add(pairs.cosines(block), pairs.targets(block, positive), block)
    found = again.statistics()
    for side in (statistics.kl_columns, statistics.kl_rows):
        if side.numel():
            side[4] = found.pop()[4]
    return statistics


def _first_shifts(form: Form, operands: Operands) -> _FirstShifts:
    """Return the shifts with which a sweep is tried first."""
    bound = _bound(operands) if form.softmax or form.kl else 0.0
    softmax = one_shift(abs(operands.scale.item()) * bound) if form.softmax else None
    if not form.kl:
        return _FirstShifts(softmax, None)
    logits, targets = one_shift(bound / operands.temperature), one_shift(1.0 / operands.temperature)
    if logits is None or targets is None:
        return _FirstShifts(softmax, None)
    return _FirstShifts(softmax, Shifts(logits, targets))


def _bound(operands: Operands) -> float:
    """Return what no cosine exceeds (NaN where features are not finite)."""
    dtype = sum_dtype(operands.rows.dtype)
    rows, columns = (
        torch.linalg.vector_norm(x, dim=1, dtype=dtype).max()
        for x in (operands.rows, operands.columns)
    )
    return (rows * columns).item()


class ForwardSweep:
    """The statistics of the blocks that were added; without shifts, each row has its own."""

    def __init__(self, pairs: Pairs, shifts: _FirstShifts | None) -> None:
        self.pairs = pairs
        self.shift, shared = shifts or _FirstShifts(None, None)
        form, operands = pairs.form, pairs.operands
        like, dtype, r = operands.rows, pairs.dtype, len(operands.rows)
        self.softmax = [
            Sums(dim, n, like, dtype, self.shift) for dim, n in sides(pairs, form.softmax)
        ]
        self.dots = [torch.zeros_like(s.total) for s in self.softmax]
        self.kl = Shared(pairs, shared) if shared else Divergences(pairs)
        self.sigmoid = torch.zeros(r if form.sigmoid else 0, dtype=dtype, device=like.device)
        self.mse = torch.zeros(r if form.mse else 0, dtype=dtype, device=like.device)

    def add(self, block: Block) -> None:
        """Add the pairs of a block."""
        pairs, form = self.pairs, self.pairs.form
        c = pairs.cosines(block)
        positive = pairs.positive(block)
        if form.softmax:
            e = pairs.buffer("exponentials", block)
            _add_dots(c, self.softmax, self.dots, block, positive, pairs)
            z = pairs.logits(block, c)
            add(z, self.softmax, block, self.shift, e, apart=not form.keys)
        if form.sigmoid:
            z = pairs.signed_logits(block, c, positive)
            loss = pairs.buffer("scratch", block)
            # Past 50 softplus(z) is z in float64 too.
            self.sigmoid[block.rows] += torch.ops.aten.softplus.out(z, 1, 50, out=loss).sum(1)
        if form.soft:
            t = pairs.targets(block, positive)
            if form.mse:
                apart = torch.sub(t, c, out=pairs.buffer("exponentials", block))
                self.mse[block.rows] += apart.mul_(apart).sum(1)
            if form.kl:
                self.kl.add(c, t, block)

    def whole(self) -> bool:
        """Whether no sum with one shift lost terms."""
        o = self.pairs.operands
        n = max(len(o.rows), len(o.columns))
        return (self.shift is None or all(s.whole(n) for s in self.softmax)) and self.kl.whole(n)

    def statistics(self) -> Statistics:
        """Return what was summed."""
        form = self.pairs.form

        def of(directions: int, d: int, height: int, parts: list[Tensor]) -> Tensor:
            if not directions & d:
                return self.sigmoid.new_empty(height, 0)
            return parts[0 if d == ROWS else -1]

        softmax = [
            torch.stack([s.shift, s.total, s.extra, dot])
            for s, dot in zip(self.softmax, self.dots, strict=True)
        ]
        kl = self.kl.statistics()
        return Statistics(
            of(form.softmax, ROWS, 4, softmax),
            of(form.softmax, COLUMNS, 4, softmax),
            of(form.kl, ROWS, 5, kl),
            of(form.kl, COLUMNS, 5, kl),
            self.sigmoid,
            self.mse,
        )


def _add_dots(
    x: Tensor,
    sums: Sequence[Sums],
    dots: Sequence[Tensor],
    block: Block,
    positive: Tensor | None,
    pairs: Pairs,
) -> None:
    """Add the cosines of positives to the sums of rows and columns."""
    if positive is not None:
        zero = x.new_zeros(())
        chosen = torch.where(positive, x, zero, out=pairs.buffer("scratch", block))
        for s, dot in zip(sums, dots, strict=True):
            dot[block.side(s.dim)] += chosen.sum(s.dim)
    elif block.diagonal is not None:
        for s, dot in zip(sums, dots, strict=True):
            dot[block.own(s.dim)] += x.diagonal(block.diagonal)
