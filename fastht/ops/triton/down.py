"""Forward, first launch over the tokens: LayerNorm mix and down-projection (eq. 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.fold import folded_sum
from fastht.ops.triton.products import add_product


@triton.jit
def token_rows(token, N, stride_b, stride_n, FLAT: tl.constexpr):
    """Return where tokens of the batch begin; FLAT where images follow one another like tokens."""
    if FLAT:
        at = token.to(tl.int64) * stride_n
    else:
        at = (token // N).to(tl.int64) * stride_b + (token % N).to(tl.int64) * stride_n
    return at


@triton.jit(do_not_specialize=["N", "P", "total_tokens", "span", "SLICES"])
def down_kernel(
    x,
    w_skip,
    w_norm,
    sums,
    scale_ptr,
    u,  # [B, N, BC]
    u_norm,  # [B, N, BC] the LayerNorm's part of u, divided by the scale
    stats,  # [B, N, 2] mean and 1 / standard deviation
    pooled,  # [tiles, span, BC] sums of u over the patches of a tile, image by image
    N,
    P,
    D,
    total_tokens,
    span,
    stride_xb,
    stride_xn,
    stride_xd,
    SLICES,
    eps,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    EVEN_D: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Project ``BM`` tokens of the batch in a single pass over their features.

    Tiles run on from image to image, so that only the last one has rows to spare.

    The LayerNorm is not applied but solved for: two products share the tile of x, the row's mean
    and variance are gathered on the way, and ``u = x @ w_skip + rstd * (x @ w_norm - mean * sum
    of w_norm) + constant`` (identity 4 of the design).
    """
    pid = tl.program_id(0)
    token = pid * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    row_inside = token < total_tokens
    x_rows = x + token_rows(token, N, stride_xb, stride_xn, False)
    dtype = w_skip.dtype.element_ty

    # Where |mean| >> sigma, the LayerNorm's part is lost to the mean: in the rounding of a float32
    # x for the product, or in the sum itself. So a rough mean goes first: that of the first tile,
    # which no single large feature owns. Rounded as x is, it leaves differences that are exact.
    d_first = tl.arange(0, BK)
    in_first = row_inside[:, None] & (d_first < D)[None, :]
    first = tl.load(x_rows[:, None] + d_first[None, :] * stride_xd, mask=in_first, other=0.0)
    first = first.to(tl.float32)
    first_count = tl.minimum(D, BK).to(tl.float32)
    shift = tl.sum(first, axis=1) / first_count
    spread = tl.where(in_first, first - shift[:, None], 0.0)
    apart = shift * shift * first_count > tl.sum(spread * spread, axis=1)
    shift = tl.where(apart, shift, 0.0).to(x.dtype.element_ty).to(tl.float32)

    # Sums of x - shift and of its square, which keep their digits as the shift is near the mean;
    # eight features at a time, so that neighbours in a thread are added and no lanes talk.
    total = tl.zeros((BM, BK // 8), tl.float32)
    squares = tl.zeros((BM, BK // 8), tl.float32)
    acc_skip = tl.zeros((BM, BC), tl.float32)
    acc_norm = tl.zeros((BM, BC), tl.float32)
    for start in range(0, D, BK):
        d = start + tl.arange(0, BK)
        inside = row_inside[:, None]
        if not EVEN_D:
            inside = inside & (d < D)[None, :]
        raw = tl.load(x_rows[:, None] + d[None, :] * stride_xd, mask=inside, other=0.0)
        # Rows past the end are zeros, as is their shift: only features need a mask.
        centred = raw.to(tl.float32) - shift[:, None]
        if not EVEN_D:
            centred = tl.where(inside, centred, 0.0)
        eights = tl.reshape(centred, (BM, BK // 8, 8))
        total += tl.sum(eights, axis=2)
        squares += tl.sum(eights * eights, axis=2)

        if EVEN_D:
            skip = tl.load(w_skip + c[:, None] * D + d[None, :])
            norm = tl.load(w_norm + c[:, None] * D + d[None, :])
        else:
            skip = tl.load(w_skip + c[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
            norm = tl.load(w_norm + c[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
        if PRECISION == "split":  # the same numbers for both, which are split once
            raw = centred
        acc_skip = add_product(raw.to(dtype), tl.trans(skip), acc_skip, PRECISION)
        acc_norm = add_product(centred.to(dtype), tl.trans(norm), acc_norm, PRECISION)

    row_total = tl.sum(total, axis=1)
    mean = row_total / D  # of x - shift
    m2 = tl.sum(squares, axis=1) - row_total * mean
    rstd = 1.0 / tl.sqrt(tl.where(m2 < 0.0, 0.0, m2) / D + eps)
    row_sum = folded_sum(sums, 0, SLICES, BC)
    constant = folded_sum(sums, 1, SLICES, BC)
    normed = rstd[:, None] * (acc_norm - mean[:, None] * row_sum[None, :])
    value = acc_skip + tl.load(scale_ptr) * normed + constant[None, :]
    if PRECISION == "split":  # what was taken off x
        value += shift[:, None] * folded_sum(sums, 2, SLICES, BC)[None, :]

    b = token // N
    rows = token % N
    token = token.to(tl.int64)
    offset = token[:, None] * BC + c[None, :]
    tl.store(u + offset, value.to(dtype), mask=row_inside[:, None])
    if SAVE:
        tl.store(u_norm + offset, normed.to(dtype), mask=row_inside[:, None])
        tl.store(stats + token * 2, mean + shift, mask=row_inside)
        tl.store(stats + token * 2 + 1, rstd, mask=row_inside)
    is_patch = row_inside & (rows >= P)
    first_image = pid * BM // N
    for slot in range(span):
        mine = is_patch & (b == first_image + slot)
        column = tl.sum(tl.where(mine[:, None], value, 0.0), axis=0)
        tl.store(pooled + (pid.to(tl.int64) * span + slot) * BC + c, column)
