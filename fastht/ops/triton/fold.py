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
    sums,  # [slices, 3, BC] row sums of w_norm, of W1 * gamma * ln_b, and of w_skip (forward)
    scale_ptr,  # [1] the scale of w_norm
    bank,  # [3, 50, BC] the kernels as 7x7, tap by tap, then the bias
    D,
    SLICES,
    C: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Write the folded weights in the dtype of the products, and the bank in float32.

    Program ``i < SLICES`` folds features ``[i * BD, (i + 1) * BD)``; three pack the convolutions,
    whose own layout (channel slowest) would be read 49 times without coalescing; the last casts
    the 1x1 weight.
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
    else:
        scale = _norm_scale(gamma, norm_weight, D)
        if pid == 0:
            tl.store(scale_ptr, scale)
        c = tl.arange(0, BC)
        d = pid * BD + tl.arange(0, BD)
        inside = d < D
        both = (c[:, None] < C) & inside[None, :]
        weight = tl.load(down_weight + c[:, None] * D + d[None, :], mask=both, other=0.0)
        weight = weight.to(tl.float32)
        g = tl.load(gamma + d, mask=inside, other=0.0).to(tl.float32)
        gx = tl.load(gammax + d, mask=inside, other=0.0).to(tl.float32)
        ln_w = tl.load(norm_weight + d, mask=inside, other=0.0).to(tl.float32)
        ln_b = tl.load(norm_bias + d, mask=inside, other=0.0).to(tl.float32)

        # The row sums must be those of the rounded weights, or |mean| * rounding error remains.
        norm = (weight * (g * ln_w / scale)[None, :]).to(w_norm.dtype.element_ty)
        row_sum = tl.sum(norm.to(tl.float32), axis=1)
        if BACKWARD:
            tile = weight.to(w_down.dtype.element_ty)
            tl.store(w_down + c[:, None] * D + d[None, :], tile, mask=inside[None, :])
        else:
            tl.store(w_norm + c[:, None] * D + d[None, :], norm, mask=inside[None, :])
            skip = (weight * gx[None, :]).to(w_skip.dtype.element_ty)
            tl.store(w_skip + c[:, None] * D + d[None, :], skip, mask=inside[None, :])
            tl.store(sums + (pid * 3 + 2) * BC + c, tl.sum(skip.to(tl.float32), axis=1))
        constant = tl.sum(weight * (g * ln_b)[None, :], axis=1)
        if pid == 0:
            constant += tl.load(down_bias + c, mask=c < C, other=0.0).to(tl.float32)
        tl.store(sums + (pid * 3) * BC + c, row_sum)
        tl.store(sums + (pid * 3 + 1) * BC + c, constant)

        up = tl.load(
            up_weight + d[:, None] * C + c[None, :],
            mask=inside[:, None] & (c[None, :] < C),
            other=0.0,
        )
        up = up.to(w_up.dtype.element_ty)
        tl.store(w_up + d[:, None] * BC + c[None, :], up, mask=inside[:, None])


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


@triton.jit
def folded_sum(sums, row: tl.constexpr, SLICES, BC: tl.constexpr):
    """Return one row of ``sums``, added up over the slices in their order."""
    c = tl.arange(0, BC)
    total = tl.zeros((16, BC), tl.float32)
    for start in range(0, SLICES, 16):
        i = start + tl.arange(0, 16)
        at = sums + (i * 3 + row)[:, None] * BC + c[None, :]
        total += tl.load(at, mask=(i < SLICES)[:, None], other=0.0)
    return tl.sum(total, axis=0)
