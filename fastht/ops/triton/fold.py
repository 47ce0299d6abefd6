"""Fold the parameters into what the token kernels read: one small launch before each pass."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["SLICES"])
def fold_kernel(
    norm_weight,
    norm_bias,
    gamma,
    gammax,
    down_weight,
    down_bias,
    up_weight,
    conv3_weight,
    conv3_bias,
    conv5_weight,
    conv5_bias,
    conv7_weight,
    conv7_bias,
    point_weight,
    w_skip,  # [BC, D] gammax * W1
    w_norm,  # [BC, D] gamma * ln_w * W1 / scale
    w_down,  # [BC, D] W1
    w_up,  # [D, BC] W2
    w_point,  # [BC, BC] P1
    sums,  # [3, BC] row sums of w_norm, of W1 * gamma * ln_b, and of w_skip (forward)
    scale_ptr,  # [1] the scale of w_norm
    bank,  # [3, 50, BC] the kernels as 7x7, tap by tap, then the bias
    D,
    SLICES,
    C: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Write the folded weights in the dtype of the products, and the bank in float32.

    Program ``i < SLICES`` folds features ``[i * BD, (i + 1) * BD)``; three pack the convolutions,
    whose own layout (channel slowest) would be read 49 times without coalescing; one casts the
    1x1 weight; the others have the sums of ``ROWS`` rows of the folded weights each, which they
    fold for themselves: hundreds of programs read the sums, and would add up those of slices.
    """
    pid = tl.program_id(0)
    if pid == SLICES:
        _pack_convolution(conv3_weight, conv3_bias, bank, 0, 3, C, BC)
    elif pid == SLICES + 1:
        _pack_convolution(conv5_weight, conv5_bias, bank, 1, 5, C, BC)
    elif pid == SLICES + 2:
        _pack_convolution(conv7_weight, conv7_bias, bank, 2, 7, C, BC)
    elif pid == SLICES + 3:
        o, i = tl.arange(0, BC), tl.arange(0, BC)
        square = (o[:, None] < C) & (i[None, :] < C)
        point = tl.load(point_weight + o[:, None] * C + i[None, :], mask=square, other=0.0)
        point = point.to(w_point.dtype.element_ty)
        tl.store(w_point + o[:, None] * BC + i[None, :], point)
    elif pid > SLICES + 3:
        _sum_rows(
            (pid - SLICES - 4) * ROWS, norm_weight, norm_bias, gamma, gammax, down_weight,
            down_bias, sums, scale_ptr, w_norm.dtype.element_ty, D, C, BC, ROWS, BACKWARD,
        )  # fmt: skip
    else:
        _fold_slice(
            pid * BD + tl.arange(0, BD), norm_weight, gamma, gammax, down_weight, up_weight, w_skip,
            w_norm, w_down, w_up, D, C, BC, BACKWARD,
        )  # fmt: skip


@triton.jit
def _fold_slice(
    d, norm_weight, gamma, gammax, down_weight, up_weight, w_skip, w_norm, w_down, w_up,
    D, C: tl.constexpr, BC: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    inside = d < D
    both = (c[:, None] < C) & inside[None, :]
    at = c[:, None] * D + d[None, :]
    weight = tl.load(down_weight + at, mask=both, other=0.0).to(tl.float32)
    if BACKWARD:
        tl.store(w_down + at, weight.to(w_down.dtype.element_ty), mask=inside[None, :])
    else:
        scale = _norm_scale(gamma, norm_weight, D)
        g = tl.load(gamma + d, mask=inside, other=0.0).to(tl.float32)
        gx = tl.load(gammax + d, mask=inside, other=0.0).to(tl.float32)
        ln_w = tl.load(norm_weight + d, mask=inside, other=0.0).to(tl.float32)
        norm = (weight * (g * ln_w / scale)[None, :]).to(w_norm.dtype.element_ty)
        tl.store(w_norm + at, norm, mask=inside[None, :])
        skip = (weight * gx[None, :]).to(w_skip.dtype.element_ty)
        tl.store(w_skip + at, skip, mask=inside[None, :])
    square = inside[:, None] & (c[None, :] < C)
    up = tl.load(up_weight + d[:, None] * C + c[None, :], mask=square, other=0.0)
    up = up.to(w_up.dtype.element_ty)
    tl.store(w_up + d[:, None] * BC + c[None, :], up, mask=inside[:, None])


@triton.jit
def _sum_rows(
    first, norm_weight, norm_bias, gamma, gammax, down_weight, down_bias, sums, scale_ptr,
    dtype: tl.constexpr, D, C: tl.constexpr, BC: tl.constexpr, ROWS: tl.constexpr,
    BACKWARD: tl.constexpr,
):  # fmt: skip
    """Write the sums of rows ``first`` to ``first + ROWS`` of the folded weights, and the scale."""
    scale = _norm_scale(gamma, norm_weight, D)
    if first == 0:
        tl.store(scale_ptr, scale)
    c = first + tl.arange(0, ROWS)
    by_norm = tl.zeros((ROWS, 1024), tl.float32)
    by_bias = tl.zeros((ROWS, 1024), tl.float32)
    by_skip = tl.zeros((ROWS, 1024), tl.float32)
    for start in range(0, D, 1024):
        d = start + tl.arange(0, 1024)
        inside = d < D
        both = (c[:, None] < C) & inside[None, :]
        weight = tl.load(down_weight + c[:, None] * D + d[None, :], mask=both, other=0.0)
        weight = weight.to(tl.float32)
        g = tl.load(gamma + d, mask=inside, other=0.0).to(tl.float32)
        ln_w = tl.load(norm_weight + d, mask=inside, other=0.0).to(tl.float32)
        # The sums must be those of the rounded weights, or |mean| * rounding error remains.
        by_norm += (weight * (g * ln_w / scale)[None, :]).to(dtype).to(tl.float32)
        if not BACKWARD:
            gx = tl.load(gammax + d, mask=inside, other=0.0).to(tl.float32)
            ln_b = tl.load(norm_bias + d, mask=inside, other=0.0).to(tl.float32)
            by_bias += weight * (g * ln_b)[None, :]
            by_skip += (weight * gx[None, :]).to(dtype).to(tl.float32)
    tl.store(sums + c, tl.sum(by_norm, axis=1))
    if not BACKWARD:
        bias = tl.load(down_bias + c, mask=c < C, other=0.0).to(tl.float32)
        tl.store(sums + BC + c, tl.sum(by_bias, axis=1) + bias)
        tl.store(sums + 2 * BC + c, tl.sum(by_skip, axis=1))


@triton.jit
def _norm_scale(gamma, norm_weight, D):
    """Return a power of two near the largest ``|gamma * ln_w|``.

    gamma starts at 1e-6: without a scale the folded weights, and the u_norm that is saved for
    the backward pass, would be subnormal in float16.
    """
    largest = tl.zeros((1024,), tl.float32)
    for start in range(0, D, 1024):
        d = start + tl.arange(0, 1024)
        g = tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32)
        w = tl.load(norm_weight + d, mask=d < D, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(g * w))
    largest = tl.max(largest, axis=0)
    scale = tl.exp2(tl.floor(tl.log2(tl.maximum(largest, 1e-30))))
    return tl.where(largest > 1e-30, scale, 1.0)


@triton.jit
def _pack_convolution(
    weight, bias, bank, index: tl.constexpr, K: tl.constexpr, C: tl.constexpr, BC: tl.constexpr
):
    c = tl.arange(0, BC)
    pad: tl.constexpr = (7 - K) // 2
    for start in range(0, 50, 16):
        tap = start + tl.arange(0, 16)
        row = tap // 7
        col = tap % 7
        inside = (row >= pad) & (row < 7 - pad) & (col >= pad) & (col < 7 - pad)
        source = c[None, :] * (K * K) + ((row - pad) * K + (col - pad))[:, None]
        mask = (c < C)[None, :] & inside[:, None]
        value = tl.load(weight + source, mask=mask, other=0.0).to(tl.float32)
        last = (c < C)[None, :] & (tap == 49)[:, None]
        value += tl.load(bias + c[None, :] + 0 * tap[:, None], mask=last, other=0.0).to(tl.float32)
        at = bank + (index * 50 + tap)[:, None] * BC + c[None, :]
        tl.store(at, value, mask=(tap < 50)[:, None])
