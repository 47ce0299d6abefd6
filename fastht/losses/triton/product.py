"""Backward, second launch of a strip: what a strip of the gradient makes of one side's features."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.losses.triton.tiles import tile_of
from fastht.ops.triton.products import add_product


@triton.jit(do_not_specialize=["M", "K"])
def product_kernel(
    strip,  # [M, K] part of the gradient with respect to the similarities, or its transpose
    features,  # [K, E]
    gain,  # [1]
    out,  # [M, E]; after the FIRST strip it has the sum over those before
    M,
    K,
    E,
    stride_m,
    stride_k,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add ``strip @ features`` to ``out``, and multiply by the gain after the LAST strip.

    A program owns its part of ``out``, whose sum over K stays in registers: no partial results,
    and the same order of additions every time. The strip is zero past the end of K, where the
    last row of the features stands for the rest.
    """
    tiles_m, tiles_n = tl.cdiv(M, BM), tl.cdiv(E, BN)
    tile_m, tile_n = tile_of(tl.program_id(0), tiles_m, tiles_n, GROUP)
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    at_strip = strip + m.to(tl.int64)[:, None] * stride_m + k.to(tl.int64)[None, :] * stride_k
    acc = tl.zeros((BM, BN), ACC)
    for start in range(0, K, BK):
        row = tl.minimum(start + k, K - 1).to(tl.int64)
        at_features = features + row[:, None] * E + n[None, :]
        acc = add_product(tl.load(at_strip), tl.load(at_features), acc, PRECISION)
        at_strip += BK * stride_k
    inside = (m < M)[:, None]
    at = m.to(tl.int64)[:, None] * E + n[None, :]
    if not FIRST:
        acc += tl.load(out + at, mask=inside, other=0.0)
    if LAST:
        acc *= tl.load(gain)
    tl.store(out + at, acc, mask=inside)
