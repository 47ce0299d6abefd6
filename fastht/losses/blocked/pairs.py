"""Blocks of pairs, and what is true of the pairs of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastht.losses.sweeps import Form, Operands, sum_dtype

# Rows and columns of a block. On a CPU three blocks fit into the last-level cache and products are
# at their full speed; a GPU wants more work in a launch.
BLOCKS = {"cpu": (1024, 1024), "cuda": (2048, 4096)}


class Block(NamedTuple):
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


def block_size(device: str) -> tuple[int, int]:
    """Return the rows and columns of a block on a type of device."""
    return BLOCKS.get(device, BLOCKS["cuda"])


def blocks(operands: Operands) -> Iterator[Block]:
    """Return the blocks of a rectangle, row by row of them."""
    height, width = block_size(operands.rows.device.type)
    r, c = len(operands.rows), len(operands.columns)
    for top in range(0, r, height):
        for left in range(0, c, width):
            rows, columns = slice(top, min(top + height, r)), slice(left, min(left + width, c))
            k = top + operands.offset - left
            touches = -(rows.stop - top) < k < columns.stop - left
            yield Block(rows, columns, k if touches else None)


class Pairs:
    """Computes what is true of the pairs of one block, in buffers that all blocks share."""

    def __init__(self, form: Form, operands: Operands) -> None:
        self.form, self.operands = form, operands
        self.dtype = sum_dtype(operands.rows.dtype)
        self._buffers: dict[str, Tensor] = {}
        self._top = -1
        self._rows = operands.rows[:0]
        self._known: Block | None = None
        self._signed: Block | None = None

    def buffer(self, name: str, block: Block, dtype: torch.dtype | None = None) -> Tensor:
        """Return a buffer of the block's shape with what it held before."""
        height, width = block.rows.stop - block.rows.start, block.columns.stop - block.columns.start
        if name not in self._buffers:  # the first block is the largest
            if self.form.sigmoid and not self._buffers:
                # What its loss always has is asked for at once: a C library that gets back a few
                # megabytes at a time hands them to the system, and a step waits for clean pages.
                three = self.operands.rows.new_empty(3, height * width, dtype=self.dtype)
                self._buffers.update(zip(("cosines", "logits", "scratch"), three, strict=True))
            if name not in self._buffers:
                self._buffers[name] = self.operands.rows.new_empty(
                    height * width, dtype=dtype or self.dtype
                )
        return self._buffers[name][: height * width].view(height, width)

    def rows(self, block: Block) -> Tensor:
        """Return the images of a block, in the sums' dtype."""
        if block.rows.start != self._top:
            self._top, self._rows = (
                block.rows.start, self.operands.rows[block.rows].to(self.dtype)
            )  # fmt: skip
        return self._rows

    def columns(self, block: Block) -> Tensor:
        """Return the texts of a block, in the sums' dtype."""
        return self.operands.columns[block.columns].to(self.dtype)

    def cosines(self, block: Block) -> Tensor:
        """Return c, which nobody may change: the same block is not computed twice running."""
        c = self.buffer("cosines", block)
        if block != self._known:
            torch.mm(self.rows(block), self.columns(block).T, out=c)
            self._known = block
        return c

    def logits(self, block: Block, cosines: Tensor) -> Tensor:
        """Return z of a softmax, which has no bias."""
        self.changed_logits()
        return torch.mul(cosines, self.operands.scale, out=self.buffer("logits", block))

    def signed_logits(self, block: Block, cosines: Tensor, positive: Tensor | None) -> Tensor:
        """Return ``-y z`` of the sigmoid loss; who changes it says so by ``changed_logits``."""
        z = self.buffer("logits", block)
        if block != self._signed:
            torch.mul(cosines, self.operands.scale, out=z)
            if self.operands.bias is not None:
                z += self.operands.bias
            signed(z, block, positive, self)
            self._signed = block
        return z

    def changed_logits(self) -> None:
        """Have the next call of ``signed_logits`` compute them again."""
        self._signed = None

    def positive(self, block: Block) -> Tensor | None:
        """Return which pairs have equal keys, or ``None`` where positives are on the diagonal."""
        o = self.operands
        if not self.form.keys or o.row_keys is None or o.column_keys is None:
            return None
        out = self.buffer("positive", block, torch.bool)
        return torch.eq(o.row_keys[block.rows, None], o.column_keys[None, block.columns], out=out)

    def targets(self, block: Block, positive: Tensor | None) -> Tensor:
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

    def over_temperature(
        self, cosines: Tensor, targets: Tensor, block: Block
    ) -> tuple[Tensor, Tensor]:
        """Return c and T divided by the temperature, T in place."""
        temperature = self.operands.temperature
        self.changed_logits()
        logits = torch.div(cosines, temperature, out=self.buffer("logits", block))
        return logits, targets.div_(temperature)


def signed(z: Tensor, block: Block, positive: Tensor | None, pairs: Pairs) -> Tensor:
    """Change the sign of what belongs to positives, in place."""
    if positive is not None:
        minus = torch.neg(z, out=pairs.buffer("scratch", block))
        return torch.where(positive, minus, z, out=z)
    if block.diagonal is not None:
        z.diagonal(block.diagonal).neg_()
    return z
