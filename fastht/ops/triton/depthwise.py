"""The depthwise convolution of an image's bottleneck map with its own 7x7 kernel (eq. 4).

Everything here is a device function. The map lies in memory as ``[N, BC]`` rows, channels
contiguous, where ``BC`` is C padded to a power of two; padded channels hold zeros, so only the
edges (parameters in, gradients out) mask them.

``PIXELS`` is how many neighbours of a row of patches share what is loaded of the map. Alone, a
pixel loads, converts and masks 49 numbers a channel. A pair, which needs a grid of even width, sees
eight columns of the map with its seven taps: 28 numbers a pixel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import (
    load_planes,
    merge_planes,
    plane_pointer,
    within,
)


@triton.jit
def tile_tokens(tile, N, P, BM: tl.constexpr, PIXELS: tl.constexpr):
    """Return the tokens of a tile of an image, which of them it has, and which are patches.

    Pairs begin at even rows of a tile: where the prefix tokens are an odd number, the first tile
    has a row before the first of them.
    """
    rows = tile * BM + tl.arange(0, BM)
    if PIXELS == 2:
        rows -= P % 2
        inside = within(rows, N)
    else:
        inside = rows < N
    return rows, inside, inside & (rows >= P)


@triton.jit
def depthwise(
    map_ptr,
    first_token,
    kernel_ptr,
    tile,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    FLIP: tl.constexpr,
    UNROLL: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Convolve the map of one image with its own 7x7 kernel, for the tokens of a tile.

    ``FLIP`` gives the transposed convolution, without the bias. The outer loop stays a loop at run
    time: unrolling all 49 taps spills registers on every architecture, and where 7 do, ``UNROLL``
    is off; of pairs the columns are always unrolled.

    Returns ``[BM, BC]`` float32, the same bits whatever ``PIXELS`` is. Rows that are no patches
    mean nothing, but what they read is inside the map as well.
    """
    if PIXELS == 2:
        value = _pairs(map_ptr, first_token, kernel_ptr, tile, H, W, P, BM, BC, FLIP)
    else:
        value = _alone(map_ptr, first_token, kernel_ptr, tile, H, W, P, BM, BC, FLIP, UNROLL)
    return value


@triton.jit
def _alone(
    map_ptr,
    first_token,
    kernel_ptr,
    tile,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    FLIP: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Convolve with a pixel a row of the tile."""
    pixel = tile * BM + tl.arange(0, BM) - P
    py = pixel // W
    px = pixel % W
    c = tl.arange(0, BC // 2)
    step: tl.constexpr = BC // 2 if map_ptr.dtype.element_ty.primitive_bitwidth == 16 else BC
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
    in_low, in_high = _column(row, j, px, row_inside, W, map_ptr, BC)
    kernel = kernel_row + ((6 - j) if FLIP else j) * BC
    low += in_low * tl.load(kernel)[None, :]
    high += in_high * tl.load(kernel + BC // 2)[None, :]
    return low, high


@triton.jit
def _pairs(
    map_ptr,
    first_token,
    kernel_ptr,
    tile,
    H,
    W,
    P,
    BM: tl.constexpr,
    BC: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Convolve with two neighbouring pixels in every two rows of the tile."""
    pixel = tile * BM + 2 * tl.arange(0, BM // 2) - P % 2 - P  # the first of the two
    py = pixel // W
    px = pixel % W
    c = tl.arange(0, BC // 2)
    step: tl.constexpr = BC // 2 if map_ptr.dtype.element_ty.primitive_bitwidth == 16 else BC
    image = plane_pointer(map_ptr, first_token, BC)
    low0 = tl.zeros((BM // 2, BC // 2), tl.float32)
    high0, low1, high1 = low0, low0, low0
    for i in range(7):
        y = py + (i - 3)
        row_inside = within(y, H)
        row = image + ((P + y * W + px) * step)[:, None] + c[None, :]
        kernel_row = kernel_ptr + ((6 - i) if FLIP else i) * (7 * BC) + c
        in_low, in_high = _column(row, 0, px, row_inside, W, map_ptr, BC)
        for j in tl.static_range(7):
            kernel = kernel_row + ((6 - j) if FLIP else j) * BC
            tap_low = tl.load(kernel)[None, :]
            tap_high = tl.load(kernel + BC // 2)[None, :]
            low0 += in_low * tap_low
            high0 += in_high * tap_high
            # What the next tap is over for the first pixel, this one is for the second.
            in_low, in_high = _column(row, j + 1, px, row_inside, W, map_ptr, BC)
            low1 += in_low * tap_low
            high1 += in_high * tap_high
    if not FLIP:
        bias = kernel_ptr + 49 * BC + c
        bias_low = tl.load(bias)[None, :]
        bias_high = tl.load(bias + BC // 2)[None, :]
        low0, high0 = low0 + bias_low, high0 + bias_high
        low1, high1 = low1 + bias_low, high1 + bias_high
    first = merge_planes(low0, high0, map_ptr, BC)
    second = merge_planes(low1, high1, map_ptr, BC)
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (BM, BC))


@triton.jit
def _column(row, j, px, row_inside, W, map_ptr, BC: tl.constexpr):
    """Load the map ``j - 3`` columns beside the pixels."""
    inside = row_inside & within(px + (j - 3), W)
    step: tl.constexpr = BC // 2 if map_ptr.dtype.element_ty.primitive_bitwidth == 16 else BC
    return load_planes(row + (j - 3) * step, inside[:, None], map_ptr, BC)
