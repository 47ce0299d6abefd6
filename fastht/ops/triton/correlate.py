"""Backward: the correlation maps from which every gradient of the bank and the gate follows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import load_planes, merge_planes, plane_pointer, within


@triton.jit(do_not_specialize=["N", "P", "H", "W", "chunks", "pixels"])
def correlate_kernel(
    dv,  # [B, N, BC]
    f,  # [B, N, BC] the map that the forward pass convolved
    correlation,  # [B, chunks, 50, BC]; the last row is left to others
    N,
    P,
    H,
    W,
    chunks,
    pixels,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Write ``G[tap, c] = sum over p of dv[p, c] * f[p + tap, c]`` for a row of taps.

    Identity 7 of the design. A program has an image, one of the 7 rows of taps and a chunk of
    ``pixels``, of which it takes ``BP`` a step. The sums stay apart for each of these until the
    end, so that the loop has no reduction. Seven taps share a load of dv. Each has variables of
    its own: as one tensor they would take their turn through shared memory.
    """
    pid = tl.program_id(0)
    i = pid % 7
    chunk = (pid // 7) % chunks
    b = (pid // 7 // chunks).to(tl.int64)
    c = tl.arange(0, BC // 2)
    step: tl.constexpr = BC // 2 if f.dtype.element_ty.primitive_bitwidth == 16 else BC
    at_dv = plane_pointer(dv, b * N, BC)
    at_f = plane_pointer(f, b * N, BC)
    zero = tl.zeros((BP, BC // 2), tl.float32)
    low0, low1, low2, low3, low4, low5, low6 = zero, zero, zero, zero, zero, zero, zero
    high0, high1, high2, high3, high4, high5, high6 = zero, zero, zero, zero, zero, zero, zero
    last = tl.minimum((chunk + 1) * pixels, H * W)
    for start in range(chunk * pixels, last, BP):
        pixel = start + tl.arange(0, BP)
        in_chunk = pixel < last
        up_low, up_high = load_planes(
            at_dv + ((P + pixel) * step)[:, None] + c[None, :], in_chunk[:, None], dv, BC
        )
        x = pixel % W
        y = pixel // W + (i - 3)
        inside = in_chunk & within(y, H)
        row = at_f + ((P + y * W + x) * step)[:, None] + c[None, :]
        low0, high0 = _tap(low0, high0, up_low, up_high, row, -3, x, inside, W, f, step, BC)
        low1, high1 = _tap(low1, high1, up_low, up_high, row, -2, x, inside, W, f, step, BC)
        low2, high2 = _tap(low2, high2, up_low, up_high, row, -1, x, inside, W, f, step, BC)
        low3, high3 = _tap(low3, high3, up_low, up_high, row, 0, x, inside, W, f, step, BC)
        low4, high4 = _tap(low4, high4, up_low, up_high, row, 1, x, inside, W, f, step, BC)
        low5, high5 = _tap(low5, high5, up_low, up_high, row, 2, x, inside, W, f, step, BC)
        low6, high6 = _tap(low6, high6, up_low, up_high, row, 3, x, inside, W, f, step, BC)
    target = correlation + ((b * chunks + chunk) * 50 + i * 7) * BC
    _store(target, low0, high0, f, BC)
    _store(target + BC, low1, high1, f, BC)
    _store(target + 2 * BC, low2, high2, f, BC)
    _store(target + 3 * BC, low3, high3, f, BC)
    _store(target + 4 * BC, low4, high4, f, BC)
    _store(target + 5 * BC, low5, high5, f, BC)
    _store(target + 6 * BC, low6, high6, f, BC)


@triton.jit
def _tap(
    low,
    high,
    up_low,
    up_high,
    row,
    shift: tl.constexpr,
    x,
    inside,
    W,
    f,
    step: tl.constexpr,
    BC: tl.constexpr,
):
    """Add the product of dv and the map shifted by a column."""
    mask = inside & within(x + shift, W)
    tap_low, tap_high = load_planes(row + shift * step, mask[:, None], f, BC)
    return low + up_low * tap_low, high + up_high * tap_high


@triton.jit
def _store(target, low, high, f, BC: tl.constexpr):
    """Store the sums over the pixels of a tap."""
    tl.store(target + tl.arange(0, BC), tl.sum(merge_planes(low, high, f, BC), axis=0))
