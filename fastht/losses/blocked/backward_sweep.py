"""The backward sweep by blocks."""

from __future__ import annotations

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
    like, dtype = operands.rows, pairs.dtype
    k = _shared(form, coefficients)
    rows = torch.zeros(like.shape, dtype=dtype, device=like.device) if need_rows else None
    columns = None
    if need_columns:
        columns = torch.zeros(operands.columns.shape, dtype=dtype, device=like.device)
    scale = torch.zeros(len(like), dtype=dtype, device=like.device) if need_scale else None
    bias = torch.zeros_like(scale) if form.sigmoid and scale is not None else None
    for block in blocks(operands):
        b = pairs.columns(block)
        c = pairs.cosines(block, b)
        positive = pairs.positive(block)
        d = pairs.buffer("derivative", block)
        if form.logits:
            _logit_derivative(form, k, pairs, block, c, positive, d)
            if scale is not None:
                scale[block.rows] += torch.mul(d, c, out=pairs.buffer("scratch", block)).sum(1)
            if bias is not None:
                bias[block.rows] += d.sum(1)
            d *= operands.scale
        else:
            d.zero_()
        if form.soft:
            _add_soft_derivative(form, k, pairs, block, c, positive, d)
        if rows is not None:
            rows[block.rows].addmm_(d, b)
        if columns is not None:
            columns[block.columns].addmm_(d.T, pairs.rows(block))
    for gradient in (rows, columns, scale, bias):
        if gradient is not None:
            gradient *= coefficients.gain
    return Gradients(rows, columns, scale, bias)


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
    out: Tensor,
) -> None:
    """Set ``out`` to the derivative by z."""
    z = pairs.logits(block, cosines)
    if form.softmax:
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
        return
    torch.sigmoid(signed(z, block, positive, pairs), out=out)
    signed(out, block, positive, pairs)
    out *= k.plain.sigmoid[block.rows, None]


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
        temperature = pairs.operands.temperature
        out += set_exponentials(cosines.div_(temperature), k.logits, block, e, product)
        out -= set_exponentials(t.div_(temperature), k.targets, block, e, product)
