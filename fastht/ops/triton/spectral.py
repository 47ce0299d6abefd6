"""The full spectral filter as small matrix products: a separable real DFT (eq. 2).

``irfft2(rfft2(s) * A)`` over a map of H x W patches, without an FFT library. The transform
along W is a sum over columns for one frequency at a time; the one along H is a product with the
``H x H`` cosine and sine matrices, made in registers; between the two launches the map lies in a
scratch tensor ``[B, H, KP, BC]``, whose second half of KP holds the imaginary parts. The filter
is real, so the operator is its own transpose, and the backward pass runs the same two kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.mix_backward import write_sums
from fastht.ops.triton.products import add_product, multiply

QUARTER_TURN = tl.constexpr(1.5707963267948966)


@triton.jit
def cos_sin(numerator, period):
    """Return cosine and sine of ``2 pi * numerator / period`` for integers >= 0.

    The nearest quarter turn is taken off in integers, where that is exact; over the eighth of a
    turn that remains, Taylor's series to the tenth order is exact in float32. An angle rounded
    to float32 would cost three bits, and the library's functions bring a local array with them.
    """
    m = numerator % period
    quarter = (8 * m + period) // (2 * period)
    angle = (4 * m - quarter * period).to(tl.float32) * (QUARTER_TURN / period)
    q = angle * angle
    cos = 1.0 + q * (-0.5 + q * (1 / 24 + q * (-1 / 720 + q * (1 / 40320 + q * (-1 / 3628800)))))
    sin = angle * (1.0 + q * (-1 / 6 + q * (1 / 120 + q * (-1 / 5040 + q * (1 / 362880)))))
    swapped = quarter % 2 == 1
    first, second = tl.where(swapped, sin, cos), tl.where(swapped, cos, sin)
    negative_cos = (quarter % 4 == 1) | (quarter % 4 == 2)
    negative_sin = (quarter % 4 == 2) | (quarter % 4 == 3)
    return tl.where(negative_cos, -first, first), tl.where(negative_sin, -second, second)


@triton.jit
def _spectrum(
    image_ptr, kx, H, W, P, cos_h, sin_h,
    HP: tl.constexpr, BC: tl.constexpr, BB: tl.constexpr, channel, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return real and imaginary part, ``[HP, BB]``, of column ``kx`` of the 2-D transform."""
    h = tl.arange(0, HP)
    real = tl.zeros((HP, BB), tl.float32)
    imag = tl.zeros((HP, BB), tl.float32)
    for w in range(W):
        cos, sin = cos_sin(kx * w, W)
        at = image_ptr + (P + h * W + w)[:, None] * BC + channel[None, :]
        value = tl.load(at, mask=(h < H)[:, None], other=0.0).to(tl.float32)
        real += value * cos
        imag -= value * sin
    up = multiply(cos_h, real, PRECISION)
    up = add_product(sin_h, imag, up, PRECISION)
    down = multiply(cos_h, imag, PRECISION)
    down = add_product(-sin_h, real, down, PRECISION)
    return up, down


@triton.jit(do_not_specialize=["B", "N", "P", "H", "W", "batch_group"])
def analyse_kernel(
    source,  # [B, N, BC] the map to filter
    other,  # [B, N, BC] the map that the forward pass filtered, where FILTER_GRADIENT
    filter_ptr,  # [C, H, W // 2 + 1]
    scratch,  # [B, H, KP, BC]
    d_filter,  # [groups, C, H, W // 2 + 1]
    B,
    N,
    P,
    H,
    W,
    batch_group,
    C: tl.constexpr,
    BC: tl.constexpr,
    BB: tl.constexpr,
    HP: tl.constexpr,
    KP: tl.constexpr,
    FILTER_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Transform, filter and transform back along H, for one frequency along W.

    A program has a frequency, a block of channels and a group of images, over which it adds up
    the filter's gradient ``Re(conj(S) * dF)`` in their order.
    """
    kx = tl.program_id(0)
    channel = tl.program_id(1) * BB + tl.arange(0, BB)
    group = tl.program_id(2)
    half = W // 2 + 1
    h = tl.arange(0, HP)
    inside_h = h < H
    cos_h, sin_h = cos_sin(h[:, None] * h[None, :], H)
    square = inside_h[:, None] & inside_h[None, :]
    cos_h = tl.where(square, cos_h, 0.0)
    sin_h = tl.where(square, sin_h, 0.0)
    # A frequency that is not its own mirror image stands for two in the half plane.
    twice = tl.where((kx == 0) | (kx * 2 == W), 1.0, 2.0) / (H * W)
    at_filter = (channel[None, :] * H + h[:, None]) * half + kx
    inside_filter = inside_h[:, None] & (channel[None, :] < C)
    weight = tl.load(filter_ptr + at_filter, mask=inside_filter, other=0.0).to(tl.float32)
    gradient = tl.zeros((HP, BB), tl.float32)
    for index in range(group * batch_group, tl.minimum((group + 1) * batch_group, B)):
        b = tl.cast(index, tl.int64)
        image = b * N * BC
        real, imag = _spectrum(
            source + image, kx, H, W, P, cos_h, sin_h, HP, BC, BB, channel, PRECISION
        )
        if FILTER_GRADIENT:
            real2, imag2 = _spectrum(
                other + image, kx, H, W, P, cos_h, sin_h, HP, BC, BB, channel, PRECISION
            )
            gradient += twice * (real * real2 + imag * imag2)
        real *= weight * twice
        imag *= weight * twice
        back_real = multiply(cos_h, real, PRECISION)
        back_real = add_product(-sin_h, imag, back_real, PRECISION)
        back_imag = multiply(cos_h, imag, PRECISION)
        back_imag = add_product(sin_h, real, back_imag, PRECISION)
        at = scratch + ((b * H + h[:, None]) * KP + kx) * BC + channel[None, :]
        tl.store(at, back_real, mask=inside_h[:, None])
        tl.store(at + (KP // 2) * BC, back_imag, mask=inside_h[:, None])
    if FILTER_GRADIENT:
        at = d_filter + tl.cast(group, tl.int64) * C * H * half + at_filter
        tl.store(at, gradient, mask=inside_filter)


@triton.jit(do_not_specialize=["N", "P", "H", "W"])
def synthesise_kernel(
    scratch,
    target,  # [B, N, BC] the filtered map, or du where BACKWARD
    dv,
    u_norm,
    sums,
    scale_ptr,
    row_means,
    du_sums,  # [B * H, BC] sums of du over a row of patches
    N,
    P,
    H,
    W,
    D,
    BC: tl.constexpr,
    WP: tl.constexpr,
    KP: tl.constexpr,
    BACKWARD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Transform one row of patches back along W; where BACKWARD, add the skip and finish du."""
    row = tl.program_id(0) % H
    b = (tl.program_id(0) // H).to(tl.int64)
    c = tl.arange(0, BC)
    w = tl.arange(0, WP)
    k = tl.arange(0, KP)
    imaginary = k >= KP // 2
    kx = tl.where(imaginary, k - KP // 2, k)
    inside = (w < W)[:, None] & (kx < W // 2 + 1)[None, :]
    cos, sin = cos_sin(w[:, None] * kx[None, :], W)
    matrix = tl.where(inside, tl.where(imaginary[None, :], -sin, cos), 0.0)
    lines = tl.load(
        scratch + ((b * H + row) * KP + k)[:, None] * BC + c[None, :],
        mask=(kx < W // 2 + 1)[:, None],
        other=0.0,
    )
    value = multiply(matrix, lines, PRECISION)
    in_row = w < W
    token = b * N + P + row * W + w
    offset = token[:, None] * BC + c[None, :]
    if BACKWARD:
        value += tl.load(dv + offset, mask=in_row[:, None], other=0.0).to(tl.float32)
    value = value.to(target.dtype.element_ty)
    tl.store(target + offset, value, mask=in_row[:, None])
    if BACKWARD:
        row_sum = tl.load(sums + c)
        write_sums(
            value.to(tl.float32), u_norm, offset, token, in_row, row_sum,
            tl.load(scale_ptr), row_means, du_sums + tl.program_id(0).to(tl.int64) * BC, D, BC,
        )  # fmt: skip
