"""Backward: once an image, what follows from its correlation maps (eq. 3 and 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.gate import (
    channel_filter,
    hidden_layer,
    pick,
    second_layer,
)


@triton.jit(do_not_specialize=["num_pixels", "num_tiles", "chunks"])
def gate_backward_kernel(
    correlation,  # [B, chunks, 50, BC]
    dy_sums,  # [B * num_tiles, BC] sums of the gradient of y over the patches of a tile
    gate,
    sums,  # [B, BC] of u, from the forward pass
    bank,
    w_point,
    filter_ptr,
    gate_w1,
    gate_b1,
    gate_w2,
    taps,  # [B, 50, BC] the correlation maps added up, the last row the sum of dv
    constant,  # [B, BC] what the gate's path adds to the gradient of every patch
    records,  # [B, 4 + 2 * BQ + 2 * BC] of each image, for the gradients of gate and filter:
    #           d logits | d hidden | hidden after ReLU | pooled mean | d channel filter
    num_pixels,
    num_tiles,
    chunks,
    filter_stride,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BQ: tl.constexpr,
    FILTER: tl.constexpr,
    GATED: tl.constexpr,
):
    """Add up the correlation maps of an image, and take the gradient of its gate.

    The gate's path ends in one number a channel and image, the gradient of a mean over pixels.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    scale = channel_filter(filter_ptr, filter_stride, C, BC, FILTER == "channel")
    weights = tl.load(gate + b * 4 + tl.arange(0, 4))
    sum_dv = _sum_dv(dy_sums, w_point, b, num_tiles, BC)
    logits, by_filter = _gate_gradient(
        correlation, sum_dv, taps, bank, scale, weights, b, chunks, BC
    )
    record = records + b * (4 + 2 * BQ + 2 * BC)
    if GATED:
        q = tl.arange(0, BQ)
        dc = channel_filter(filter_ptr, filter_stride, C, BC, FILTER != "none")
        pool = tl.load(sums + b * BC + c) / num_pixels
        mean = pool * dc
        hidden, w1 = hidden_layer(mean, gate_w1, gate_b1, C, CQ, BC, BQ)
        back = tl.sum(second_layer(gate_w2, CQ, BQ) * logits[:, None], axis=0)
        back = tl.where(hidden <= 0, 0.0, back)  # a NaN goes through, as in PyTorch
        d_mean = tl.sum(w1 * back[:, None], axis=0)
        by_filter += d_mean * pool
        relu = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(record + tl.arange(0, 4), logits)
        tl.store(record + 4 + q, back)
        tl.store(record + 4 + BQ + q, relu)
        tl.store(record + 4 + 2 * BQ + c, mean)
        tl.store(constant + b * BC + c, d_mean * scale / num_pixels)
    if FILTER == "channel":
        tl.store(record + 4 + 2 * BQ + BC + c, by_filter)


@triton.jit
def _sum_dv(dy_sums, w_point, b, num_tiles, BC: tl.constexpr):
    """Return the sum of ``dv = dy + P1^T dy`` over an image, from the sum of dy."""
    c = tl.arange(0, BC)
    lane = tl.arange(0, 8)
    point = tl.load(w_point + c[:, None] * BC + c[None, :])
    total = tl.zeros((8, BC), tl.float32)
    for start in range(0, num_tiles, 8):
        tile = start + lane
        at = dy_sums + (b * num_tiles + tile)[:, None] * BC + c[None, :]
        total += tl.load(at, mask=(tile < num_tiles)[:, None], other=0.0)
    total = tl.sum(total, axis=0)
    return total + tl.sum(total[:, None] * point.to(tl.float32), axis=0)


@triton.jit
def _gate_gradient(correlation, sum_dv, taps, bank, scale, weights, b, chunks, BC: tl.constexpr):
    """Return the gradient of the gate's logits, ``[4]``, and that of a channel filter, ``[BC]``.

    Both are sums over the taps of kernel times correlation. The softmax's gradient subtracts
    the gated mean of the three convolutions; taking it from the kernels, not from the sums,
    keeps the digits that would cancel.
    """
    c = tl.arange(0, BC)
    row = tl.arange(0, 64)
    tap = (row < 49)[:, None]
    where = row[:, None] * BC + c[None, :]
    inside = (row < 50)[:, None]
    g3, g5, g7 = pick(weights, 0), pick(weights, 1), pick(weights, 2)
    k3 = tl.load(bank + where, mask=inside, other=0.0)
    k5 = tl.load(bank + 50 * BC + where, mask=inside, other=0.0)
    k7 = tl.load(bank + 100 * BC + where, mask=inside, other=0.0)
    at = correlation + b * chunks * 50 * BC + where
    g = tl.load(at, mask=tap, other=0.0)
    for chunk in range(1, chunks):
        g += tl.load(at + chunk * 50 * BC, mask=tap, other=0.0)
    g = tl.where((row == 49)[:, None], sum_dv[None, :], g)
    tl.store(taps + b * 50 * BC + where, g, mask=inside)
    mean = g3 * k3 + g5 * k5 + g7 * k7
    d_filter = tl.sum(tl.where(tap, mean * g, 0.0), axis=0)
    g = tl.where(tap, g * scale[None, :], g)  # the filter does not scale the biases
    d3 = tl.sum(tl.sum((k3 - mean) * g, axis=0), axis=0)
    d5 = tl.sum(tl.sum((k5 - mean) * g, axis=0), axis=0)
    d7 = tl.sum(tl.sum((k7 - mean) * g, axis=0), axis=0)
    k = tl.arange(0, 4)
    d_gate = tl.where(k == 0, d3, tl.where(k == 1, d5, tl.where(k == 2, d7, 0.0)))
    return weights * d_gate, d_filter
