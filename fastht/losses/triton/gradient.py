"""Backward, first launch of a strip: the derivative by each similarity, for a tile of pairs."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.losses.triton.exponential import exp
from fastht.losses.triton.tiles import positive_pairs, similarities, soft_targets, tempered, tile_of


@triton.jit(do_not_specialize=["first", "last", "R", "C", "offset"])
def gradient_kernel(
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
    softmax_rows,  # [3, R]
    softmax_columns,  # [3, C]
    diagonal,  # [R]
    of_sigmoid,  # [R]
    of_mse,  # [R]
    kl_rows,  # [4, R]
    kl_columns,  # [4, C]
    strip,  # [last - first, C] and to the ends of tiles: the derivative, in the features' dtype
    scale_parts,  # [tiles of columns, R]
    bias_parts,  # [tiles of columns, R]
    first,
    last,
    stride_s,
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
    STRIP: tl.constexpr,
    SCALE: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    BV: tl.constexpr,
    GROUP: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    SOFT_PRECISION: tl.constexpr,
):
    """Write ``dc`` of rows ``first`` to ``last`` and the row sums of ``dz * c`` and ``dz``.

    The similarities are those of the forward sweep, bit for bit: its tiles, its order over E.
    """
    row_tiles, column_tiles = tl.cdiv(last - first, BM), tl.cdiv(C, BN)
    tile_r, tile_c = tile_of(tl.program_id(0), row_tiles, column_tiles, GROUP)
    i, j = tile_r * BM + tl.arange(0, BM), tile_c * BN + tl.arange(0, BN)
    r, c = tl.minimum(first + i, R - 1), tl.minimum(j, C - 1)
    similarity = similarities(
        rows, columns, row_rounders, column_rounders, feature_dithers, r, c, E,
        BM, BN, BK, ACC, PRECISION,
    )  # fmt: skip
    positive = positive_pairs(r, c, offset, row_keys, column_keys, KEYS)
    in_r, in_c = first + i < last, j < C  # not before: registers are scarce in products
    inside = in_r[:, None] & in_c[None, :]
    dz = tl.zeros((BM, BN), ACC)
    if SOFTMAX > 0:
        z = tl.load(scale) * similarity
        if SOFTMAX % 2 == 1:
            dz += _softmax(z, positive, softmax_rows, r, R, KEYS, 1)
        if SOFTMAX >= 2:
            dz += _softmax(z, positive, softmax_columns, c, C, KEYS, 0)
        if not KEYS:
            dz = tl.where(positive, tl.load(diagonal + r)[:, None], dz)
    if SIGMOID:
        z = tl.load(scale) * similarity + tl.load(bias)
        pull = _sigmoid(tl.where(positive, -z, z))
        dz += tl.load(of_sigmoid + r)[:, None] * tl.where(positive, -pull, pull)
    if SCALE:
        at = tile_c.to(tl.int64) * R + r
        by_scale = tl.sum(tl.where(inside, dz * similarity, 0.0), axis=1)
        tl.store(scale_parts + at, by_scale, mask=in_r)
        if SIGMOID:
            by_bias = tl.sum(tl.where(inside, dz, 0.0), axis=1)
            tl.store(bias_parts + at, by_bias, mask=in_r)
    if STRIP:
        dc = tl.load(scale) * dz
        if KL > 0 or MSE:
            target = soft_targets(
                row_factors, column_factors, row_shares, column_shares, row_rounders,
                column_rounders, feature_dithers, r, c, positive, R, C, V, K,
                BM, BN, BV, SHARES, ACC, SOFT_PRECISION,
            )  # fmt: skip
            if MSE:
                dc += tl.load(of_mse + r)[:, None] * (similarity - target)
            if KL > 0:
                logits = tempered(similarity, inverse_temperature)
                wanted = tempered(target, inverse_temperature)
                if KL % 2 == 1:
                    dc += _kl(logits, wanted, kl_rows, r, R, 1)
                if KL >= 2:
                    dc += _kl(logits, wanted, kl_columns, c, C, 0)
        # Zeros past the ends: the products go over whole tiles.
        dc = tl.where(inside, dc, 0.0)
        at_strip = strip + i.to(tl.int64)[:, None] * stride_s + j[None, :]
        tl.store(at_strip, dc.to(strip.dtype.element_ty))


@triton.jit
def _sigmoid(x):
    """Return ``1 / (1 + exp(-x))``, small values with all their digits."""
    e = exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def _of(values, index, n, N, AXIS: tl.constexpr):
    return tl.expand_dims(tl.load(values + index * N + n), AXIS)


@triton.jit
def _softmax(z, positive, of, n, N, KEYS: tl.constexpr, AXIS: tl.constexpr):
    dz = exp(z - _of(of, 0, n, N, AXIS)) * _of(of, 1, n, N, AXIS)
    if KEYS:
        dz -= tl.where(positive, _of(of, 2, n, N, AXIS), 0.0)
    return dz


@triton.jit
def _kl(logits, wanted, of, n, N, AXIS: tl.constexpr):
    dc = exp(logits - _of(of, 0, n, N, AXIS)) * _of(of, 1, n, N, AXIS)
    return dc - exp(wanted - _of(of, 2, n, N, AXIS)) * _of(of, 3, n, N, AXIS)
