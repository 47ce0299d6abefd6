"""The forward sweep by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.blocked.exponentials import Sums, add, one_shift
from fastht.losses.blocked.pairs import Block, Pairs, blocks, signed
from fastht.losses.sweeps import COLUMNS, ROWS, Form, Operands, Statistics, sum_dtype


class _Shifts(NamedTuple):
    """The one shift of each kind of exponentials, or ``None`` for shifts by row and column."""

    softmax: float | None
    logits: float | None
    targets: float | None


def forward(form: Form, operands: Operands, pairs: Pairs | None = None) -> Statistics:
    """Return the statistics of a rectangle; see :class:`fastht.losses.sweeps.Statistics`.

    ``pairs`` has the buffers, for those who go on with the last block.
    """
    pairs = pairs or Pairs(form, operands)
    shifts: _Shifts | None = _first_shifts(form, operands)
    while True:
        sweep = ForwardSweep(pairs, shifts)
        for block in blocks(operands):
            sweep.add(block)
        if sweep.whole():
            return sweep.statistics()
        shifts = None


def _first_shifts(form: Form, operands: Operands) -> _Shifts:
    """Return the shifts with which a sweep is tried first."""
    bound = _bound(operands) if form.softmax or form.kl else 0.0
    return _Shifts(
        one_shift(abs(operands.scale.item()) * bound) if form.softmax else None,
        one_shift(bound / operands.temperature) if form.kl else None,
        one_shift(1.0 / operands.temperature) if form.kl else None,
    )


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

    def __init__(self, pairs: Pairs, shifts: _Shifts | None) -> None:
        self.pairs, self.shifts = pairs, shifts or _Shifts(None, None, None)
        form, operands = pairs.form, pairs.operands
        like, dtype = operands.rows, pairs.dtype
        r, c = len(operands.rows), len(operands.columns)

        def sums(directions: int, shift: float | None) -> list[Sums]:
            sides = ((ROWS, 1, r), (COLUMNS, 0, c))
            return [Sums(dim, n, like, dtype, shift) for d, dim, n in sides if directions & d]

        self.softmax = sums(form.softmax, self.shifts.softmax)
        self.logits = sums(form.kl, self.shifts.logits)
        self.targets = sums(form.kl, self.shifts.targets)
        self.dots = [torch.zeros_like(s.total) for s in self.softmax]
        self.sigmoid = torch.zeros(r if form.sigmoid else 0, dtype=dtype, device=like.device)
        self.mse = torch.zeros(r if form.mse else 0, dtype=dtype, device=like.device)

    def add(self, block: Block) -> None:
        """Add the pairs of a block."""
        pairs, form = self.pairs, self.pairs.form
        c = pairs.cosines(block)
        positive = pairs.positive(block)
        e = pairs.buffer("exponentials", block)
        if form.softmax:
            _add_dots(c, self.softmax, self.dots, block, positive, pairs)
            z = pairs.logits(block, c)
            add(z, self.softmax, block, self.shifts.softmax, e, apart=not form.keys)
        if form.sigmoid:
            z = signed(pairs.logits(block, c), block, positive, pairs)
            # Past 50 softplus(z) is z in float64 too.
            self.sigmoid[block.rows] += torch.ops.aten.softplus.out(z, 1, 50, out=e).sum(1)
        if form.soft:
            self._add_soft(block, c, pairs.targets(block, positive), e)

    def _add_soft(self, block: Block, c: Tensor, t: Tensor, e: Tensor) -> None:
        pairs, form, temperature = self.pairs, self.pairs.form, self.pairs.operands.temperature
        gap = torch.sub(t, c, out=pairs.buffer("gap", block))
        if form.mse:
            self.mse[block.rows] += torch.mul(gap, gap, out=e).sum(1)
        if form.kl:
            gap /= temperature
            t /= temperature
            product = pairs.buffer("scratch", block)
            add(t, self.targets, block, self.shifts.targets, e, gap=gap, product=product)
            logits = torch.div(c, temperature, out=pairs.buffer("logits", block))
            add(logits, self.logits, block, self.shifts.logits, e)

    def whole(self) -> bool:
        """Whether no sum with one shift lost terms."""
        o = self.pairs.operands
        n = max(len(o.rows), len(o.columns))
        groups = zip((self.softmax, self.logits, self.targets), self.shifts, strict=True)
        return all(
            s.whole(n, apart=group is self.softmax)
            for group, shift in groups
            if shift is not None
            for s in group
        )

    def statistics(self) -> Statistics:
        """Return what was summed."""
        form, like = self.pairs.form, self.pairs.operands.rows

        def stack(directions: int, d: int, height: int, parts: list[list[Tensor]]) -> Tensor:
            if not directions & d:
                return like.new_zeros(height, 0, dtype=self.pairs.dtype)
            return torch.stack(parts[0 if d == ROWS else -1])

        soft = [
            [s.shift, s.total, s.extra, dot] for s, dot in zip(self.softmax, self.dots, strict=True)
        ]
        kl = [
            [x.shift, x.total, w.shift, w.total, w.extra]
            for x, w in zip(self.logits, self.targets, strict=True)
        ]
        return Statistics(
            stack(form.softmax, ROWS, 4, soft),
            stack(form.softmax, COLUMNS, 4, soft),
            stack(form.kl, ROWS, 5, kl),
            stack(form.kl, COLUMNS, 5, kl),
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
