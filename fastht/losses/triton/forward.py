"""Forward: each program has a tile of pairs and sums up its rows and its columns."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.losses.triton.exponential import exp
from fastht.losses.triton.tiles import positive_pairs, similarities, soft_targets, tempered, tile_of


@triton.jit(do_not_specialize=["R", "C", "offset"])
def forward_kernel(
    rows,  # [R, E]
    columns,  # [C, E]
    scale,  # [1]
    bias,  # [1]
    row_keys,  # [R]
    column_keys,  # [C]
    row_factors,  # [R, V]
    column_factors,  # [C, V]
    row_shares,  # [R, K]
    column_shares,  # [C, K]
    row_rounders,  # [3, R]: of features, factors and shares, where their products are aligned
    column_rounders,  # [3, C]
    feature_dithers,  # [the largest of E, V and K]
    inverse_temperature,  # [2]: rounded, and what that left
    row_parts,  # [statistics, tiles of columns, R]
    column_parts,  # [statistics, tiles of rows, C]
    row_dot,  # [R] without keys: the similarity of each row's own pair
    column_dot,  # [C]
    R,
    C,
    E,
    V,
    K,
    offset,
    SOFTMAX: tl.constexpr,
    SIGMOID: tl.constexpr,
    KL: tl.constexpr,
    MSE: tl.constexpr,
    KEYS: tl.constexpr,
    SHARES: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SOFT_PRECISION: tl.constexpr,
):
    """Write the partial statistics of a tile; :mod:`fastht.losses.triton.merge` adds them up.

    A tile is one program's for the whole of E. Every number that is written has a place of its
    own, so nothing is added up in an order that changes.
    """
    row_tiles, column_tiles = tl.cdiv(R, BM), tl.cdiv(C, BN)
    tile_r, tile_c = tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    i, j = tile_r * BM + tl.arange(0, BM), tile_c * BN + tl.arange(0, BN)
    # Rows past the last are the last again: loads need no mask, and no sum has them.
    r, c = tl.minimum(i, R - 1), tl.minimum(j, C - 1)
    similarity = similarities(
        rows, columns, row_rounders, column_rounders, feature_dithers, r, c, E,
        BM, BN, BK, ACC, PRECISION,
    )  # fmt: skip
    in_r, in_c = i < R, j < C  # not before: registers are scarce while products are made
    positive = positive_pairs(r, c, offset, row_keys, column_keys, KEYS)
    row_plane, column_plane = R.to(tl.int64) * column_tiles, C.to(tl.int64) * row_tiles
    at_row = row_parts + tile_c.to(tl.int64) * R + r
    at_column = column_parts + tile_r.to(tl.int64) * C + c
    if SOFTMAX > 0:
        # Before the logits: of a tile of similarities and one of logits, one is enough registers.
        if SOFTMAX % 2 == 1:
            dot = tl.sum(tl.where(positive & in_c[None, :], similarity, 0.0), axis=1)
            if KEYS:
                tl.store(at_row + 2 * row_plane, dot, mask=in_r)
            else:
                tl.store(row_dot + r, dot, mask=in_r & _meets(r + offset, tile_c * BN, BN, C))
        if SOFTMAX >= 2:
            dot = tl.sum(tl.where(positive & in_r[:, None], similarity, 0.0), axis=0)
            if KEYS:
                tl.store(at_column + 2 * column_plane, dot, mask=in_c)
            else:
                tl.store(column_dot + c, dot, mask=in_c & _meets(c - offset, tile_r * BM, BM, R))
        z = tl.load(scale) * similarity
        if SOFTMAX % 2 == 1:
            _softmax_parts(z, positive, in_c, at_row, row_plane, in_r, KEYS, 1)
            at_row += (3 if KEYS else 2) * row_plane
        if SOFTMAX >= 2:
            _softmax_parts(z, positive, in_r, at_column, column_plane, in_c, KEYS, 0)
            at_column += (3 if KEYS else 2) * column_plane
    if SIGMOID:
        z = tl.load(scale) * similarity + tl.load(bias)
        loss = softplus(tl.where(positive, -z, z))
        tl.store(at_row, tl.sum(tl.where(in_c[None, :], loss, 0.0), axis=1), mask=in_r)
        at_row += row_plane
    if KL > 0 or MSE:
        target = soft_targets(
            row_factors, column_factors, row_shares, column_shares, row_rounders, column_rounders,
            feature_dithers, r, c, positive, R, C, V, K,
            BM, BN, BV, SHARES, ACC, SOFT_PRECISION,
        )  # fmt: skip
        if MSE:
            apart = similarity - target
            apart = tl.where(in_c[None, :], apart * apart, 0.0)
            tl.store(at_row, tl.sum(apart, axis=1), mask=in_r)
            at_row += row_plane
        if KL > 0:
            logits = tempered(similarity, inverse_temperature)
            wanted = tempered(target, inverse_temperature)
            if KL % 2 == 1:
                _kl_parts(logits, wanted, in_c, at_row, row_plane, in_r, PRECISION, 1)
            if KL >= 2:
                _kl_parts(logits, wanted, in_r, at_column, column_plane, in_c, PRECISION, 0)


@triton.jit
def softplus(x):
    """Return ``log(1 + exp(x))``."""
    return tl.maximum(x, 0.0) + log1p(exp(-tl.abs(x)))


@triton.jit
def log1p(x):
    """Return ``log(1 + x)`` for x from 0 to 1, of which no digit is lost."""
    # The rounding of 1 + x is undone by the quotient (Kahan); 1 itself is its limit.
    u = 1.0 + x
    gap = u - 1.0
    return tl.where(gap == 0.0, x, tl.log(u) * (x / tl.where(gap == 0.0, 1.0, gap)))


@triton.jit
def _meets(partner, start, BLOCK: tl.constexpr, end):
    """Return which partners are in this tile."""
    return (partner >= start) & (partner < start + BLOCK) & (partner < end)


@triton.jit
def _along(values, AXIS: tl.constexpr):
    return tl.expand_dims(values, AXIS)


@triton.jit
def _softmax_parts(z, positive, inside, at, plane, stored, KEYS: tl.constexpr, AXIS: tl.constexpr):
    """Write shift and sum of the exponentials along an axis; without keys, of the others'."""
    z = tl.where(_along(inside, 1 - AXIS), z, float("-inf"))
    shift = tl.max(z, axis=AXIS)
    e = exp(z - _along(shift, AXIS))
    if not KEYS:
        e = tl.where(positive, 0.0, e)
    tl.store(at, shift, mask=stored)
    tl.store(at + plane, tl.sum(e, axis=AXIS), mask=stored)


@triton.jit
def _kl_parts(
    logits, wanted, inside, at, plane, stored, PRECISION: tl.constexpr, AXIS: tl.constexpr
):
    """Write shift and sum of logits and targets along an axis, and the divergence of the two."""
    summed = _along(inside, 1 - AXIS)
    logit_shift = tl.max(tl.where(summed, logits, float("-inf")), axis=AXIS)
    target_shift = tl.max(tl.where(summed, wanted, float("-inf")), axis=AXIS)
    logits -= _along(logit_shift, AXIS)
    wanted -= _along(target_shift, AXIS)
    e = tl.where(summed, exp(logits), 0.0)
    w = tl.where(summed, exp(wanted), 0.0)
    logit_sum = _sum_of(e, logits, summed, PRECISION, AXIS)
    target_sum = _sum_of(w, wanted, summed, PRECISION, AXIS)
    gap = wanted - logits
    mean = tl.sum(w * tl.where(summed, gap, 0.0), axis=AXIS) / target_sum
    divergence = mean + tl.log(logit_sum / target_sum)
    if PRECISION == "aligned":
        # The two cancel where it is small, and 16 bits or TensorFloat-32 had no digits to lose.
        # With r = mean - gap, whose own mean is 0, it is log(1 + the mean of exp(r) - 1 - r): of
        # terms that are never negative. Where the mean gap is large, so is the divergence, and
        # exp(mean), by which w exp(r) comes from e, might overflow.
        near = mean < 20.0
        mean = tl.where(near, mean, 0.0)
        r = _along(mean, AXIS) - gap
        grown = e * _along(exp(mean), AXIS) - (w + w * r)
        grown = tl.where(tl.abs(r) < 1.0, w * _grown(r), grown)
        grown = tl.sum(tl.where(summed, grown, 0.0), axis=AXIS) / target_sum
        small = grown < 1.0
        precise = tl.where(small, log1p(tl.where(small, grown, 0.0)), tl.log(1.0 + grown))
        divergence = tl.where(near, precise, divergence)
    tl.store(at, logit_shift, mask=stored)
    tl.store(at + plane, logit_sum, mask=stored)
    tl.store(at + 2 * plane, target_shift, mask=stored)
    tl.store(at + 3 * plane, target_sum, mask=stored)
    tl.store(at + 4 * plane, divergence, mask=stored)


@triton.jit
def _sum_of(e, x, summed, PRECISION: tl.constexpr, AXIS: tl.constexpr):
    """Return the sum of e to the power of x, of which the largest is 1, rounded almost once.

    Where one pair leads, all others would lose the digits of 1 with each addition.
    """
    if PRECISION == "aligned":
        leads = summed & (x == 0.0)
        others = tl.sum(tl.where(leads, 0.0, e), axis=AXIS)
        total = tl.sum(tl.where(leads, 1.0, 0.0), axis=AXIS) + others
    else:
        total = tl.sum(e, axis=AXIS)
    return total


@triton.jit
def _grown(r):
    """Return ``exp(r) - 1 - r`` for r from -1 to 1, by its series."""
    x = 1 / 39916800 + r * (1 / 479001600)
    x = 1 / 3628800 + r * x
    x = 1 / 362880 + r * x
    x = 1 / 40320 + r * x
    x = 1 / 5040 + r * x
    x = 1 / 720 + r * x
    x = 1 / 120 + r * x
    x = 1 / 24 + r * x
    x = 1 / 6 + r * x
    return r * r * (0.5 + r * x)
