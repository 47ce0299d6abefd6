"""The sweeps in plain PyTorch, block by block: any device, and no more than a few blocks of memory.

Exponentials are what a block costs beside its products. Where the logits' bound allows it, all of a
sweep's exponentials have one shift, so that rows and columns share them: numbers of one sign and
range up to ``exp(60)`` add up without loss, and whether small ones were lost is seen in the sums.
Where it does not, or some were lost, rows and columns have shifts of their own, the largest value
so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.sweeps import (
    COLUMNS,
    ROWS,
    Coefficients,
    Form,
    Gradients,
    Operands,
    Statistics,
    sum_dtype,
)

# Rows and columns of a block. On a CPU three blocks fit into the last-level cache and products are
# at their full speed; a GPU wants more work in a launch.
_BLOCKS = {"cpu": (1024, 1024), "cuda": (2048, 4096)}

_LARGEST = 60.0  # exponents of e with one shift for all: sums of 1e9 such terms stay in float32
_WIDEST = 140.0  # between the largest and the smallest logit that one shift is tried for
_LOST = 80.0  # terms under exp(-80) may have lost digits, or be lost


class _Block(NamedTuple):
    """A block's place: slices of rows and columns, and where the diagonal runs through it."""

    rows: slice
    columns: slice
    diagonal: int | None  # as torch.diagonal counts; None where it does not touch the block

    def side(self, dim: int) -> slice:
        """Return the rows (``dim`` 1, along which sums run) or columns of the block."""
        return self.rows if dim == 1 else self.columns

    def own(self, dim: int) -> slice:
        """Return the rows or columns that have their diagonal element here."""
        assert self.diagonal is not None
        k = self.diagonal
        height = self.rows.stop - self.rows.start
        width = self.columns.stop - self.columns.start
        length = min(height, width - k) if k >= 0 else min(height + k, width)
        start = self.rows.start + max(0, -k) if dim == 1 else self.columns.start + max(0, k)
        return slice(start, start + length)


def _blocks(operands: Operands) -> Iterator[_Block]:
    height, width = _BLOCKS.get(operands.rows.device.type, _BLOCKS["cuda"])
    r, c = len(operands.rows), len(operands.columns)
    for top in range(0, r, height):
        for left in range(0, c, width):
            rows, columns = slice(top, min(top + height, r)), slice(left, min(left + width, c))
            k = top + operands.offset - left
            touches = -(rows.stop - top) < k < columns.stop - left
            yield _Block(rows, columns, k if touches else None)


class _Pairs:
    """Computes what is true of the pairs of one block, in buffers that all blocks share."""

    def __init__(self, form: Form, operands: Operands) -> None:
        self.form, self.operands = form, operands
        self.dtype = sum_dtype(operands.rows.dtype)
        self._buffers: dict[str, Tensor] = {}
        self._top = -1
        self._rows = operands.rows[:0]

    def buffer(self, name: str, block: _Block, dtype: torch.dtype | None = None) -> Tensor:
        """Return a buffer of the block's shape with what it held before."""
        height, width = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
        if name not in self._buffers:  # the first block is the largest
            self._buffers[name] = self.operands.rows.new_empty(
                height * width, dtype=dtype or self.dtype
            )
        return self._buffers[name][: height * width].view(height, width)

    def rows(self, block: _Block) -> Tensor:
        """Return the images of a block, in the sums' dtype."""
        if block.rows.start != self._top:
            self._top, self._rows = (
                block.rows.start, self.operands.rows[block.rows].to(self.dtype)
            )  # fmt: skip
        return self._rows

    def columns(self, block: _Block) -> Tensor:
        """Return the texts of a block, in the sums' dtype."""
        return self.operands.columns[block.columns].to(self.dtype)

    def cosines(self, block: _Block, columns: Tensor) -> Tensor:
        """Return c."""
        return torch.mm(self.rows(block), columns.T, out=self.buffer("cosines", block))

    def logits(self, block: _Block, cosines: Tensor) -> Tensor:
        """Return z; without the bias for a softmax."""
        z = torch.mul(cosines, self.operands.scale, out=self.buffer("logits", block))
        if self.form.sigmoid and self.operands.bias is not None:
            z += self.operands.bias
        return z

    def positive(self, block: _Block) -> Tensor | None:
        """Return which pairs have equal keys, or ``None`` where positives are on the diagonal."""
        o = self.operands
        if not self.form.keys or o.row_keys is None or o.column_keys is None:
            return None
        out = self.buffer("positive", block, torch.bool)
        return torch.eq(o.row_keys[block.rows, None], o.column_keys[None, block.columns], out=out)

    def targets(self, block: _Block, positive: Tensor | None) -> Tensor:
        """Return T."""
        o = self.operands
        assert o.row_factors is not None
        assert o.column_factors is not None
        t = torch.mm(
            o.row_factors[block.rows], o.column_factors[block.columns].T,
            out=self.buffer("targets", block),
        )  # fmt: skip
        if o.row_shares is not None and o.column_shares is not None:
            share = torch.mm(
                o.row_shares[block.rows], o.column_shares[block.columns].T,
                out=self.buffer("scratch", block),
            )  # fmt: skip
            nothing = torch.le(share, 0, out=self.buffer("nothing", block, torch.bool))
            t.div_(share).masked_fill_(nothing, 0.0)
        if positive is not None:
            t.masked_fill_(positive, 1.0)
        elif block.diagonal is not None:
            t.diagonal(block.diagonal).fill_(1.0)
        return t


class _Sums:
    """Sums of ``exp(x - shift)`` along rows or columns, and of something that goes with them."""

    def __init__(self, dim: int, size: int, like: Tensor, dtype: torch.dtype, shift: float | None):
        self.dim = dim
        start = -torch.inf if shift is None else shift
        self.shift = torch.full((size,), start, dtype=dtype, device=like.device)
        self.total, self.extra = torch.zeros_like(self.shift), torch.zeros_like(self.shift)

    def exponentials(self, x: Tensor, side: slice, out: Tensor) -> None:
        """Set ``out`` to ``exp(x - shift)``, with shifts moved to the largest values so far."""
        shift = self.shift[side]
        moved = torch.maximum(shift, x.amax(self.dim))
        faded = (shift - moved).exp()
        self.total[side] *= faded
        self.extra[side] *= faded
        shift.copy_(moved)
        torch.sub(x, moved.unsqueeze(self.dim), out=out).exp_()

    def whole(self, shift: float, terms: int) -> bool:
        """Whether sums with one shift lost nothing that matters: 1e-9 of a sum at most."""
        least = terms * torch.finfo(self.total.dtype).tiny * 1e9
        return bool(((self.total + self.extra.abs() >= least) & self.total.isfinite()).all())


def _add(
    x: Tensor,
    sums: Sequence[_Sums],
    block: _Block,
    shift: float | None,
    e: Tensor,
    *,
    apart: bool = False,
    gap: Tensor | None = None,
    product: Tensor | None = None,
) -> None:
    """Add a block's exponentials to sums of rows and columns.

    ``e`` is a buffer; ``apart`` keeps the diagonal apart, in ``extra``; ``gap`` is multiplied with
    the exponentials and summed there, by way of the buffer ``product``.
    """
    own = None
    for i, s in enumerate(sums):
        if shift is None:
            s.exponentials(x, block.side(s.dim), e)
        elif i == 0:
            torch.exp(torch.sub(x, shift, out=e) if shift else x, out=e)
        if i == 0 or shift is None:
            if apart and block.diagonal is not None:
                diagonal = e.diagonal(block.diagonal)
                own = diagonal.clone()
                diagonal.zero_()
            if gap is not None:
                product = torch.mul(e, gap, out=product)
        s.total[block.side(s.dim)] += e.sum(s.dim)
        if own is not None:
            s.extra[block.own(s.dim)] += own
        if gap is not None and product is not None:
            s.extra[block.side(s.dim)] += product.sum(s.dim)


def _one_shift(bound: float) -> float | None:
    """Return the shift for exponents of at most ``bound`` either way, or ``None``."""
    if bound <= _LARGEST:
        return 0.0
    return bound - _LARGEST if bound <= _WIDEST else None


def _bound(operands: Operands) -> float:
    """Return what no cosine exceeds (NaN where features are not finite)."""
    dtype = sum_dtype(operands.rows.dtype)
    rows, columns = (
        torch.linalg.vector_norm(x, dim=1, dtype=dtype).max()
        for x in (operands.rows, operands.columns)
    )
    return (rows * columns).item()


def forward(form: Form, operands: Operands) -> Statistics:
    """Return the statistics of a rectangle; see :class:`fastht.losses.sweeps.Statistics`."""
    bound = _bound(operands) if form.softmax or form.kl else 0.0
    shifts = _Shifts(
        _one_shift(abs(operands.scale.item()) * bound) if form.softmax else None,
        _one_shift(bound / operands.temperature) if form.kl else None,
        _one_shift(1.0 / operands.temperature) if form.kl else None,
    )
    statistics = _forward(form, operands, shifts)
    if statistics is None:
        statistics = _forward(form, operands, _Shifts(None, None, None))
        assert statistics is not None
    return statistics


class _Shifts(NamedTuple):
    """The one shift of each kind of exponentials, or ``None`` for shifts by row and column."""

    softmax: float | None
    logits: float | None
    targets: float | None


def _forward(form: Form, operands: Operands, shifts: _Shifts) -> Statistics | None:
    """Return the statistics, or ``None`` where a sum with one shift lost terms."""
    pairs = _Pairs(form, operands)
    r, c = len(operands.rows), len(operands.columns)
    like, dtype = operands.rows, pairs.dtype

    def sums(directions: int, shift: float | None) -> list[_Sums]:
        sides = ((ROWS, 1, r), (COLUMNS, 0, c))
        return [_Sums(dim, n, like, dtype, shift) for d, dim, n in sides if directions & d]

    softmax = sums(form.softmax, shifts.softmax)
    logits, wanted = sums(form.kl, shifts.logits), sums(form.kl, shifts.targets)
    dots = [torch.zeros_like(s.total) for s in softmax]
    sigmoid = torch.zeros(r if form.sigmoid else 0, dtype=dtype, device=like.device)
    mse = torch.zeros(r if form.mse else 0, dtype=dtype, device=like.device)
    for block in _blocks(operands):
        x = pairs.cosines(block, pairs.columns(block))
        positive = pairs.positive(block)
        if softmax:
            _add_dots(x, softmax, dots, block, positive, pairs)
            z = pairs.logits(block, x)
            e = pairs.buffer("exponentials", block)
            _add(z, softmax, block, shifts.softmax, e, apart=not form.keys)
        if form.sigmoid:
            z = _signed(pairs.logits(block, x), block, positive, pairs)
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
                _add(t.div_(operands.temperature), wanted, block, shifts.targets, e,
                     gap=gap, product=product)  # fmt: skip
                _add(x.div_(operands.temperature), logits, block, shifts.logits, e)
    for group, shift in zip((softmax, logits, wanted), shifts, strict=True):
        terms = max(r, c)
        if shift is not None and not all(s.whole(shift, terms) for s in group):
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
    sums: Sequence[_Sums],
    dots: Sequence[Tensor],
    block: _Block,
    positive: Tensor | None,
    pairs: _Pairs,
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


def _signed(z: Tensor, block: _Block, positive: Tensor | None, pairs: _Pairs) -> Tensor:
    """Change the sign of positives' logits, in place: ``-y z``."""
    if positive is not None:
        minus = torch.neg(z, out=pairs.buffer("scratch", block))
        return torch.where(positive, minus, z, out=z)
    if block.diagonal is not None:
        z.diagonal(block.diagonal).neg_()
    return z


def backward(
    form: Form,
    operands: Operands,
    coefficients: Coefficients,
    need_rows: bool = True,
    need_columns: bool = True,
    need_scale: bool = True,
) -> Gradients:
    """Return the gradients of a rectangle; see :class:`fastht.losses.sweeps.Gradients`."""
    pairs = _Pairs(form, operands)
    like, dtype = operands.rows, pairs.dtype
    k = _shared(form, coefficients)
    rows = torch.zeros(like.shape, dtype=dtype, device=like.device) if need_rows else None
    columns = None
    if need_columns:
        columns = torch.zeros(operands.columns.shape, dtype=dtype, device=like.device)
    scale = torch.zeros(len(like), dtype=dtype, device=like.device) if need_scale else None
    bias = torch.zeros_like(scale) if form.sigmoid and scale is not None else None
    for block in _blocks(operands):
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


class _Terms(NamedTuple):
    """Coefficients of exponentials: those of rows and columns with one shift, where they have one.

    ``shift`` is the one shift of both, and weights of columns have been brought to it.
    """

    shift: float | None
    directions: list[tuple[int, Tensor, Tensor]]  # dim, shift, weight


class _Shared(NamedTuple):
    plain: Coefficients
    softmax: _Terms
    logits: _Terms
    targets: _Terms


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
    return _Shared(k, _terms(softmax), _terms(logits), _terms(targets))


def _terms(directions: list[tuple[int, Tensor, Tensor]]) -> _Terms:
    if not directions:
        return _Terms(None, directions)
    extremes = torch.stack(
        [f(shift) for _, shift, _ in directions for f in (torch.amin, torch.amax)]
    )
    low, high = extremes.view(-1, 2).double().T.tolist()
    # Shifts of other processes may differ from these, but not by much.
    if low != high or not all(abs(x - low[0]) <= _LARGEST / 2 for x in low):
        return _Terms(None, directions)
    brought = [
        (dim, shift, (weight.double() * torch.exp(low[0] - shift.double())).to(weight.dtype))
        for dim, shift, weight in directions
    ]
    return _Terms(low[0], brought)


def _set_exponentials(
    x: Tensor, terms: _Terms, block: _Block, out: Tensor, product: Tensor
) -> Tensor:
    """Set ``out`` to the sum over directions of ``exp(x - shift) * weight``."""
    if terms.shift is not None:
        torch.exp(torch.sub(x, terms.shift, out=out) if terms.shift else x, out=out)
        weights = [w[block.side(dim)].unsqueeze(dim) for dim, _, w in terms.directions]
        if len(weights) == 1:
            return out.mul_(weights[0])
        return out.mul_(torch.add(*weights, out=product))
    for i, (dim, shift, weight) in enumerate(terms.directions):
        side = block.side(dim)
        e = product if i else out
        torch.sub(x, shift[side].unsqueeze(dim), out=e).exp_().mul_(weight[side].unsqueeze(dim))
        if i:
            out += e
    return out


def _logit_derivative(
    form: Form,
    k: _Shared,
    pairs: _Pairs,
    block: _Block,
    cosines: Tensor,
    positive: Tensor | None,
    out: Tensor,
) -> None:
    """Set ``out`` to the derivative by z."""
    z = pairs.logits(block, cosines)
    if form.softmax:
        scratch = pairs.buffer("scratch", block)
        _set_exponentials(z, k.softmax, block, out, scratch)
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
    torch.sigmoid(_signed(z, block, positive, pairs), out=out)
    _signed(out, block, positive, pairs)
    out *= k.plain.sigmoid[block.rows, None]


def _add_soft_derivative(
    form: Form,
    k: _Shared,
    pairs: _Pairs,
    block: _Block,
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
        out += _set_exponentials(cosines.div_(temperature), k.logits, block, e, product)
        out -= _set_exponentials(t.div_(temperature), k.targets, block, e, product)
