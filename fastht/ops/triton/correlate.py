"""Backward: the correlation maps from which every gradient of the bank and the gate follows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def correlate_tile(
    dv,
    f,
    target,
    first,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    BP: tl.constexpr,
):
    """Write ``G[tap, c] = sum over p of dv[p, c] * f[p + tap, c]`` for ``BM`` tokens of an image.

    Identity 7 of the design. The sums stay apart for each of ``BP`` pixel slots until the end, so
    that the loop has no reduction; seven taps share a load of dv, and the eighth slot of their
    tile multiplies by 1, which sums dv itself.

    ``dv`` and ``f`` are the image's maps, ``[N, BC]``; ``target`` is ``[50, BC]`` float32 and
    gets the sum of dv as its last row; ``first`` is the tile's first token; ``BP`` tokens are
    taken a step.
    """
    j = tl.arange(0, 8)
    c = tl.arange(0, BC)
    for i in range(7):
        acc = tl.zeros((8, BP, BC), tl.float32)
        for start in range(0, BM, BP):
            pixel = first - P + start + tl.arange(0, BP)
            in_map = (pixel >= 0) & (pixel < H * W)
            upstream = tl.load(
                dv + (P + pixel)[:, None] * BC + c[None, :], mask=in_map[:, None], other=0.0
            ).to(tl.float32)
            y = pixel // W + (i - 3)
            x = (pixel % W)[None, :] + (j - 3)[:, None]
            inside = (in_map & (y >= 0) & (y < H))[None, :] & (x >= 0) & (x < W)
            token = P + y[None, :] * W + x
            tap = tl.load(
                f + token[:, :, None] * BC + c[None, None, :],
                mask=(inside & (j < 7)[:, None])[:, :, None],
                other=0.0,
            ).to(tl.float32)
            acc += upstream[None, :, :] * tl.where((j == 7)[:, None, None], 1.0, tap)
        row = tl.where(j < 7, i * 7 + j, 49)
        kept = j < tl.where(i == 0, 8, 7)
        total = tl.sum(acc, axis=1)
        tl.store(target + row[:, None] * BC + c[None, :], total, mask=kept[:, None])
