"""The noise gate, and with it each image's own 7x7 kernel (eq. 3 and 4)."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel_filter(filter_ptr, filter_stride, C: tl.constexpr, BC: tl.constexpr, HAS: tl.constexpr):
    """Return the filter's value for the mean of each channel: A itself, or its zero frequency."""
    c = tl.arange(0, BC)
    if HAS:
        value = tl.load(filter_ptr + c * filter_stride, mask=c < C, other=0.0).to(tl.float32)
    else:
        value = tl.full((BC,), 1.0, tl.float32)
    return value


@triton.jit
def pooled_sum(pooled_ptr, b, N, pool_rows, span, BC: tl.constexpr):
    """Return the sum of u over the pixels of image ``b``, ``[BC]``.

    The filter commutes with the mean, which needs nothing but the partial sums of the
    down-projection (identity 3 of the design): of every tile of ``pool_rows`` tokens that has some
    of the image, one row of its ``span``.
    """
    c = tl.arange(0, BC)
    lane = tl.arange(0, 8)
    total = tl.zeros((8, BC), tl.float32)
    first = b * N // pool_rows
    last = (b * N + N - 1) // pool_rows
    for start in range(first, last + 1, 8):
        tile = start + lane
        slot = b - tile * pool_rows // N
        at = (tile * span + slot)[:, None] * BC + c[None, :]
        total += tl.load(pooled_ptr + at, mask=(tile <= last)[:, None], other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def hidden_layer(
    pooled, w1_ptr, b1_ptr, C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr
):
    """Return ``M1 @ pooled + m1``, ``[BQ]``, and M1 as a ``[BQ, BC]`` tile (eq. 3)."""
    q, c = tl.arange(0, BQ), tl.arange(0, BC)
    inside = (q[:, None] < CQ) & (c[None, :] < C)
    w1 = tl.load(w1_ptr + q[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
    b1 = tl.load(b1_ptr + q, mask=q < CQ, other=0.0).to(tl.float32)
    return tl.sum(w1 * pooled[None, :], axis=1) + b1, w1


@triton.jit
def second_layer(w2_ptr, CQ: tl.constexpr, BQ: tl.constexpr):
    """Return M2 as a ``[4, BQ]`` tile; the fourth row only makes the size a power of two."""
    k, q = tl.arange(0, 4), tl.arange(0, BQ)
    inside = (k[:, None] < 3) & (q[None, :] < CQ)
    return tl.load(w2_ptr + k[:, None] * CQ + q[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def pick(values, k: tl.constexpr):
    """Return element ``k`` of a vector of four; the others must not leak a NaN into it."""
    return tl.sum(tl.where(tl.arange(0, 4) == k, values, 0.0), axis=0)


@triton.jit
def gate_weights(
    pooled,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BQ: tl.constexpr,
):
    """Return the softmax over the three convolutions as a vector of four, the last one 0."""
    hidden, _ = hidden_layer(pooled, w1_ptr, b1_ptr, C, CQ, BC, BQ)
    hidden = tl.maximum(hidden, 0.0, propagate_nan=tl.PropagateNan.ALL)
    w2 = second_layer(w2_ptr, CQ, BQ)
    k = tl.arange(0, 4)
    logits = tl.sum(w2 * hidden[None, :], axis=1)
    logits += tl.load(b2_ptr + k, mask=k < 3, other=0.0).to(tl.float32)
    logits = tl.where(k < 3, logits, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, axis=0))
    return weights / tl.sum(weights, axis=0)


@triton.jit(do_not_specialize=["N", "num_pixels", "pool_rows", "span"])
def gate_kernel(
    pooled,
    bank,
    filter_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    sums,  # [B, BC] sums of u over the pixels of each image, written in the forward pass
    gate,  # [B, 4] written in the forward pass, read in the backward pass
    kernels,  # [B, 50, BC] the gated bank of each image by planes, the last row its bias
    N,
    num_pixels,
    pool_rows,
    span,
    filter_stride,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BQ: tl.constexpr,
    FILTER: tl.constexpr,
    GATED: tl.constexpr,
    PAIRED: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Fold gate, filter and the three convolutions into one kernel for image ``program_id(0)``.

    Identities 1 and 2 of the design: 49 taps instead of 83, and the channel filter for nothing.
    """
    b = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BC)
    # All of the bank at once and before the gate, which is a chain of loads and sums: then one
    # latency covers the other.
    tap = tl.arange(0, 64)
    small, middle, large = _bank(bank, tap, BC)
    scale = channel_filter(filter_ptr, filter_stride, C, BC, FILTER == "channel")
    if BACKWARD:
        weights = tl.load(gate + b * 4 + tl.arange(0, 4))
    else:
        total = pooled_sum(pooled, b, N, pool_rows, span, BC)
        tl.store(sums + b * BC + c, total)
        if GATED:
            dc = channel_filter(filter_ptr, filter_stride, C, BC, FILTER != "none")
            mean = total * dc / num_pixels
            weights = gate_weights(mean, w1_ptr, b1_ptr, w2_ptr, b2_ptr, C, CQ, BC, BQ)
        else:
            weights = tl.full((4,), 1.0 / 3.0, tl.float32)
        tl.store(gate + b * 4 + tl.arange(0, 4), weights)
    kernel = pick(weights, 0) * small + pick(weights, 1) * middle + pick(weights, 2) * large
    kernel = tl.where((tap < 49)[:, None], kernel * scale[None, :], kernel)
    to = kernels + b * 50 * BC + tap[:, None] * BC
    inside = (tap < 50)[:, None]
    if PAIRED:  # plane after plane, each in whole sectors
        even, odd = tl.split(tl.reshape(kernel, (64, BC // 2, 2)))
        half = tl.arange(0, BC // 2)[None, :]
        tl.store(to + half, even, mask=inside)
        tl.store(to + BC // 2 + half, odd, mask=inside)
    else:
        tl.store(to + c[None, :], kernel, mask=inside)


@triton.jit
def _bank(bank, tap, BC: tl.constexpr):
    """Load the three kernels and their biases, each ``[64, BC]``; zeros are not loaded."""
    at = bank + tap[:, None] * BC + tl.arange(0, BC)[None, :]
    ring = tl.maximum(tl.abs(tap // 7 - 3), tl.abs(tap % 7 - 3))
    small = (tap == 49) | (ring <= 1)
    middle = (tap == 49) | (ring <= 2)
    return (
        tl.load(at, mask=(small & (tap < 50))[:, None], other=0.0),
        tl.load(at + 50 * BC, mask=(middle & (tap < 50))[:, None], other=0.0),
        tl.load(at + 100 * BC, mask=(tap < 50)[:, None], other=0.0),
    )
