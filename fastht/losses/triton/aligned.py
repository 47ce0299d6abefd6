"""Products of float32 numbers on tensor cores, of which what is cut off has no side.

Tensor cores cut their sums towards zero. A sum of TensorFloat-32 products therefore comes out a
little small, always: by some 1e-7 of itself, which is what rounding may cost, but rounding has no
side. Over a batch the errors of rounding cancel and these do not: similarities that are all small
by 1e-7 are those of another scale, and the gradient of the scale is a sum over all of them. (On an
H200 it was off by 7e-7 at B = 4,096, plain PyTorch's by 3e-8.)

So each row is split where its numbers' products need no cutting. With ``m >= |a|`` a power of two,
``high`` is the nearest multiple of ``m / 2**12``, and by Cauchy and Schwarz every sum of products
of two rows' high parts is a multiple of ``m_a m_b / 2**24`` that is not over ``m_a m_b``: 24 bits,
exact in whatever order they are added and whatever is cut. Only the products with what is left over
are cut, in a sum of their own that is 4,096 times as small, and the two sums are added once, as
float32 adds.

The parts left over have to fit TensorFloat-32 too. Rounded to the nearest, a number loses the same
wherever it occurs: a constant that all rows have shifted all products by up to half of float32's
last place, and rows of numbers of one size were off by three, which no batch averages. So they are
dithered: to the places that are cut off is added what depends on row and feature, and takes all
values equally often over either (Weyl's sequences of the golden ratio and of the square root of 2,
combined by an exclusive or). A number is rounded up as often as what it loses says, and one that
fits stays as it is.

Errors are then small beside the product of two lengths (some 2e-8 of it), not beside the sum of the
products' sizes: where rows have their large numbers in different places, ten thousand times as
large as all others, similarities that are as small as that keep fewer digits than float32's.
Source of the idea: Ozaki, Ogita, Oishi and Rump 2012, error-free transformations of
matrix multiplication.
"""

from __future__ import annotations

import triton
import triton.language as tl

CUT = tl.constexpr(0x1FFF)  # float32's places that TensorFloat-32 lacks


@triton.jit(do_not_specialize=["R", "C"])
def rounders_kernel(
    rows,  # [R, E] float32
    columns,  # [C, E]
    row_rounders,  # [R]
    column_rounders,  # [C]
    feature_dithers,  # [E]
    R,
    C,
    E,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Write each row's rounder: a number that rounds the row's to a grid where it is added to them.

    Its last place is that grid. To add multiples of the grid does not change how it rounds: in its
    last places stands the row's part of the dither. A feature's part stands in those of a number
    from 1. E is a multiple of ``WIDTH``.
    """
    block, row_blocks = tl.program_id(0), tl.cdiv(R, BLOCK)
    if block < row_blocks:
        _write_rounders(rows, row_rounders, block, R, E, 0, BLOCK, WIDTH)
    else:
        block -= row_blocks
        # A pair's numbers are alike, and one of them is rounded up where the other is rounded down.
        _write_rounders(columns, column_rounders, block, C, E, CUT, BLOCK, WIDTH)
    if tl.program_id(0) == 0:
        for first in range(0, E, WIDTH):
            k = first + tl.arange(0, WIDTH)
            dither = (k * 3393) & CUT  # 2**13 * (square root of 2 - 1)
            tl.store(feature_dithers + k, (0x3F800000 | dither).to(tl.float32, bitcast=True))


@triton.jit
def _write_rounders(
    numbers, rounders, block, N, E, FLIP: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    n = block * BLOCK + tl.arange(0, BLOCK)
    stored = n < N
    at = numbers + tl.minimum(n, N - 1).to(tl.int64)[:, None] * E + tl.arange(0, WIDTH)[None, :]
    total = tl.zeros((BLOCK, WIDTH), tl.float64)  # where no square overflows
    for _ in range(0, E, WIDTH):
        number = tl.load(at).to(tl.float64)
        total += number * number
        at += WIDTH
    square = tl.sum(total, axis=1)
    # Features of length 1 are of length 1 but for their rounding: they must not take the next
    # power of two. Half of the exponent of the square, rounded down, is that of the length.
    bits = (square * 0.998).to(tl.int64, bitcast=True)
    exponent = (((bits >> 52) - 1023) >> 1) + 1  # of m
    # 1.5 * 2**23 grids, so that sums with numbers of either sign have the same last place.
    biased = tl.minimum(tl.maximum(exponent - 12 + 23 + 127, 1), 254).to(tl.int32)
    dither = (((n & CUT) * 5063) & CUT) ^ FLIP  # 2**13 / golden ratio
    rounder = ((biased << 23) | 0x400000 | dither).to(tl.float32, bitcast=True)
    tl.store(rounders + n, rounder, mask=stored)


@triton.jit
def add_aligned(a, b, row_rounder, column_rounder, feature_dither, total, rest):
    """Return ``total`` and ``rest`` with the products of high parts and all others added.

    ``a`` is ``[BM, BK]``, ``b`` ``[BK, BN]``; the rounders are ``[BM, 1]`` and ``[1, BN]``, the
    dithers of features ``[BK]``. Of the other products, ``(a - a_high) b_high + a (b -
    b_high)``, each factor has TensorFloat-32's digits.
    """
    feature_dither = feature_dither.to(tl.uint32, bitcast=True)
    # First what goes through shared memory and leaves the registers.
    b_high, b_low, _ = _split(b, column_rounder, feature_dither[:, None])
    a_high, a_low, a = _split(a, row_rounder, feature_dither[None, :])
    rest = tl.dot(a_low, b_high, rest, input_precision="tf32")
    rest = tl.dot(a, b_low, rest, input_precision="tf32")
    return tl.dot(a_high, b_high, total, input_precision="tf32"), rest


@triton.jit
def _split(a, rounder, feature_dither):
    """Return the multiples of a grid that are next to numbers, what they leave over, and the sum.

    Numbers over half of m have 12 bits on the grid, of which a tensor core reads 11: it is one
    place coarser for them. A NaN or an infinity stays one in the high part. The other two are
    dithered.
    """
    aligned = (a + rounder) - rounder
    high = (aligned.to(tl.uint32, bitcast=True) & 0xFFFFE000).to(tl.float32, bitcast=True)
    dither = (rounder.to(tl.uint32, bitcast=True) ^ feature_dither) & CUT
    return high, _dithered(a - high, dither), _dithered(a, dither)


@triton.jit
def _dithered(a, dither):
    """Return TensorFloat-32 numbers, away from zero where what is cut and the dither carry."""
    bits = a.to(tl.uint32, bitcast=True) + dither
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)
