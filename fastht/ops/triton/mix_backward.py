"""Backward through gate and depthwise bank: from the gradient of v to that of u (eq. 3, 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.fold import folded_sum
from fastht.ops.triton.gate import (
    channel_filter,
    hidden_layer,
    pick,
    pooled_mean,
    second_layer,
)
from fastht.ops.triton.mix import depthwise


@triton.jit
def write_row_means(
    du, u_norm, offset, token, row_inside, row_sum, scale, row_means, D, BC: tl.constexpr
):
    """Store the two means over D that the LayerNorm's backward needs, as sums over C.

    ``mean(dh_norm) = du . row_sum / D`` and ``mean(dh_norm * x_hat) = du . u_norm / D``
    (identity 5 of the design).
    """
    saved = tl.load(u_norm + offset, mask=row_inside[:, None], other=0.0).to(tl.float32)
    first = tl.sum(du * row_sum[None, :], axis=1) * (scale / D)
    second = tl.sum(du * saved, axis=1) * (scale / D)
    tl.store(row_means + token * 2, first, mask=row_inside)
    tl.store(row_means + token * 2 + 1, second, mask=row_inside)


@triton.jit
def _gate_gradient(correlation, bank, scale, weights, b, chunks, BC: tl.constexpr):
    """Return the gradient of the gate's logits, ``[4]``, and that of a channel filter, ``[BC]``.

    Both are sums over the taps of kernel times correlation. The softmax's gradient subtracts
    the gated mean of the three convolutions; taking it from the kernels, not from the sums,
    keeps the digits that would cancel.
    """
    c = tl.arange(0, BC)
    j = tl.arange(0, 8)
    g3, g5, g7 = pick(weights, 0), pick(weights, 1), pick(weights, 2)
    sum3 = tl.zeros((8, BC), tl.float32)
    sum5 = tl.zeros((8, BC), tl.float32)
    sum7 = tl.zeros((8, BC), tl.float32)
    d_filter = tl.zeros((8, BC), tl.float32)
    for chunk in range(chunks):
        at = correlation + (b * chunks + chunk) * 50 * BC
        for start in range(0, 50, 8):
            row = start + j
            where = row[:, None] * BC + c[None, :]
            inside = (row < 50)[:, None]
            g = tl.load(at + where, mask=inside, other=0.0)
            k3 = tl.load(bank + where, mask=inside, other=0.0)
            k5 = tl.load(bank + 50 * BC + where, mask=inside, other=0.0)
            k7 = tl.load(bank + 100 * BC + where, mask=inside, other=0.0)
            mean = g3 * k3 + g5 * k5 + g7 * k7
            tap = (row < 49)[:, None]
            d_filter += tl.where(tap, mean * g, 0.0)
            g = tl.where(tap, g * scale[None, :], g)  # the filter does not scale the biases
            sum3 += (k3 - mean) * g
            sum5 += (k5 - mean) * g
            sum7 += (k7 - mean) * g
    k = tl.arange(0, 4)
    d3 = tl.sum(tl.sum(sum3, axis=0), axis=0)
    d5 = tl.sum(tl.sum(sum5, axis=0), axis=0)
    d7 = tl.sum(tl.sum(sum7, axis=0), axis=0)
    d_gate = tl.where(k == 0, d3, tl.where(k == 1, d5, tl.where(k == 2, d7, 0.0)))
    return weights * d_gate, tl.sum(d_filter, axis=0)


@triton.jit(do_not_specialize=["N", "P", "H", "W", "num_tiles", "pool_tiles", "chunks", "SLICES"])
def mix_backward_kernel(
    dv,
    u_norm,
    gate,
    pooled,
    correlation,
    bank,
    kernels,
    sums,
    scale_ptr,
    filter_ptr,
    gate_w1,
    gate_b1,
    gate_w2,
    du,  # [B, N, BC] gradient of u; with a full filter that of f, and of u for prefix tokens
    row_means,  # [B, N, 2]
    records,  # [B, 4 + 2 * BQ + 2 * BC] of each image, for the gradients of gate and filter:
    #           d logits | d hidden | hidden after ReLU | pooled mean | d channel filter
    N,
    P,
    H,
    W,
    D,
    num_tiles,
    pool_tiles,
    chunks,
    filter_stride,
    SLICES,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BQ: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
    FILTER: tl.constexpr,
    GATED: tl.constexpr,
):
    """Convolve ``dv`` with the flipped bank, and add the gate's path and the skip.

    The gate's path ends in one number a channel and image, the gradient of a mean over pixels,
    which every tile of the image works out again from the correlation maps.
    """
    pid = tl.program_id(0)
    b = pid // num_tiles
    tile = pid % num_tiles
    rows = tile * BM + tl.arange(0, BM)
    c = tl.arange(0, BC)
    row_inside = rows < N
    is_patch = row_inside & (rows >= P)
    long_b = b.to(tl.int64)

    scale = channel_filter(filter_ptr, filter_stride, C, BC, FILTER == "channel")
    weights = tl.load(gate + long_b * 4 + tl.arange(0, 4))
    constant = tl.zeros((BC,), tl.float32)
    record = records + long_b * (4 + 2 * BQ + 2 * BC)
    if GATED or FILTER == "channel":
        logits, by_filter = _gate_gradient(correlation, bank, scale, weights, long_b, chunks, BC)
        if GATED:
            q = tl.arange(0, BQ)
            dc = channel_filter(filter_ptr, filter_stride, C, BC, FILTER != "none")
            mean = pooled_mean(pooled, long_b, dc, pool_tiles, H * W, BC)
            hidden, w1 = hidden_layer(mean, gate_w1, gate_b1, C, CQ, BC, BQ)
            back = tl.sum(second_layer(gate_w2, CQ, BQ) * logits[:, None], axis=0)
            back = tl.where(hidden <= 0, 0.0, back)  # a NaN goes through, as in PyTorch
            d_mean = tl.sum(w1 * back[:, None], axis=0)
            constant = d_mean * scale / (H * W)
            if FILTER == "channel":
                unscaled = pooled_mean(pooled, long_b, 1.0, pool_tiles, H * W, BC)
                by_filter += d_mean * unscaled
            if tile == 0:
                relu = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
                tl.store(record + tl.arange(0, 4), logits)
                tl.store(record + 4 + q, back)
                tl.store(record + 4 + BQ + q, relu)
                tl.store(record + 4 + 2 * BQ + c, mean)
        if FILTER == "channel":
            if tile == 0:
                tl.store(record + 4 + 2 * BQ + BC + c, by_filter)

    image = long_b * N * BC
    kernel = kernels + long_b * 50 * BC
    spread = depthwise(dv + image, kernel, rows, is_patch, H, W, P, BM, BC, True, UNROLL)
    spread += constant[None, :]
    offset = image + rows[:, None] * BC + c[None, :]
    upstream = tl.load(dv + offset, mask=row_inside[:, None], other=0.0).to(tl.float32)
    if FILTER == "full":  # the filter's backward has yet to come, then the skip
        total = tl.where(is_patch[:, None], spread, upstream)
    else:
        total = upstream + tl.where(is_patch[:, None], spread, 0.0)
    total = total.to(du.dtype.element_ty)
    tl.store(du + offset, total, mask=row_inside[:, None])
    row_sum = folded_sum(sums, 0, SLICES, BC)
    write_row_means(
        total.to(tl.float32),
        u_norm,
        offset,
        long_b * N + rows,
        row_inside,
        row_sum,
        tl.load(scale_ptr),
        row_means,
        D,
        BC,
    )
