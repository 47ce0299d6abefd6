"""The backward sweep by blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.blocked.exponentials import Terms, set_exponentials, terms
from fastht.losses.blocked.pairs import Block, Pairs, blocks, signed
from fastht.losses.sweeps import COLUMNS, ROWS, Coefficients, Form, Gradients, Operands


def backward(
    form: Form,
    operands: Operands,
    coefficients: Coefficients,
    need_rows: bool = True,
    need_columns: bool = True,
    need_scale: bool = True,
) -> Gradients:
    """Return the gradients of a rectangle; see :class:`fastht.losses.sweeps.Gradients`."""
    pairs = Pairs(form, operands)
    needs = need_rows, need_columns, need_scale, need_scale and form.sigmoid
    sweep = BackwardSweep(pairs, coefficients, needs)
    for block in blocks(operands):
        sweep.add(block)
    return sweep.gradients()


class BackwardSweep:
    """The gradients of the blocks that were added.

    ``needs`` says whose are wanted: those of rows, columns, scale and bias.
    """

    def __init__(self, pairs: Pairs, coefficients: Coefficients, needs: Sequence[bool]) -> None:
        self.pairs, self.gain = pairs, coefficients.gain
        self.k = _shared(pairs.form, coefficients)

        o, dtype = pairs.operands, pairs.dtype
        r = len(o.rows)
        self.rows = torch.empty_like(o.rows, dtype=dtype) if needs[0] else None
        self.columns = torch.empty_like(o.columns, dtype=dtype) if needs[1] else None
        self.scale = o.rows.new_zeros(r, dtype=dtype) if needs[2] else None
        self.bias = o.rows.new_zeros(r, dtype=dtype) if needs[3] else None

    def add(self, block: Block) -> None:
        """Add the pairs of a block."""
        pairs, form = self.pairs, self.pairs.form
        c = pairs.cosines(block)
        positive = pairs.positive(block)
        if form.logits:
            d = _logit_derivative(form, self.k, pairs, block, c, positive)
            # A weight by row, where there is one, goes into what is done anyway.
            weight = 1.0 if form.softmax else self.k.plain.sigmoid[block.rows]
            if self.scale is not None:
                products = torch.mul(d, c, out=pairs.buffer("scratch", block))
                self.scale[block.rows] += weight * products.sum(1)
            if self.bias is not None:
                self.bias[block.rows] += weight * d.sum(1)
            d *= (weight * pairs.operands.scale).unsqueeze(-1)
        else:
            d = pairs.buffer("derivative", block).zero_()
        if form.soft:
            _add_soft_derivative(form, self.k, pairs, block, c, positive, d)
        if self.rows is not None:
            _add(self.rows[block.rows], d, pairs.columns(block), first=block.columns.start == 0)
        if self.columns is not None:
            _add(self.columns[block.columns], d.T, pairs.rows(block), first=block.rows.start == 0)

    def sums(self) -> Gradients:
        """Return what was summed, before the gain."""
        return Gradients(self.rows, self.columns, self.scale, self.bias)

    def gradients(self) -> Gradients:
        """Return what was summed, times the gain; nothing can be added after it."""
        for gradient in (self.rows, self.columns, self.scale, self.bias):
            if gradient is not None:
                gradient *= self.gain
        return self.sums()


def _add(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """Add a product in place; the first finds a total that nobody has set."""
    torch.addmm(total, left, right, beta=0 if first else 1, out=total)


class _Shared(NamedTuple):
    plain: Coefficients
    softmax: Terms
    logits: Terms
    targets: Terms


def _shared(form: Form, k: Coefficients) -> _Shared:
    """Find the exponentials that rows and columns can share."""
    softmax, logits, targets = (
        [
            (dim, side[first], side[first + 1])
            for d, dim, side in ((ROWS, 1, rows), (COLUMNS, 0, columns))
            if directions & d
        ]
        for directions, first, rows, columns in (
            (form.softmax, 0, k.softmax_rows, k.softmax_columns),
            (form.kl, 0, k.kl_rows, k.kl_columns),
            (form.kl, 2, k.kl_rows, k.kl_columns),
        )
    )
    return _Shared(k, terms(softmax), terms(logits), terms(targets))


def _logit_derivative(
    form: Form,
    k: _Shared,
    pairs: Pairs,
    block: Block,
    cosines: Tensor,
    positive: Tensor | None,
) -> Tensor:
    """Return the derivative by z, of a sigmoid before its weight; the caller may change it."""
    if form.softmax:
        z, out = pairs.logits(block, cosines), pairs.buffer("derivative", block)
        scratch = pairs.buffer("scratch", block)
        set_exponentials(z, k.softmax, block, out, scratch)
        if positive is not None:
            absent = torch.logical_not(positive, out=pairs.buffer("nothing", block, torch.bool))
            for d, dim, side in (
                (ROWS, 1, k.plain.softmax_rows),
                (COLUMNS, 0, k.plain.softmax_columns),
            ):
                if form.softmax & d:
                    target = side[2, block.side(dim)].unsqueeze(dim).expand_as(out)
                    out -= scratch.copy_(target).masked_fill_(absent, 0.0)
        elif block.diagonal is not None:
            out.diagonal(block.diagonal).copy_(k.plain.diagonal[block.own(1)])
        return out
    z = pairs.signed_logits(block, cosines, positive)
    # In place, unless the term of soft labels wants the buffer for its own logits.
    out = torch.sigmoid(z, out=pairs.buffer("derivative", block) if form.kl else z)
    pairs.changed_logits()
    return signed(out, block, positive, pairs)


def _add_soft_derivative(
    form: Form,
    k: _Shared,
    pairs: Pairs,
    block: Block,
    cosines: Tensor,
    positive: Tensor | None,
    out: Tensor,
) -> None:
    """Add to ``out`` what soft targets add to the derivative by c."""
    t = pairs.targets(block, positive)
    product = pairs.buffer("scratch", block)
    if form.mse:
        torch.sub(cosines, t, out=product)
        out += product.mul_(k.plain.mse[block.rows, None])
    if form.kl:
        e = pairs.buffer("exponentials", block)
        logits, wanted = pairs.over_temperature(cosines, t, block)
        out += set_exponentials(logits, k.logits, block, e, product)
        out -= set_exponentials(wanted, k.targets, block, e, product)
