"""Backward, first launch over the tokens: the gradient enters the bottleneck (eq. 5)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.down import token_rows
from fastht.ops.triton.products import add_product


@triton.jit(do_not_specialize=["N", "total_tokens"])
def contract_kernel(
    dout,
    w_up,
    dz,  # [B, N, BC] gradient of the input of the up-projection
    N,
    D,
    total_tokens,
    stride_gb,
    stride_gn,
    stride_gd,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    EVEN_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Contract ``dout`` with the up-projection, ``BM`` tokens of the batch a program.

    A launch of its own: it waits for memory alone, and what follows for the arithmetic units, so
    each has the tile and the number of programs that suit it.
    """
    token = tl.program_id(0) * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    row_inside = token < total_tokens
    dtype = w_up.dtype.element_ty
    rows = dout + token_rows(token, N, stride_gb, stride_gn, False)
    acc = tl.zeros((BM, BC), tl.float32)
    for start in range(0, D, BD):
        d = start + tl.arange(0, BD)
        inside = row_inside[:, None]
        if EVEN_D:
            weight = tl.load(w_up + d[:, None] * BC + c[None, :])
        else:
            inside = inside & (d < D)[None, :]
            weight = tl.load(w_up + d[:, None] * BC + c[None, :], mask=(d < D)[:, None], other=0.0)
        upstream = tl.load(rows[:, None] + d[None, :] * stride_gd, mask=inside, other=0.0)
        acc = add_product(upstream.to(dtype), weight, acc, PRECISION)
    at = token.to(tl.int64)[:, None] * BC + c[None, :]
    tl.store(dz + at, acc.to(dz.dtype.element_ty), mask=row_inside[:, None])
