"""Backward, last launch: add up the partial sums, in a fixed order, into the gradients."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.gate import channel_filter


@triton.jit(do_not_specialize=["B", "tiles", "groups"])
def finish_kernel(
    taps,
    d_point,
    d_point_bias,
    gate,
    records,
    filter_ptr,
    d_weights,
    d_up_bias,
    d_down_bias,
    norm_weight,
    norm_bias,
    gamma,
    gammax,
    down_weight,
    out_filter,
    out_conv3,
    out_conv3_bias,
    out_conv5,
    out_conv5_bias,
    out_conv7,
    out_conv7_bias,
    out_gate_w1,
    out_gate_b1,
    out_gate_w2,
    out_gate_b2,
    out_point,
    out_point_bias,
    out_norm_weight,
    out_norm_bias,
    out_gamma,
    out_gammax,
    out_down_weight,
    out_down_bias,
    out_up_weight,
    out_up_bias,
    D,
    B,
    tiles,
    groups,
    filter_stride,
    C: tl.constexpr,
    CQ: tl.constexpr,
    BC: tl.constexpr,
    BQ: tl.constexpr,
    BD: tl.constexpr,
    FILTER: tl.constexpr,
    GATED: tl.constexpr,
):
    """Finish the gradients of all parameters, a part of them in each program.

    Programs 0 to 48 have a tap of the bank, 49 its biases, 50 the gate but for M1, 51 a channel
    filter, the next ``BC + 1`` a row of the 1x1 weight each and its bias, the next ``CQ`` a row of
    M1; the others have ``BD`` features each of LayerNorm, gammas and both projections.
    """
    role = tl.program_id(0)
    if role < 49:
        _finish_tap(
            role, taps, gate, filter_ptr, filter_stride, out_conv3, out_conv5, out_conv7,
            B, C, BC, FILTER,
        )  # fmt: skip
    elif role == 49:
        _finish_biases(taps, gate, out_conv3_bias, out_conv5_bias, out_conv7_bias, B, C, BC)
    elif role == 50:
        if GATED:
            _finish_gate(records, out_gate_b1, out_gate_w2, out_gate_b2, B, C, CQ, BC, BQ)
    elif role == 51:
        if FILTER == "channel":
            _finish_filter(records, out_filter, B, C, BC, BQ)
    elif role < 52 + BC:
        _finish_point(role - 52, d_point, out_point, tiles, C, BC)
    elif role == 52 + BC:
        _finish_point_bias(d_point_bias, out_point_bias, tiles, C, BC)
    elif role < 53 + BC + CQ:
        if GATED:
            _finish_gate_row(role - 53 - BC, records, out_gate_w1, B, C, BC, BQ)
    else:
        _finish_projections(
            role - 53 - BC - CQ, d_weights, d_up_bias, d_down_bias, norm_weight, norm_bias, gamma,
            gammax, down_weight, out_norm_weight, out_norm_bias, out_gamma, out_gammax,
            out_down_weight, out_down_bias, out_up_weight, out_up_bias, D, groups, C, BC, BD,
        )  # fmt: skip


@triton.jit
def _finish_projections(
    part,
    d_weights,
    d_up_bias,
    d_down_bias,
    norm_weight,
    norm_bias,
    gamma,
    gammax,
    down_weight,
    out_norm_weight,
    out_norm_bias,
    out_gamma,
    out_gammax,
    out_down_weight,
    out_down_bias,
    out_up_weight,
    out_up_bias,
    D,
    groups,
    C: tl.constexpr,
    BC: tl.constexpr,
    BD: tl.constexpr,
):
    """Finish the gradients of LayerNorm, gammas and both projections for ``BD`` features.

    With ``E = du^T x``, ``F = du^T x_hat`` and ``S = sum of du``, all of them are sums over C
    or over nothing at all (identity 6 of the design).
    """
    c = tl.arange(0, BC)
    d = part * BD + tl.arange(0, BD)
    inside = d < D
    at = c[:, None] * D + d[None, :]
    by_x = tl.zeros((BC, BD), tl.float32)
    by_norm = tl.zeros((BC, BD), tl.float32)
    by_out = tl.zeros((BC, BD), tl.float32)
    up_bias = tl.zeros((BD,), tl.float32)
    total = tl.zeros((BC,), tl.float32)
    # Loads of eight groups at once: those of one would be a latency each.
    for first in range(0, groups, 8):
        for k in tl.static_range(8):
            group = first + k
            start = d_weights + tl.cast(group, tl.int64) * 3 * BC * D
            here = d < tl.where(group < groups, D, 0)
            by_x += tl.load(start + at, mask=here[None, :], other=0.0)
            by_norm += tl.load(start + BC * D + at, mask=here[None, :], other=0.0)
            by_out += tl.load(start + 2 * BC * D + at, mask=here[None, :], other=0.0)
            up_bias += tl.load(d_up_bias + group * D + d, mask=here, other=0.0)
            at_bias = group * BC + c
            total += tl.load(d_down_bias + at_bias, mask=at_bias < groups * BC, other=0.0)

    both = (c[:, None] < C) & inside[None, :]
    weight = tl.load(down_weight + at, mask=both, other=0.0).to(tl.float32)
    ln_w = tl.load(norm_weight + d, mask=inside, other=0.0).to(tl.float32)
    ln_b = tl.load(norm_bias + d, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gamma + d, mask=inside, other=0.0).to(tl.float32)
    gx = tl.load(gammax + d, mask=inside, other=0.0).to(tl.float32)

    on_skip = tl.sum(weight * by_x, axis=0)
    on_norm = tl.sum(weight * by_norm, axis=0)
    on_bias = tl.sum(weight * total[:, None], axis=0)
    d_down = (g * ln_w)[None, :] * by_norm + gx[None, :] * by_x
    d_down += (g * ln_b)[None, :] * total[:, None]
    store(out_down_weight + at, d_down, both)
    store(out_norm_weight + d, g * on_norm, inside)
    store(out_norm_bias + d, g * on_bias, inside)
    store(out_gamma + d, ln_w * on_norm + ln_b * on_bias, inside)
    store(out_gammax + d, on_skip, inside)
    store(out_up_weight + d[None, :] * C + c[:, None], by_out, both)
    store(out_up_bias + d, up_bias, inside)
    if part == 0:
        store(out_down_bias + c, total, c < C)


@triton.jit
def _correlation_sums(taps, gate, row, B, BC: tl.constexpr):
    """Return the batch's sums of one row of the correlation maps, weighted by each gate value."""
    c = tl.arange(0, BC)
    samples = tl.arange(0, 2048 // BC)
    sum3 = tl.zeros((2048 // BC, BC), tl.float32)
    sum5 = tl.zeros((2048 // BC, BC), tl.float32)
    sum7 = tl.zeros((2048 // BC, BC), tl.float32)
    for start in range(0, B, 4 * (2048 // BC)):
        for k in tl.static_range(4):  # at once, as above
            b = (start + k * (2048 // BC) + samples).to(tl.int64)
            inside = b < B
            g3 = tl.load(gate + b * 4, mask=inside, other=0.0)
            g5 = tl.load(gate + b * 4 + 1, mask=inside, other=0.0)
            g7 = tl.load(gate + b * 4 + 2, mask=inside, other=0.0)
            at = (b * 50 + row)[:, None] * BC + c[None, :]
            value = tl.load(taps + at, mask=inside[:, None], other=0.0)
            sum3 += g3[:, None] * value
            sum5 += g5[:, None] * value
            sum7 += g7[:, None] * value
    return tl.sum(sum3, axis=0), tl.sum(sum5, axis=0), tl.sum(sum7, axis=0)


@triton.jit
def _finish_tap(
    tap, taps, gate, filter_ptr, filter_stride, out_conv3, out_conv5, out_conv7,
    B, C: tl.constexpr, BC: tl.constexpr, FILTER: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, BC)
    sum3, sum5, sum7 = _correlation_sums(taps, gate, tap, B, BC)
    scale = channel_filter(filter_ptr, filter_stride, C, BC, FILTER == "channel")
    i, j = tap // 7, tap % 7
    store(out_conv7 + c * 49 + tap, scale * sum7, c < C)
    in5 = tl.where((i >= 1) & (i < 6) & (j >= 1) & (j < 6), C, 0)
    store(out_conv5 + c * 25 + (i - 1) * 5 + (j - 1), scale * sum5, c < in5)
    in3 = tl.where((i >= 2) & (i < 5) & (j >= 2) & (j < 5), C, 0)
    store(out_conv3 + c * 9 + (i - 2) * 3 + (j - 2), scale * sum3, c < in3)


@triton.jit
def _finish_biases(
    taps, gate, out_conv3_bias, out_conv5_bias, out_conv7_bias, B, C: tl.constexpr, BC: tl.constexpr
):
    c = tl.arange(0, BC)
    sum3, sum5, sum7 = _correlation_sums(taps, gate, 49, B, BC)
    store(out_conv3_bias + c, sum3, c < C)
    store(out_conv5_bias + c, sum5, c < C)
    store(out_conv7_bias + c, sum7, c < C)


@triton.jit
def _finish_filter(records, out_filter, B, C: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr):
    c = tl.arange(0, BC)
    first = records + (4 + 2 * BQ + BC)
    total = _sum_of_rows(first, 4 + 2 * BQ + 2 * BC, B, BC)
    store(out_filter + c, total, c < C)


@triton.jit
def _finish_gate(
    records, out_b1, out_w2, out_b2, B,
    C: tl.constexpr, CQ: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    q, k = tl.arange(0, BQ), tl.arange(0, 4)
    b1 = tl.zeros((32, BQ), tl.float32)
    w2 = tl.zeros((32, 4, BQ), tl.float32)
    b2 = tl.zeros((32, 4), tl.float32)
    for start in range(0, B, 32):
        b = (start + tl.arange(0, 32)).to(tl.int64)
        inside = (b < B)[:, None]
        record = (records + b * (4 + 2 * BQ + 2 * BC))[:, None]
        logits = tl.load(record + k[None, :], mask=inside, other=0.0)
        hidden = tl.load(record + 4 + BQ + q[None, :], mask=inside, other=0.0)
        b1 += tl.load(record + 4 + q[None, :], mask=inside, other=0.0)
        w2 += logits[:, :, None] * hidden[:, None, :]
        b2 += logits
    store(out_b1 + q, tl.sum(b1, axis=0), q < CQ)
    at = out_w2 + k[:, None] * CQ + q[None, :]
    store(at, tl.sum(w2, axis=0), (k[:, None] < 3) & (q[None, :] < CQ))
    store(out_b2 + k, tl.sum(b2, axis=0), k < 3)


@triton.jit
def _finish_gate_row(q, records, out_w1, B, C: tl.constexpr, BC: tl.constexpr, BQ: tl.constexpr):
    """Finish a row of M1: the batch's sum of a hidden unit's gradient times the pooled mean."""
    c = tl.arange(0, BC)
    samples = tl.arange(0, 2048 // BC)
    total = tl.zeros((2048 // BC, BC), tl.float32)
    for start in range(0, B, 4 * (2048 // BC)):
        for k in tl.static_range(4):
            b = (start + k * (2048 // BC) + samples).to(tl.int64)
            inside = b < B
            record = records + b * (4 + 2 * BQ + 2 * BC)
            back = tl.load(record + 4 + q, mask=inside, other=0.0)
            at = record[:, None] + (4 + 2 * BQ) + c[None, :]
            total += back[:, None] * tl.load(at, mask=inside[:, None], other=0.0)
    store(out_w1 + q * C + c, tl.sum(total, axis=0), c < C)


@triton.jit
def _finish_point(row, d_point, out_point, tiles, C: tl.constexpr, BC: tl.constexpr):
    c = tl.arange(0, BC)
    total = _sum_of_rows(d_point + row * BC, BC * BC, tiles, BC)
    store(out_point + row * C + c, total, c < tl.where(row < C, C, 0))


@triton.jit
def _finish_point_bias(d_point_bias, out_point_bias, tiles, C: tl.constexpr, BC: tl.constexpr):
    c = tl.arange(0, BC)
    store(out_point_bias + c, _sum_of_rows(d_point_bias, BC, tiles, BC), c < C)


@triton.jit
def _sum_of_rows(first, stride: tl.constexpr, count, BC: tl.constexpr):
    """Return the sum of ``count`` rows that are so many numbers apart."""
    lane = tl.arange(0, 4096 // BC)
    total = tl.zeros((4096 // BC, BC), tl.float32)
    for start in range(0, count, 4 * (4096 // BC)):
        for k in tl.static_range(4):  # at once, as above
            row = (start + k * (4096 // BC) + lane).to(tl.int64)
            at = first + row[:, None] * stride + tl.arange(0, BC)[None, :]
            total += tl.load(at, mask=(row < count)[:, None], other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def store(pointer, value, mask):
    """Store in the dtype of the parameter."""
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)
