"""Sums of exponentials, which are what a block costs beside its products.

Where the logits' bound allows it, all exponentials of a sweep have one shift, so that rows and
columns share them: numbers of one sign and range up to ``exp(60)`` add up without loss, and whether
small ones were lost is seen in the sums. Where it does not, or some were lost, rows and columns
have shifts of their own, the largest value so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.blocked.pairs import Block
from fastht.losses.terms import wide_dtype

_LARGEST = 60.0  # exponents of e with one shift for all: sums of 1e9 such terms stay in float32
_WIDEST = 140.0  # between the largest and the smallest logit that one shift is tried for


def one_shift(bound: float) -> float | None:
    """Return the shift for exponents of at most ``bound`` either way, or ``None``."""
    if bound <= _LARGEST:
        return 0.0
    return bound - _LARGEST if bound <= _WIDEST else None


class Sums:
    """Sums of ``exp(x - shift)`` along rows or columns; ``extra`` is the diagonal's, kept apart.

    ``total`` is of the dtype that blocks are summed in, for ``wide`` the widest.
    """

    def __init__(
        self,
        dim: int,
        size: int,
        like: Tensor,
        dtype: torch.dtype,
        shift: float | None,
        *,
        wide: bool = False,
    ) -> None:
        self.dim = dim
        start = -torch.inf if shift is None else shift
        self.shift = torch.full((size,), start, dtype=dtype, device=like.device)
        self.extra = torch.zeros_like(self.shift)
        self.total = torch.zeros_like(self.shift, dtype=wide_dtype(like) if wide else dtype)

    def exponentials(self, x: Tensor, side: slice, out: Tensor) -> None:
        """Set ``out`` to ``exp(x - shift)``, with shifts moved to the largest values so far."""
        shift = self.shift[side]
        moved = torch.maximum(shift, x.amax(self.dim))
        faded = (shift - moved).exp()
        self.total[side] *= faded
        self.extra[side] *= faded
        shift.copy_(moved)
        torch.sub(x, moved.unsqueeze(self.dim), out=out).exp_()

    def whole(self, terms: int) -> bool:
        """Whether sums of so many terms with one shift lost at most 1e-9 of themselves.

        Terms under the smallest normal number are short of digits or lost.
        """
        least = terms * torch.finfo(self.shift.dtype).tiny * 1e9
        total = self.total + self.extra
        return bool(((total >= least) & total.isfinite()).all())


def add(
    x: Tensor,
    sums: Sequence[Sums],
    block: Block,
    shift: float | None,
    e: Tensor,
    *,
    apart: bool,
) -> None:
    """Add a block's exponentials to sums of rows and columns.

    ``e`` is a buffer; ``apart`` keeps the diagonal apart, in ``extra``.
    """
    own = None
    for i, s in enumerate(sums):
        if shift is None:
            s.exponentials(x, block.side(s.dim), e)
        elif i == 0:
            torch.exp(torch.sub(x, shift, out=e) if shift else x, out=e)
        if apart and block.diagonal is not None and (i == 0 or shift is None):
            diagonal = e.diagonal(block.diagonal)
            own = diagonal.clone()
            diagonal.zero_()
        s.total[block.side(s.dim)] += e.sum(s.dim, dtype=s.total.dtype)
        if own is not None:
            s.extra[block.own(s.dim)] += own


class Terms(NamedTuple):
    """Coefficients of exponentials: those of rows and columns with one shift, where they have one.

    ``shift`` is the one shift of both, and weights of columns have been brought to it.
    """

    shift: float | None
    directions: list[tuple[int, Tensor, Tensor]]  # dim, shift, weight


def terms(directions: list[tuple[int, Tensor, Tensor]]) -> Terms:
    """Find out whether rows and columns can share exponentials."""
    if not directions:
        return Terms(None, directions)
    extremes = torch.stack(
        [f(shift) for _, shift, _ in directions for f in (torch.amin, torch.amax)]
    )
    low, high = extremes.view(-1, 2).double().T.tolist()
    # Shifts of other processes may differ from these, but not by much.
    if low != high or not all(abs(x - low[0]) <= _LARGEST / 2 for x in low):
        return Terms(None, directions)
    brought = [
        (dim, shift, (weight.double() * torch.exp(low[0] - shift.double())).to(weight.dtype))
        for dim, shift, weight in directions
    ]
    return Terms(low[0], brought)


def set_exponentials(x: Tensor, terms: Terms, block: Block, out: Tensor, product: Tensor) -> Tensor:
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
