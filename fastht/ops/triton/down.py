"""Forward, first launch over the tokens: LayerNorm mix and down-projection (eq. 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.products import add_product, settled

# Of tokens whose mean is more than 4 standard deviations off, 16-bit products lose digits to it.
APART = tl.constexpr(16.0)


@triton.jit
def token_rows(token, N, stride_b, stride_n, FLAT: tl.constexpr):
    """Return where tokens of the batch begin; FLAT where images follow one another like tokens."""
    if FLAT:
        at = token.to(tl.int64) * stride_n
    else:
        at = (token // N).to(tl.int64) * stride_b + (token % N).to(tl.int64) * stride_n
    return at


@triton.jit(do_not_specialize=["N", "P", "total_tokens", "span"])
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
    eps,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
    EVEN_D: tl.constexpr,
    SAVE: tl.constexpr,
    PREFETCH: tl.constexpr,
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
    # x for the product, or in the sums. There something near the mean has to come off x first.
    if x.dtype.element_ty.primitive_bitwidth == 16 and dtype.primitive_bitwidth == 16:
        # 16 bits are no better for it, and in most models no row is so. So both products read x
        # where it lies, and a tile that has such a row is gone over again, the others' bits kept.
        shift = tl.zeros((BM,), tl.float32)
        acc_skip, acc_norm, total, squares = _project(
            x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, False, PREFETCH, BC, BM, BK,
            EVEN_D, PRECISION,
        )  # fmt: skip
        mean, variance = _moments(total, squares, D)
        near = mean * mean <= APART * variance  # not so of an infinity
        if tl.min(near.to(tl.int32), axis=0) == 0:
            shift = tl.where(near, 0.0, mean).to(x.dtype.element_ty).to(tl.float32)
            acc_skip, acc_norm, mean, variance = _project_apart(
                x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, BC, BM, BK, EVEN_D,
                PRECISION,
            )  # fmt: skip
    else:
        shift = _first_mean(x_rows, row_inside, D, stride_xd, BK)
        acc_skip, acc_norm, total, squares = _project(
            x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, True, PREFETCH, BC, BM, BK,
            EVEN_D, PRECISION,
        )  # fmt: skip
        mean, variance = _moments(total, squares, D)
    rstd = 1.0 / tl.sqrt(variance + eps)
    row_sum = tl.load(sums + c)
    constant = tl.load(sums + BC + c)
    normed = rstd[:, None] * (acc_norm - mean[:, None] * row_sum[None, :])
    value = acc_skip + tl.load(scale_ptr) * normed + constant[None, :]
    if PRECISION == "split":  # what was taken off x
        value += shift[:, None] * tl.load(sums + 2 * BC + c)[None, :]

    wide = token.to(tl.int64)
    offset = wide[:, None] * BC + c[None, :]
    tl.store(u + offset, value.to(dtype), mask=row_inside[:, None])
    if SAVE:
        tl.store(u_norm + offset, normed.to(dtype), mask=row_inside[:, None])
        at = stats + wide[:, None] * 2 + tl.arange(0, 2)[None, :]
        tl.store(at, tl.join(mean + shift, rstd), mask=row_inside[:, None])
    # Nobody reads the sums of images that the tile has nothing of.
    first_image = pid * BM // N
    last_image = (tl.minimum(pid * BM + BM, total_tokens) - 1) // N
    for slot in range(last_image - first_image + 1):
        begin = (first_image + slot) * N
        mine = (token >= begin + P) & (token < begin + N) & row_inside
        column = tl.sum(tl.where(mine[:, None], value, 0.0), axis=0)
        tl.store(pooled + (pid.to(tl.int64) * span + slot) * BC + c, column)


@triton.jit
def _project(
    x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, SHIFTED: tl.constexpr,
    PREFETCH: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return both products of a tile of x, and the sums of ``x - shift`` and of its square.

    The sums are of eight features at a time, so that neighbours in a thread are added and no lanes
    talk. The second product is that of ``x - shift``; without ``SHIFTED``, shift is 0.
    """
    c = tl.arange(0, BC)
    dtype = w_skip.dtype.element_ty
    total = tl.zeros((BM, BK // 8), tl.float32)
    squares = tl.zeros((BM, BK // 8), tl.float32)
    acc_skip = tl.zeros((BM, BC), tl.float32)
    acc_norm = tl.zeros((BM, BC), tl.float32)
    for start in tl.range(0, D, BK, num_stages=PREFETCH):
        d = start + tl.arange(0, BK)
        inside = row_inside[:, None]
        if not EVEN_D:
            inside = inside & (d < D)[None, :]
        raw = tl.load(x_rows[:, None] + d[None, :] * stride_xd, mask=inside, other=0.0)
        # Rows past the end are zeros, as is their shift: only features need a mask.
        centred = raw.to(tl.float32)
        if SHIFTED:
            centred -= shift[:, None]
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
        operand = raw.to(dtype)
        acc_skip = add_product(operand, tl.trans(skip), acc_skip, PRECISION)
        if SHIFTED:
            operand = centred.to(dtype)
        acc_norm = add_product(operand, tl.trans(norm), acc_norm, PRECISION)
        if not SHIFTED:  # both products read x where it was copied to, as the sums do
            acc_norm = settled(acc_norm)
    return acc_skip, acc_norm, total, squares


@triton.jit
def _project_apart(
    x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, BC: tl.constexpr, BM: tl.constexpr,
    BK: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the LayerNorm's product and the moments anew, of ``x - shift``."""
    acc_skip, acc_norm, total, squares = _project(
        x_rows, row_inside, w_skip, w_norm, shift, D, stride_xd, True, 1, BC, BM, BK, EVEN_D,
        PRECISION,
    )  # fmt: skip
    mean, variance = _moments(total, squares, D)
    return acc_skip, acc_norm, mean, variance


@triton.jit
def _moments(total, squares, D):
    """Return mean and variance of rows from their partial sums."""
    row_total = tl.sum(total, axis=1)
    mean = row_total / D
    m2 = tl.sum(squares, axis=1) - row_total * mean
    return mean, tl.where(m2 < 0.0, 0.0, m2) / D


@triton.jit
def _first_mean(x_rows, row_inside, D, stride_xd, BK: tl.constexpr):
    """Return the mean of each row's first tile where it stands out of that tile, or else 0.

    No single large feature owns it. Rounded as x is, it leaves differences that are exact.
    """
    d = tl.arange(0, BK)
    inside = row_inside[:, None] & (d < D)[None, :]
    first = tl.load(x_rows[:, None] + d[None, :] * stride_xd, mask=inside, other=0.0)
    dtype = first.dtype
    first = first.to(tl.float32)
    count = tl.minimum(D, BK).to(tl.float32)
    shift = tl.sum(first, axis=1) / count
    spread = tl.where(inside, first - shift[:, None], 0.0)
    apart = shift * shift * count > tl.sum(spread * spread, axis=1)
    return tl.where(apart, shift, 0.0).to(dtype).to(tl.float32)
