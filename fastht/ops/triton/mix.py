"""What the kernels share between the projections: gated map, 1x1, GELU, dropout mask.

Everything here is a device function.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.depthwise import depthwise


@triton.jit
def gated_map(
    u,
    f,
    first_token,
    kernel_ptr,
    tile,
    rows,
    row_inside,
    is_patch,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Return ``v`` of eq. 4 for ``BM`` tokens, and their u.

    In ``v`` prefix tokens and rows past the end give 0. ``u`` is loaded after the convolution,
    during which its registers are better used.
    """
    # Of what stands under a condition Triton does not ask how an operand of a product was made. The
    # planes that are joined there would make it take narrow operands, and move each twice.
    v = tl.zeros((BM, BC), tl.float32)
    if (tile + 1) * BM > P:
        v = depthwise(f, first_token, kernel_ptr, tile, H, W, P, BM, BC, False, UNROLL, PIXELS)
    c = tl.arange(0, BC)
    at = u + first_token * BC + rows[:, None] * BC + c[None, :]
    s = tl.load(at, mask=row_inside[:, None], other=0.0).to(tl.float32)
    return tl.where(is_patch[:, None], v + s, 0.0), s


@triton.jit
def square_weight(weight_ptr, BC: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Return the ``[BC, BC]`` weight of the 1x1 convolution, or its transpose.

    Both are loads of their own: one tile in two roles would be transposed in registers.
    """
    o, i = tl.arange(0, BC), tl.arange(0, BC)
    if TRANSPOSED:
        tile = tl.load(weight_ptr + o[:, None] + i[None, :] * BC)
    else:
        tile = tl.load(weight_ptr + o[:, None] * BC + i[None, :])
    return tile


@triton.jit
def normal(y, NARROW: tl.constexpr):
    """Return the normal distribution function, by which GELU multiplies y, and its density.

    ``NARROW`` is for numbers that will be rounded to 16 bits: then the function comes of the
    density, less than 3e-7 off with its roundings (Abramowitz and Stegun, Handbook of Mathematical
    Functions, 26.2.17), in half of the instructions of erf.
    """
    if NARROW:
        density = 0.3989422804014327 * tl.exp2(y * y * -0.7213475204444817)
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(y))
        series = 1.781477937 + t * (-1.821255978 + t * 1.330274429)
        series = t * (0.319381530 + t * (-0.356563782 + t * series))
        cdf = tl.where(y < 0.0, series * density, 1.0 - series * density)
    else:
        density = 0.3989422804014327 * tl.exp(-0.5 * y * y)
        cdf = 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))
    return cdf, density


@triton.jit
def dropout_scale(seed, tokens, threshold, inverse, C: tl.constexpr, BC: tl.constexpr):
    """Return ``[len(tokens), BC]`` of 0 and ``inverse``, a function of seed and position alone.

    Element ``(t, c)`` takes word ``c % 4`` of Philox-4x32-10 with counter
    ``t * ceil(C / 4) + c // 4`` (64 bit, ``t`` counting the tokens of the whole batch) and key
    ``seed``; its upper 24 bits below ``threshold`` drop it. All four words are used, since the
    generator is the dear part.
    """
    quad = tl.arange(0, BC // 4)
    counter = tokens[:, None] * ((C + 3) // 4) + quad[None, :]
    w0, w1, w2, w3 = tl.randint4x(seed, counter)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    words = tl.reshape(words, (tokens.shape[0], BC))
    kept = (words >> 8).to(tl.int32) >= threshold
    return tl.where(kept, inverse, 0.0)
