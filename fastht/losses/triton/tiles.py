"""What the kernels of both sweeps share: a tile of similarities, and which of its pairs match."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.losses.triton.aligned import add_aligned
from fastht.ops.triton.products import add_product


@triton.jit
def tile_of(pid, row_tiles, column_tiles, GROUP: tl.constexpr):
    """Return a program's row and column of tiles.

    Programs that run at the same time have ``GROUP`` rows of tiles and neighbouring columns, so
    that most of what they load is in the L2 cache.
    """
    strip = GROUP * column_tiles
    first = pid // strip * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + pid % strip % height, pid % strip // height


@triton.jit
def similarities(
    rows, columns, row_rounders, column_rounders, feature_dithers, r, c, E,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``rows[r] @ columns[c].T``; ``r`` and ``c`` exist, and E is a multiple of BK.

    Rounders and dithers are of :mod:`fastht.losses.triton.aligned`, and read where ``PRECISION`` is
    its.
    """
    k = tl.arange(0, BK)
    at_rows = rows + r.to(tl.int64)[:, None] * E + k[None, :]
    at_columns = columns + c.to(tl.int64)[None, :] * E + k[:, None]
    acc = tl.zeros((BM, BN), ACC)
    if PRECISION == "aligned":
        rest = tl.zeros((BM, BN), ACC)
        of_row = tl.load(row_rounders + r)[:, None]
        of_column = tl.load(column_rounders + c)[None, :]
        # Loaded, not made of k: only then does Triton load tiles as operands of tensor cores, where
        # else they go through shared memory once more.
        at_features = feature_dithers + k
        for _ in range(0, E, BK):
            a, b, of_feature = tl.load(at_rows), tl.load(at_columns), tl.load(at_features)
            acc, rest = add_aligned(a, b, of_row, of_column, of_feature, acc, rest)
            at_rows += BK
            at_columns += BK
            at_features += BK
        acc += rest
    else:
        for _ in range(0, E, BK):
            acc = add_product(tl.load(at_rows), tl.load(at_columns), acc, PRECISION)
            at_rows += BK
            at_columns += BK
    return acc


@triton.jit
def positive_pairs(r, c, offset, row_keys, column_keys, KEYS: tl.constexpr):
    """Return which pairs are positive: those of equal keys, or a row with its own column."""
    if KEYS:
        positive = tl.load(row_keys + r)[:, None] == tl.load(column_keys + c)[None, :]
    else:
        positive = (r + offset)[:, None] == c[None, :]
    return positive


@triton.jit
def soft_targets(
    row_factors, column_factors, row_shares, column_shares, row_rounders, column_rounders,
    feature_dithers, r, c, positive, R, C, V, K,
    BM: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, SHARES: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the targets T of a tile: a product of factors, over that of shares, 1 at positives."""
    soft = similarities(
        row_factors, column_factors, row_rounders + R, column_rounders + C, feature_dithers,
        r, c, V, BM, BN, BV, ACC, PRECISION,
    )  # fmt: skip
    if SHARES:
        share = similarities(
            row_shares, column_shares, row_rounders + 2 * R, column_rounders + 2 * C,
            feature_dithers, r, c, K, BM, BN, 16, ACC, PRECISION,
        )  # fmt: skip
        soft = tl.where(share > 0, soft / tl.where(share > 0, share, 1.0), 0.0)
    return tl.where(positive, 1.0, soft)


@triton.jit
def tempered(x, inverse_temperature):
    """Return x divided by the temperature, rounded as if once.

    Where softmaxes are alike, the divergence is by far smaller than its derivative by the
    temperature: that the inverse was rounded to float32 would be seen in it. Hence its two parts.
    """
    high, low = tl.load(inverse_temperature), tl.load(inverse_temperature + 1)
    return tl.fma(x, high, x * low)
