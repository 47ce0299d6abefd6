"""Forward, second launch: the partial statistics of all tiles, added up in the order of tiles."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.losses.triton.exponential import exp


@triton.jit(do_not_specialize=["N", "tiles", "partners", "offset"])
def merge_kernel(
    parts,  # [statistics, tiles, N]
    scale,  # [1]
    softmax,  # [4, N]
    kl,  # [5, N]
    sigmoid,  # [N]
    mse,  # [N]
    N,
    tiles,
    partners,  # of an element's own, from 0 up to these, some are not here
    offset,
    SOFTMAX: tl.constexpr,
    SIGMOID: tl.constexpr,
    KL: tl.constexpr,
    MSE: tl.constexpr,
    KEYS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Merge ``BLOCK`` rows or columns; sums move to the largest shift of all tiles."""
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    stored = n < N
    n = tl.minimum(n, N - 1)
    plane = tiles.to(tl.int64) * N
    if SOFTMAX:
        shift, total = _merged(parts, parts + plane, n, N, tiles, ACC, BLOCK, STEP)
        if KEYS:
            dot = _summed(parts + 2 * plane, n, N, tiles, ACC, BLOCK, STEP)
            own = tl.zeros((BLOCK,), ACC)
        else:
            there = stored & (n + offset >= 0) & (n + offset < partners)
            dot = tl.load(softmax + 3 * N + n, mask=there, other=0.0)
            own = tl.where(there, exp(tl.load(scale) * dot - shift), 0.0)
        tl.store(softmax + n, shift, mask=stored)
        tl.store(softmax + N + n, total, mask=stored)
        tl.store(softmax + 2 * N + n, own, mask=stored)
        tl.store(softmax + 3 * N + n, dot, mask=stored)
        parts += (3 if KEYS else 2) * plane
    if SIGMOID:
        tl.store(sigmoid + n, _summed(parts, n, N, tiles, ACC, BLOCK, STEP), mask=stored)
        parts += plane
    if MSE:
        tl.store(mse + n, _summed(parts, n, N, tiles, ACC, BLOCK, STEP), mask=stored)
        parts += plane
    if KL:
        shift, total = _merged(parts, parts + plane, n, N, tiles, ACC, BLOCK, STEP)
        tl.store(kl + n, shift, mask=stored)
        tl.store(kl + N + n, total, mask=stored)
        parts += 2 * plane
        shift, total = _merged(parts, parts + plane, n, N, tiles, ACC, BLOCK, STEP)
        _, gap = _merged(parts, parts + 2 * plane, n, N, tiles, ACC, BLOCK, STEP)
        tl.store(kl + 2 * N + n, shift, mask=stored)
        tl.store(kl + 3 * N + n, total, mask=stored)
        tl.store(kl + 4 * N + n, gap, mask=stored)


@triton.jit
def _at(n, N, start, tiles, STEP: tl.constexpr):
    tile = start + tl.arange(0, STEP)
    return tile.to(tl.int64)[:, None] * N + n[None, :], (tile < tiles)[:, None]


@triton.jit
def _summed(parts, n, N, tiles, ACC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    total = tl.zeros((STEP, BLOCK), ACC)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        total += tl.load(parts + at, mask=inside, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def _merged(shifts, sums, n, N, tiles, ACC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Return the largest shift of all tiles, and the sum that belongs to it."""
    top = tl.full((STEP, BLOCK), float("-inf"), ACC)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        top = tl.maximum(top, tl.load(shifts + at, mask=inside, other=float("-inf")))
    shift = tl.max(top, axis=0)
    total = tl.zeros((STEP, BLOCK), ACC)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        moved = exp(tl.load(shifts + at, mask=inside, other=float("-inf")) - shift[None, :])
        total += moved * tl.load(sums + at, mask=inside, other=0.0)
    return shift, tl.sum(total, axis=0)
