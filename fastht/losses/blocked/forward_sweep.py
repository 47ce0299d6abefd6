"""The forward sweep by blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastht.losses.blocked.divergences import Divergences
from fastht.losses.blocked.exponentials import Sums, add, one_shift
from fastht.losses.blocked.pairs import Block, Pairs, blocks, signed
from fastht.losses.sweeps import COLUMNS, ROWS, Form, Operands, Statistics, sum_dtype


def forward(form: Form, operands: Operands, pairs: Pairs | None = None) -> Statistics:
    """Return the statistics of a rectangle; see :class:`fastht.losses.sweeps.Statistics`.

    ``pairs`` has the buffers, for those who go on with the last block.
    """
    pairs = pairs or Pairs(form, operands)
    shift = _first_shift(form, operands)
    while True:
        sweep = ForwardSweep(pairs, shift)
        for block in blocks(operands):
            sweep.add(block)
        if sweep.whole():
            return sweep.statistics()
        shift = None


def _first_shift(form: Form, operands: Operands) -> float | None:
    """Return the one shift with which a softmax is tried first, if any."""
    return one_shift(abs(operands.scale.item()) * _bound(operands)) if form.softmax else None


def _bound(operands: Operands) -> float:
    """Return what no cosine exceeds (NaN where features are not finite)."""
    dtype = sum_dtype(operands.rows.dtype)
    rows, columns = (
        torch.linalg.vector_norm(x, dim=1, dtype=dtype).max()
        for x in (operands.rows, operands.columns)
    )
    return (rows * columns).item()


class ForwardSweep:
    """The statistics of the blocks that were added.

    ``shift`` is the softmax's one shift, or ``None`` for shifts by row and column.
    """

    def __init__(self, pairs: Pairs, shift: float | None) -> None:
        self.pairs, self.shift = pairs, shift
        form, operands = pairs.form, pairs.operands
        like, dtype = operands.rows, pairs.dtype
        r, c = len(operands.rows), len(operands.columns)

        sides = ((ROWS, 1, r), (COLUMNS, 0, c))
        self.softmax = [Sums(dim, n, like, dtype, shift) for d, dim, n in sides if form.softmax & d]
        self.kl = [Divergences(dim, n, like, dtype) for d, dim, n in sides if form.kl & d]
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
            add(z, self.softmax, block, self.shift, e, apart=not form.keys)
        if form.sigmoid:
            z = signed(pairs.logits(block, c), block, positive, pairs)
            # Past 50 softplus(z) is z in float64 too.
            self.sigmoid[block.rows] += torch.ops.aten.softplus.out(z, 1, 50, out=e).sum(1)
        if form.soft:
            self._add_soft(block, c, pairs.targets(block, positive), e)

    def _add_soft(self, block: Block, c: Tensor, t: Tensor, e: Tensor) -> None:
        pairs, form, temperature = self.pairs, self.pairs.form, self.pairs.operands.temperature
        if form.mse:
            apart = torch.sub(t, c, out=e)
            self.mse[block.rows] += apart.mul_(apart).sum(1)
        if form.kl:
            t /= temperature
            logits = torch.div(c, temperature, out=pairs.buffer("logits", block))
            for kl in self.kl:
                kl.add(logits, t, block, pairs)

    def whole(self) -> bool:
        """Whether no sum with one shift lost terms."""
        o = self.pairs.operands
        n = max(len(o.rows), len(o.columns))
        return self.shift is None or all(s.whole(n) for s in self.softmax)

    def statistics(self) -> Statistics:
        """Return what was summed."""
        form, like = self.pairs.form, self.pairs.operands.rows

        def of(directions: int, d: int, height: int, parts: list[Tensor]) -> Tensor:
            if not directions & d:
                return like.new_zeros(height, 0, dtype=self.pairs.dtype)
            return parts[0 if d == ROWS else -1]

        softmax = [
            torch.stack([s.shift, s.total, s.extra, dot])
            for s, dot in zip(self.softmax, self.dots, strict=True)
        ]
        kl = [x.statistics() for x in self.kl]
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
