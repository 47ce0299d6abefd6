"""What the kernels share between the projections: depthwise bank, 1x1, GELU, dropout mask.

Everything here is a device function. The bottleneck map of one image lies in memory as
``[N, BC]`` rows, channels contiguous, where ``BC`` is C padded to a power of two; padded channels
hold zeros, so only the edges (parameters in, gradients out) mask them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import (
    load_planes,
    merge_planes,
    plane_pointer,
    token_step,
    within,
)


@triton.jit
def depthwise(
    map_ptr,
    first_token,
    kernel_ptr,
    rows,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    FLIP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Convolve the map of one image with its own 7x7 kernel, for ``BM`` of its tokens.

    ``FLIP`` gives the transposed convolution, without the bias. The outer loop stays a loop at run
    time: unrolling all 49 taps spills registers on every architecture, and where 7 do, ``UNROLL``
    is off.

    Returns ``[BM, BC]`` float32. Rows that are no patches mean nothing, but what they read is
    inside the map as well.
    """
    pixel = rows - P
    py = pixel // W
    px = pixel % W
    c = tl.arange(0, BC // 2)
    step: tl.constexpr = token_step(map_ptr, BC)
    image = plane_pointer(map_ptr, first_token, BC)
    low = tl.zeros((BM, BC // 2), tl.float32)
    high = tl.zeros((BM, BC // 2), tl.float32)
    for i in range(7):
        y = py + (i - 3)
        row_inside = within(y, H)
        row = image + ((P + y * W + px) * step)[:, None] + c[None, :]
        kernel_row = kernel_ptr + ((6 - i) if FLIP else i) * (7 * BC) + c
        if UNROLL:
            for j in tl.static_range(7):
                low, high = _tap(
                    low, high, map_ptr, row, kernel_row, j, px, row_inside, W, BC, FLIP
                )
        else:
            for j in range(7):
                low, high = _tap(
                    low, high, map_ptr, row, kernel_row, j, px, row_inside, W, BC, FLIP
                )
    if not FLIP:
        bias = kernel_ptr + 49 * BC + c
        low += tl.load(bias)[None, :]
        high += tl.load(bias + BC // 2)[None, :]
    return merge_planes(low, high, map_ptr, BC)


@triton.jit
def _tap(
    low, high, map_ptr, row, kernel_row, j, px, row_inside, W, BC: tl.constexpr, FLIP: tl.constexpr
):
    """Add column ``j`` of a row of the kernel times the map shifted by it."""
    x = px + (j - 3)
    inside = row_inside & within(x, W)
    step: tl.constexpr = token_step(map_ptr, BC)
    in_low, in_high = load_planes(row + (j - 3) * step, inside[:, None], map_ptr, BC)
    kernel = kernel_row + ((6 - j) if FLIP else j) * BC
    low += in_low * tl.load(kernel)[None, :]
    high += in_high * tl.load(kernel + BC // 2)[None, :]
    return low, high


@triton.jit
def gated_map(
    u,
    f,
    first_token,
    kernel_ptr,
    rows,
    row_inside,
    is_patch,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Return ``v`` of eq. 4 for ``BM`` tokens, and their u.

    In ``v`` prefix tokens and rows past the end give 0. ``u`` is loaded after the convolution,
    during which its registers are better used.
    """
    v = depthwise(f, first_token, kernel_ptr, rows, H, W, P, BM, BC, False, UNROLL)
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
def normal_cdf(y):
    """Return the standard normal distribution function, by which GELU multiplies y."""
    return 0.5 * (1.0 + tl.erf(y * 0.7071067811865476))


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
