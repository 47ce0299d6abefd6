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
        _merge_kl(parts, kl, n, N, plane, tiles, stored, ACC, BLOCK, STEP)


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
def _largest(shifts, n, N, tiles, ACC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    top = tl.full((STEP, BLOCK), float("-inf"), ACC)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        top = tl.maximum(top, tl.load(shifts + at, mask=inside, other=float("-inf")))
    return tl.max(top, axis=0)


@triton.jit
def _merged(shifts, sums, n, N, tiles, ACC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Return the largest shift of all tiles, and the sum that belongs to it."""
    shift = _largest(shifts, n, N, tiles, ACC, BLOCK, STEP)
    total = tl.zeros((STEP, BLOCK), ACC)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        moved = exp(tl.load(shifts + at, mask=inside, other=float("-inf")) - shift[None, :])
        total += moved * tl.load(sums + at, mask=inside, other=0.0)
    return shift, tl.sum(total, axis=0)


@triton.jit
def _moved(at, shift, inside):
    """Return by how much tiles' shifts are above the largest, which is never; 0 without a tile."""
    shifts = tl.load(at, mask=inside, other=0.0)
    return tl.where(inside, shifts.to(tl.float64) - shift.to(tl.float64)[None, :], 0.0)


@triton.jit
def _faded(at, plane, shift, inside, ACC: tl.constexpr):
    """Return tiles' sums of exponentials, which stand behind their shifts, from the largest."""
    number = tl.load(at + plane, mask=inside, other=0.0).to(tl.float64)
    return number * exp(_moved(at, shift, inside).to(ACC)).to(tl.float64)


@triton.jit
def _merge_kl(
    parts, kl, n, N, plane, tiles, stored,
    ACC: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write shift and sum of logits and of targets, and the divergence of each row or column.

    Of a tile that is the mean gap and the logarithm of the sums' quotient; the gap of all is the
    mean of the tiles', and its logarithm that of all sums. The sums are weights in both, so that
    their own rounding cancels where the divergence is small; what is made of them is in float64.
    """
    logit_shift = _largest(parts, n, N, tiles, ACC, BLOCK, STEP)
    target_shift = _largest(parts + 2 * plane, n, N, tiles, ACC, BLOCK, STEP)
    logits = tl.zeros((STEP, BLOCK), tl.float64)
    targets = tl.zeros((STEP, BLOCK), tl.float64)
    for start in range(0, tiles, STEP):
        at, inside = _at(n, N, start, tiles, STEP)
        logits += _faded(parts + at, plane, logit_shift, inside, ACC)
        targets += _faded(parts + 2 * plane + at, plane, target_shift, inside, ACC)
    logit_sum, target_sum = tl.sum(logits, axis=0), tl.sum(targets, axis=0)
    gaps = tl.zeros((STEP, BLOCK), tl.float64)
    for start in range(0, tiles, STEP):  # once more: all in one loop are too many registers
        at, inside = _at(n, N, start, tiles, STEP)
        logit = tl.load(parts + plane + at, mask=inside, other=1.0).to(tl.float64)
        target = tl.load(parts + 3 * plane + at, mask=inside, other=1.0).to(tl.float64)
        gap = -tl.log(logit / target)
        gap += tl.load(parts + 4 * plane + at, mask=inside, other=0.0).to(tl.float64)
        gap += _moved(parts + 2 * plane + at, target_shift, inside)
        gap -= _moved(parts + at, logit_shift, inside)
        gaps += gap * _faded(parts + 2 * plane + at, plane, target_shift, inside, ACC)
    divergence = tl.sum(gaps, axis=0) / target_sum + tl.log(logit_sum / target_sum)
    tl.store(kl + n, logit_shift, mask=stored)
    tl.store(kl + N + n, logit_sum.to(ACC), mask=stored)
    tl.store(kl + 2 * N + n, target_shift, mask=stored)
    tl.store(kl + 3 * N + n, target_sum.to(ACC), mask=stored)
    tl.store(kl + 4 * N + n, divergence.to(ACC), mask=stored)
