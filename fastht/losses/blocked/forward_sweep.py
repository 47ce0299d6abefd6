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


def forward(form: Form, operands: Operands) -> Statistics:
    """Return the statistics of a rectangle; see :class:`fastht.losses.sweeps.Statistics`."""
    bound = _bound(operands) if form.softmax or form.kl else 0.0
    shifts = _Shifts(
        one_shift(abs(operands.scale.item()) * bound) if form.softmax else None,
        one_shift(bound / operands.temperature) if form.kl else None,
        one_shift(1.0 / operands.temperature) if form.kl else None,
    )
    statistics = _forward(form, operands, shifts)
    if statistics is None:
        statistics = _forward(form, operands, _Shifts(None, None, None))
        assert statistics is not None
    return statistics


def _bound(operands: Operands) -> float:
    """Return what no cosine exceeds (NaN where features are not finite)."""
    dtype = sum_dtype(operands.rows.dtype)
    rows, columns = (
        torch.linalg.vector_norm(x, dim=1, dtype=dtype).max()
        for x in (operands.rows, operands.columns)
    )
    return (rows * columns).item()


def _forward(form: Form, operands: Operands, shifts: _Shifts) -> Statistics | None:
    """Return the statistics, or ``None`` where a sum with one shift lost terms."""
    pairs = Pairs(form, operands)
    r, c = len(operands.rows), len(operands.columns)
    like, dtype = operands.rows, pairs.dtype

    def sums(directions: int, shift: float | None) -> list[Sums]:
        sides = ((ROWS, 1, r), (COLUMNS, 0, c))
        return [Sums(dim, n, like, dtype, shift) for d, dim, n in sides if directions & d]

    softmax = sums(form.softmax, shifts.softmax)
    logits, wanted = sums(form.kl, shifts.logits), sums(form.kl, shifts.targets)
    dots = [torch.zeros_like(s.total) for s in softmax]
    sigmoid = torch.zeros(r if form.sigmoid else 0, dtype=dtype, device=like.device)
    mse = torch.zeros(r if form.mse else 0, dtype=dtype, device=like.device)
    for block in blocks(operands):
        x = pairs.cosines(block, pairs.columns(block))
        positive = pairs.positive(block)
        if softmax:
            _add_dots(x, softmax, dots, block, positive, pairs)
            z = pairs.logits(block, x)
            e = pairs.buffer("exponentials", block)
            add(z, softmax, block, shifts.softmax, e, apart=not form.keys)
        if form.sigmoid:
            z = signed(pairs.logits(block, x), block, positive, pairs)
            out = pairs.buffer("exponentials", block)
            # Past 50 softplus(z) is z in float64 too.
            sigmoid[block.rows] += torch.ops.aten.softplus.out(z, 1, 50, out=out).sum(1)
        if form.soft:
            t = pairs.targets(block, positive)
            gap = torch.sub(t, x, out=pairs.buffer("gap", block))
            e = pairs.buffer("exponentials", block)
            if form.mse:
                mse[block.rows] += torch.mul(gap, gap, out=e).sum(1)
            if form.kl:
                gap /= operands.temperature
                product = pairs.buffer("scratch", block)
                add(t.div_(operands.temperature), wanted, block, shifts.targets, e,
                     gap=gap, product=product)  # fmt: skip
                add(x.div_(operands.temperature), logits, block, shifts.logits, e)
    n = max(r, c)
    for group, shift in zip((softmax, logits, wanted), shifts, strict=True):
        if shift is not None and not all(s.whole(n, apart=group is softmax) for s in group):
            return None

    def stack(directions: int, direction: int, height: int, parts: list[list[Tensor]]) -> Tensor:
        if not directions & direction:
            return like.new_zeros(height, 0, dtype=dtype)
        return torch.stack(parts[0 if direction == ROWS else -1])

    soft = [[s.shift, s.total, s.extra, dot] for s, dot in zip(softmax, dots, strict=True)]
    kl = [
        [x.shift, x.total, w.shift, w.total, w.extra] for x, w in zip(logits, wanted, strict=True)
    ]
    return Statistics(
        stack(form.softmax, ROWS, 4, soft),
        stack(form.softmax, COLUMNS, 4, soft),
        stack(form.kl, ROWS, 5, kl),
        stack(form.kl, COLUMNS, 5, kl),
        sigmoid,
        mse,
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
