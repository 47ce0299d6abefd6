"""Backward: the correlation maps from which every gradient of the bank and the gate follows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import load_planes, merge_planes, plane_pointer, within


@triton.jit(do_not_specialize=["N", "P", "H", "W", "chunks", "positions"])
def correlate_kernel(
    dv,  # [B, N, BC]
    f,  # [B, N, BC] the map that the forward pass convolved
    correlation,  # [B, chunks, 50, BC]; the last row is left to others
    N,
    P,
    H,
    W,
    chunks,
    positions,
    BC: tl.constexpr,
    BP: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Write ``G[tap, c] = sum over p of dv[p, c] * f[p + tap, c]`` for a row of taps.

    Identity 7 of the design. A program has an image, one of the 7 rows of taps and a chunk of
    ``positions``, of which it takes ``BP`` a step: pixels, or where ``PIXELS`` is 2 pairs of
    neighbours in a row, which needs an even W. The sums stay apart for each of these until the
    end, so that the loop has no reduction. Seven taps share a load of dv, and a pair shares six
    of its eight columns of the map. Each tap has variables of its own: as one tensor they would
    take their turn through shared memory.
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
    width = W // PIXELS
    last = tl.minimum((chunk + 1) * positions, H * width)
    for start in range(chunk * positions, last, BP):
        position = start + tl.arange(0, BP)
        in_chunk = position < last
        x = position % width * PIXELS
        y = position // width + (i - 3)
        at = at_dv + ((P + position * PIXELS) * step)[:, None] + c[None, :]
        up_low, up_high = load_planes(at, in_chunk[:, None], dv, BC)
        inside = in_chunk & within(y, H)
        row = at_f + ((P + y * W + x) * step)[:, None] + c[None, :]
        next_low, next_high = up_low, up_high
        if PIXELS == 2:
            next_low, next_high = load_planes(at + step, in_chunk[:, None], dv, BC)
        in_low, in_high = _column(row, -3, x, inside, W, f, BC)
        low0, high0 = low0 + up_low * in_low, high0 + up_high * in_high
        in_low, in_high = _column(row, -2, x, inside, W, f, BC)
        if PIXELS == 2:
            low0, high0 = low0 + next_low * in_low, high0 + next_high * in_high
        low1, high1 = low1 + up_low * in_low, high1 + up_high * in_high
        in_low, in_high = _column(row, -1, x, inside, W, f, BC)
        if PIXELS == 2:
            low1, high1 = low1 + next_low * in_low, high1 + next_high * in_high
        low2, high2 = low2 + up_low * in_low, high2 + up_high * in_high
        in_low, in_high = _column(row, 0, x, inside, W, f, BC)
        if PIXELS == 2:
            low2, high2 = low2 + next_low * in_low, high2 + next_high * in_high
        low3, high3 = low3 + up_low * in_low, high3 + up_high * in_high
        in_low, in_high = _column(row, 1, x, inside, W, f, BC)
        if PIXELS == 2:
            low3, high3 = low3 + next_low * in_low, high3 + next_high * in_high
        low4, high4 = low4 + up_low * in_low, high4 + up_high * in_high
        in_low, in_high = _column(row, 2, x, inside, W, f, BC)
        if PIXELS == 2:
            low4, high4 = low4 + next_low * in_low, high4 + next_high * in_high
        low5, high5 = low5 + up_low * in_low, high5 + up_high * in_high
        in_low, in_high = _column(row, 3, x, inside, W, f, BC)
        if PIXELS == 2:
            low5, high5 = low5 + next_low * in_low, high5 + next_high * in_high
        low6, high6 = low6 + up_low * in_low, high6 + up_high * in_high
        if PIXELS == 2:
            in_low, in_high = _column(row, 4, x, inside, W, f, BC)
            low6, high6 = low6 + next_low * in_low, high6 + next_high * in_high
    target = correlation + ((b * chunks + chunk) * 50 + i * 7) * BC
    _store(target, low0, high0, f, BC)
    _store(target + BC, low1, high1, f, BC)
    _store(target + 2 * BC, low2, high2, f, BC)
    _store(target + 3 * BC, low3, high3, f, BC)
    _store(target + 4 * BC, low4, high4, f, BC)
    _store(target + 5 * BC, low5, high5, f, BC)
    _store(target + 6 * BC, low6, high6, f, BC)


@triton.jit
def _column(row, shift: tl.constexpr, x, inside, W, f, BC: tl.constexpr):
    """Load the map shifted by a column."""
    mask = inside & within(x + shift, W)
    step: tl.constexpr = BC // 2 if f.dtype.element_ty.primitive_bitwidth == 16 else BC
    return load_planes(row + shift * step, mask[:, None], f, BC)


@triton.jit
def _store(target, low, high, f, BC: tl.constexpr):
    """Store the sums over the pixels of a tap."""
    tl.store(target + tl.arange(0, BC), tl.sum(merge_planes(low, high, f, BC), axis=0))
