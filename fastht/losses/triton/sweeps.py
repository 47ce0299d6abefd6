"""Both sweeps as Triton launches: two or three forward, and up to three for each strip backward.

(Strict float32, and soft targets, have one more before: the rounders of rows and columns.)

The functions here have the signatures of :mod:`fastht.losses.sweeps`; they allocate, pick
configurations and launch. Nothing waits for the device, so a CUDA graph can capture all of it.

Forward, each program has a tile of pairs for the whole of E and writes what it sums over its rows
and columns to places of its own, ``[tiles, R]`` and ``[tiles, C]`` (under 1/20 of the rectangle),
which a small launch adds up. Backward, the derivative by the similarities is made once for a strip
of rows, kept in the features' dtype, and multiplied with either side's features. With R = C = B
that is ``6 B^2 E`` multiply-adds and additions, where a pass for each side that keeps nothing makes
the similarities twice, ``8 B^2 E``, with accumulators of the whole of E that leave no registers;
the strip costs ``3 B^2`` elements of traffic in exchange, and ``STRIP_BYTES`` of memory.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

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
from fastht.losses.triton import configs
from fastht.losses.triton.aligned import rounders_kernel
from fastht.losses.triton.forward import forward_kernel
from fastht.losses.triton.gradient import gradient_kernel
from fastht.losses.triton.merge import merge_kernel
from fastht.losses.triton.product import product_kernel

STRIP_BYTES = 2**27
STRIP_ROWS = 2048  # at least: a multiple of every tile, and enough of them for a whole device
EDGE = 128  # of the largest tile: features and strips are allocated to a multiple of it
FACTORS, SHARES = 32, 16  # what the widths of factors and shares are filled up to


class Launcher:
    """Sizes and configurations that all launches of one call share."""

    def __init__(self, form: Form, operands: Operands) -> None:
        self.form, self.operands = form, _filled(form, operands)
        self.device, self.dtype = operands.rows.device, operands.rows.dtype
        self.R, self.C = len(operands.rows), len(operands.columns)
        self.sums = sum_dtype(self.dtype)
        tf32 = torch.backends.cuda.matmul.allow_tf32
        self.numbers = configs.number_class(self.dtype, tf32)

    def options(self, kernel: str) -> dict[str, Any]:
        """Return the configuration of one kernel for this call."""
        form = "soft" if self.form.soft else "keys" if self.form.keys else "plain"
        return configs.options(kernel, self.device, self.numbers, form)

    def terms(self) -> dict[str, Any]:
        """Return what kernels know of the form when they are compiled."""
        form = self.form
        return {
            "SOFTMAX": form.softmax,
            "SIGMOID": form.sigmoid,
            "KL": form.kl,
            "MSE": form.mse,
            "KEYS": form.keys,
            "SHARES": form.shares,
        }

    def precisions(self) -> dict[str, Any]:
        """Return the dtype of sums and how products are made."""
        double = self.sums == torch.float64
        return {
            "ACC": tl.float64 if double else tl.float32,
            "PRECISION": configs.SIMILARITIES[self.numbers],
            # Factors are float32 where features are half as wide.
            "SOFT_PRECISION": configs.SIMILARITIES["64" if double else "32"],
        }

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Allocate on the features' device; kernels write all that is read."""
        return torch.empty(shape, dtype=dtype or self.sums, device=self.device)

    def on_device(self) -> contextlib.AbstractContextManager[Any]:
        """Make the features' device the one that is launched on."""
        if self.device.type == "cuda":
            return torch.cuda.device(self.device)
        return contextlib.nullcontext()

    def rounders(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the rounders of rows ``[3, R]`` and columns ``[3, C]`` and the features' dithers.

        None of them where none are read.
        """
        named, precisions = self.operands, self.precisions()
        sides = (
            (named.rows, named.columns, precisions["PRECISION"]),
            (named.row_factors, named.column_factors, precisions["SOFT_PRECISION"]),
            (named.row_shares, named.column_shares, precisions["SOFT_PRECISION"]),
        )
        used = (True, self.form.soft, self.form.shares)
        wanted = [use and how == "aligned" for use, (_, _, how) in zip(used, sides, strict=True)]
        if not any(wanted):
            return None, None, None
        of_rows, of_columns = self.new(3, self.R), self.new(3, self.C)
        widest = max(rows.shape[1] for rows, _, _ in sides if rows is not None)
        of_features = self.new(widest)
        options = self.options("rounders")
        blocks = triton.cdiv(self.R, options["BLOCK"]) + triton.cdiv(self.C, options["BLOCK"])
        for plane, (rows, columns, _) in enumerate(sides):
            if wanted[plane] and rows is not None:
                rounders_kernel[(blocks,)](
                    rows,
                    columns,
                    of_rows[plane],
                    of_columns[plane],
                    of_features,
                    self.R,
                    self.C,
                    rows.shape[1],
                    WIDTH=math.gcd(rows.shape[1], EDGE),
                    **options,
                )
        return of_rows, of_columns, of_features

    def pointers(self) -> tuple[Tensor, ...]:
        """Return the operands that kernels take; what a form lacks is never read."""
        named, bias, inverse = self.operands, self.operands.bias, None
        if self.form.sigmoid and bias is None:
            bias = torch.zeros((1,), dtype=self.sums, device=self.device)
        if self.form.kl:
            exact = 1 / named.temperature
            rounded = torch.tensor(exact, dtype=self.sums).item()
            inverse = self.new(2)
            inverse[0], inverse[1] = rounded, exact - rounded
        return tuple(
            named.rows if tensor is None else tensor
            for tensor in (
                *(named.rows, named.columns, named.scale, bias, named.row_keys),
                *(named.column_keys, named.row_factors, named.column_factors, named.row_shares),
                *(named.column_shares, *self.rounders(), inverse),
            )
        )

    def sizes(self) -> tuple[int, ...]:
        """Return the sizes of both sweeps: R, C, E, V and K; and the offset."""
        named = self.operands
        factors, shares = named.row_factors, named.row_shares
        return (
            *(self.R, self.C, named.rows.shape[1]),
            0 if factors is None else factors.shape[1],
            0 if shares is None else shares.shape[1],
            named.offset,
        )

    def product(
        self, strip: Tensor, features: Tensor, gain: Tensor, out: Tensor,
        first: bool = True, last: bool = True,
    ) -> None:  # fmt: skip
        """Write ``gain * strip @ features``, over one strip or over all from first to last."""
        options = self.options("product")
        M, E = out.shape
        grid = (triton.cdiv(M, options["BM"]) * triton.cdiv(E, options["BN"]),)
        product_kernel[grid](
            strip,
            features,
            gain,
            out,
            M,
            features.shape[0],
            E,
            *strip.stride(),
            FIRST=first,
            LAST=last,
            ACC=self.precisions()["ACC"],
            PRECISION=configs.PRECISIONS[self.numbers],
            **options,
        )


def _filled(form: Form, operands: Operands) -> Operands:
    """Return operands whose widths fill the kernels' tiles, with zeros.

    Rows that begin at round addresses and loops without masks are worth a copy; features of the
    usual widths need none.
    """

    def filled(tensor: Tensor, multiple: int) -> Tensor:
        spare = -tensor.shape[1] % multiple
        return F.pad(tensor, (0, spare)) if spare else tensor

    widths = {"rows": EDGE, "columns": EDGE}
    if form.soft:
        widths |= {"row_factors": FACTORS, "column_factors": FACTORS}
    if form.shares:
        widths |= {"row_shares": SHARES, "column_shares": SHARES}
    wide: dict[str, Any] = {
        name: filled(getattr(operands, name), width) for name, width in widths.items()
    }
    return operands._replace(**wide)


def forward(form: Form, operands: Operands) -> Statistics:
    """Return the statistics of a rectangle, see :func:`fastht.losses.sweeps.forward`."""
    run = Launcher(form, operands)
    R, C = run.R, run.C
    options = run.options("sweep")
    row_tiles, column_tiles = triton.cdiv(R, options["BM"]), triton.cdiv(C, options["BN"])
    found = Statistics(
        softmax_rows=run.new(4, R if form.softmax & ROWS else 0),
        softmax_columns=run.new(4, C if form.softmax & COLUMNS else 0),
        kl_rows=run.new(5, R if form.kl & ROWS else 0),
        kl_columns=run.new(5, C if form.kl & COLUMNS else 0),
        sigmoid=run.new(R if form.sigmoid else 0),
        mse=run.new(R if form.mse else 0),
    )
    row_parts = run.new(_parts(form, ROWS), column_tiles, R)
    column_parts = run.new(_parts(form, COLUMNS), row_tiles, C)
    with run.on_device():
        forward_kernel[(row_tiles * column_tiles,)](
            *run.pointers(),
            row_parts,
            column_parts,
            found.softmax_rows[3],
            found.softmax_columns[3],
            *run.sizes(),
            **run.terms(),
            **run.precisions(),
            **options,
        )
        # Each direction's own partner is `offset` ahead of a row and behind a column.
        for direction, parts, partners, offset in (
            (ROWS, row_parts, C, operands.offset),
            (COLUMNS, column_parts, R, -operands.offset),
        ):
            if not parts.shape[0]:
                continue
            by_row = direction == ROWS
            softmax = found.softmax_rows if by_row else found.softmax_columns
            kl = found.kl_rows if by_row else found.kl_columns
            options = run.options("merge")
            merge_kernel[(triton.cdiv(parts.shape[2], options["BLOCK"]),)](
                parts,
                operands.scale,
                softmax,
                kl,
                found.sigmoid,
                found.mse,
                parts.shape[2],
                parts.shape[1],
                partners,
                offset,
                SOFTMAX=bool(form.softmax & direction),
                SIGMOID=form.sigmoid and by_row,
                KL=bool(form.kl & direction),
                MSE=form.mse and by_row,
                KEYS=form.keys,
                ACC=run.precisions()["ACC"],
                **options,
            )
    return found


def _parts(form: Form, direction: int) -> int:
    """Return how many numbers a tile leaves of each of its rows or columns."""
    parts = 0
    if form.softmax & direction:
        parts += 3 if form.keys else 2
    if form.kl & direction:
        parts += 5
    if direction == ROWS:
        parts += form.sigmoid + form.mse
    return parts


def strip_rows(R: int, C: int, itemsize: int) -> int:
    """Return how many rows of derivatives are kept at a time: a multiple of every tile's."""
    affordable = STRIP_BYTES // (C * itemsize)
    return min(_padded(R), max(STRIP_ROWS, affordable // EDGE * EDGE))


def _padded(size: int) -> int:
    return triton.cdiv(size, EDGE) * EDGE


def backward(
    form: Form,
    operands: Operands,
    coefficients: Coefficients,
    need_rows: bool = True,
    need_columns: bool = True,
    need_scale: bool = True,
) -> Gradients:
    """Return the gradients of a rectangle, see :func:`fastht.losses.sweeps.backward`."""
    run = Launcher(form, operands)
    R, C = run.R, run.C
    need_scale = need_scale and form.logits
    options = run.options("sweep")
    column_tiles = triton.cdiv(C, options["BN"])
    rows, columns = run.operands.rows, run.operands.columns
    d_rows = run.new(*rows.shape) if need_rows else None
    d_columns = run.new(*columns.shape) if need_columns else None
    by_scale = run.new(column_tiles if need_scale else 0, R)
    by_bias = run.new(column_tiles if need_scale and form.sigmoid else 0, R)
    height = strip_rows(R, C, rows.element_size())
    kept = need_rows or need_columns
    strip = run.new(height if kept else 0, _padded(C), dtype=run.dtype)
    vectors = coefficients[1:]
    with run.on_device():
        pointers = run.pointers()
        for first in range(0, R, height) if kept or need_scale else ():
            last = min(R, first + height)
            row_tiles = triton.cdiv(last - first, options["BM"])
            gradient_kernel[(row_tiles * column_tiles,)](
                *pointers,
                *vectors,
                strip,
                by_scale,
                by_bias,
                first,
                last,
                strip.stride(0),
                *run.sizes(),
                **run.terms(),
                STRIP=kept,
                SCALE=need_scale,
                **run.precisions(),
                **options,
            )
            if d_rows is not None:
                run.product(strip, columns, coefficients.gain, d_rows[first:last])
            if d_columns is not None:
                run.product(
                    strip.T,
                    rows[first:last],
                    coefficients.gain,
                    d_columns,
                    first=first == 0,
                    last=last == R,
                )
    width = operands.rows.shape[1]
    return Gradients(
        None if d_rows is None else d_rows[:, :width].contiguous(),
        None if d_columns is None else d_columns[:, :width].contiguous(),
        coefficients.gain * by_scale.sum(0) if need_scale else None,
        coefficients.gain * by_bias.sum(0) if need_scale and form.sigmoid else None,
    )
