"""What the kernels of both sweeps share: a tile of similarities, and which of its pairs match."""

from __future__ import annotations

import triton
import triton.language as tl


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
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return ``acc + a @ b`` to the digits of the operands, or of TensorFloat-32 for ``"tf32"``.

    Tensor cores cut float32 down to TensorFloat-32, which is twice as far off as rounding, and all
    to the same side. So operands are rounded before. ``"split"`` is float32's precision: what
    rounding leaves over goes into products of its own. They cut their sums too, after every eight
    products, so this tile has a sum of its own, which is added as float32 adds: all of E in one
    sum was off by eight times as much as PyTorch's on an H200. (Triton's tf32x3 does neither.)
    """
    if PRECISION == "split":
        a_high, b_high = _nearest_tf32(a), _nearest_tf32(b)
        a_low, b_low = _rounded(a - a_high), _rounded(b - b_high)
        part = tl.dot(a_low, b_high, input_precision="tf32")
        part = tl.dot(a_high, b_low, part, input_precision="tf32")
        part = tl.dot(a_high, b_high, part, input_precision="tf32")
        acc += part
    elif PRECISION == "tf32":
        acc = tl.dot(_rounded(a), _rounded(b), acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=acc.dtype)
    return acc


@triton.jit
def _rounded(a):
    """Return the nearest TensorFloat-32; a NaN, whose bits may all be set, must not become 0."""
    return tl.where(a == a, _nearest_tf32(a), a)


@triton.jit
def _nearest_tf32(a):
    return ((a.to(tl.int32, bitcast=True) + 0x1000) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def similarities(
    rows, columns, r, c, E,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return ``rows[r] @ columns[c].T``; ``r`` and ``c`` exist, and E is a multiple of BK."""
    k = tl.arange(0, BK)
    at_rows = rows + r.to(tl.int64)[:, None] * E + k[None, :]
    at_columns = columns + c.to(tl.int64)[None, :] * E + k[:, None]
    acc = tl.zeros((BM, BN), ACC)
    for _ in range(0, E, BK):
        acc = dot(tl.load(at_rows), tl.load(at_columns), acc, PRECISION)
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
    row_factors, column_factors, row_shares, column_shares, r, c, positive, V, K,
    BM: tl.constexpr, BN: tl.constexpr, BV: tl.constexpr, SHARES: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the targets T of a tile: a product of factors, over that of shares, 1 at positives."""
    soft = similarities(row_factors, column_factors, r, c, V, BM, BN, BV, ACC, PRECISION)
    if SHARES:
        share = similarities(row_shares, column_shares, r, c, K, BM, BN, 16, ACC, PRECISION)
        soft = tl.where(share > 0, soft / tl.where(share > 0, share, 1.0), 0.0)
    return tl.where(positive, 1.0, soft)
