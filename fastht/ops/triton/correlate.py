"""Backward: the correlation maps from which every gradient of the bank and the gate follows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N", "P", "H", "W", "chunks"])
def correlate_kernel(
    dv,
    f,
    correlation,  # [B, chunks, 50, BC]
    N,
    P,
    H,
    W,
    chunks,
    BC: tl.constexpr,
    BP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write ``G[tap, c] = sum over pixels of dv[p, c] * f[p + tap, c]`` for one row of taps.

    Identity 7 of the design. A program has one image, one chunk of its pixels and seven taps;
    the eighth slot of its tile multiplies by 1 and so holds the sum of dv, which is row 49.
    The sums stay apart per pixel slot until the end, so that the loop has no reduction.
    """
    pid = tl.program_id(0)
    i = pid % 7
    chunk = (pid // 7) % chunks
    b = (pid // 7) // chunks
    j = tl.arange(0, 8)
    c = tl.arange(0, BC)
    image = b.to(tl.int64) * N * BC
    acc = tl.zeros((8, BP, BC), tl.float32)
    last = tl.minimum((chunk + 1) * CHUNK, H * W)
    for start in range(chunk * CHUNK, last, BP):
        pixel = start + tl.arange(0, BP)
        in_chunk = pixel < last
        upstream = tl.load(
            dv + image + (P + pixel)[:, None] * BC + c[None, :],
            mask=in_chunk[:, None],
            other=0.0,
        ).to(tl.float32)
        y = pixel // W + (i - 3)
        x = (pixel % W)[None, :] + (j - 3)[:, None]
        inside = (in_chunk & (y >= 0) & (y < H))[None, :] & (x >= 0) & (x < W)
        token = P + y[None, :] * W + x
        tap = tl.load(
            f + image + token[:, :, None] * BC + c[None, None, :],
            mask=(inside & (j < 7)[:, None])[:, :, None],
            other=0.0,
        ).to(tl.float32)
        tap = tl.where((j == 7)[:, None, None], 1.0, tap)
        acc += upstream[None, :, :] * tap
    total = tl.sum(acc, axis=1)
    row = tl.where(j < 7, i * 7 + j, 49)
    at = (b.to(tl.int64) * chunks + chunk) * 50
    tl.store(
        correlation + (at + row)[:, None] * BC + c[None, :],
        total,
        mask=(j < tl.where(i == 0, 8, 7))[:, None],
    )
