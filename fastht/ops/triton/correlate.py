"""Backward: the correlation maps from which every gradient of the bank and the gate follows."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import load_planes, plane_pointer, token_step, within


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
    end, so that the loop has no reduction. Seven taps share a load of dv; the eighth slot of their
    tile only makes the size a power of two.
    """
    pid = tl.program_id(0)
    i = pid % 7
    chunk = (pid // 7) % chunks
    b = (pid // 7 // chunks).to(tl.int64)
    j = tl.arange(0, 8)
    c = tl.arange(0, BC // 2)
    step: tl.constexpr = token_step(f, BC)
    at_dv = plane_pointer(dv, b * N, BC)
    at_f = plane_pointer(f, b * N, BC)
    low = tl.zeros((8, BP, BC // 2), tl.float32)
    high = tl.zeros((8, BP, BC // 2), tl.float32)
    last = tl.minimum((chunk + 1) * pixels, H * W)
    for start in range(chunk * pixels, last, BP):
        pixel = start + tl.arange(0, BP)
        in_chunk = pixel < last
        up_low, up_high = load_planes(
            at_dv + ((P + pixel) * step)[:, None] + c[None, :], in_chunk[:, None], dv, BC
        )
        px = pixel % W
        y = pixel // W + (i - 3)
        x = px[None, :] + (j - 3)[:, None]
        inside = (in_chunk & within(y, H))[None, :] & within(x, W)
        row = at_f + ((P + y * W + px) * step)[:, None] + c[None, :]
        tap_low, tap_high = load_planes(
            row[None, :, :] + ((j - 3) * step)[:, None, None], inside[:, :, None], f, BC
        )
        low += up_low[None, :, :] * tap_low
        high += up_high[None, :, :] * tap_high
    paired: tl.constexpr = f.dtype.element_ty.primitive_bitwidth == 16
    target = correlation + ((b * chunks + chunk) * 50 + i * 7 + j)[:, None] * BC
    lower = c * 2 if paired else c
    tl.store(target + lower[None, :], tl.sum(low, axis=1), mask=(j < 7)[:, None])
    upper = lower + (1 if paired else BC // 2)
    tl.store(target + upper[None, :], tl.sum(high, axis=1), mask=(j < 7)[:, None])
