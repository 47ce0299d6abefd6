"""Backward through dropout, GELU and the 1x1 convolution (eq. 4, 5)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.depthwise import tile_tokens
from fastht.ops.triton.mix import dropout_scale, gated_map, normal, square_weight
from fastht.ops.triton.products import multiply


@triton.jit(do_not_specialize=["N", "P", "H", "W", "num_tiles", "threshold"])
def point_backward_kernel(
    dz,  # [B, N, BC]
    u,
    f,
    kernels,
    w_point,
    point_bias,
    seed,
    z,  # [B, N, BC] the input of the up-projection, for its weight gradient
    dv,  # [B, N, BC] gradient of v; of u for prefix tokens
    d_point,  # [B * num_tiles, BC, BC] partial sums of the 1x1 weight's gradient
    d_point_bias,  # [B * num_tiles, BC]
    N,
    P,
    H,
    W,
    num_tiles,
    threshold,
    inverse,
    C: tl.constexpr,
    BC: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
    PIXELS: tl.constexpr,
    DROPOUT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Go from the gradient of the up-projection's input back to that of ``v``.

    ``v`` is computed again from ``u``: 49 multiplications a number against a tensor kept from
    the forward pass.
    """
    pid = tl.program_id(0)
    b = pid // num_tiles
    tile = pid % num_tiles
    c = tl.arange(0, BC)
    rows, row_inside, is_patch = tile_tokens(tile, N, P, BM, PIXELS)
    dtype = w_point.dtype.element_ty

    image = b.to(tl.int64) * N * BC
    offset = rows[:, None] * BC + c[None, :]
    kernel = kernels + b.to(tl.int64) * 50 * BC
    v, s = gated_map(
        u, f, b.to(tl.int64) * N, kernel, tile, rows, row_inside, is_patch, H, W, P,
        BM, BC, UNROLL, PIXELS,
    )  # fmt: skip
    v = v.to(dtype)
    across = square_weight(w_point, BC, True)
    bias = tl.load(point_bias + c, mask=c < C, other=0.0).to(tl.float32)
    y = v.to(tl.float32) + multiply(v, across, PRECISION) + bias[None, :]
    y = tl.where(is_patch[:, None], y, s)

    cdf, density = normal(y, dtype.primitive_bitwidth == 16)
    active = y * cdf
    upstream = tl.load(dz + image + offset, mask=row_inside[:, None], other=0.0)
    dy = upstream.to(tl.float32) * (cdf + y * density)
    if DROPOUT:
        if threshold > 0:  # a condition for the sake of the products: see gated_map
            token = b.to(tl.int64) * N + rows
            kept = dropout_scale(tl.load(seed), token, threshold, inverse, C, BC)
            active *= kept
            dy *= kept
    if WEIGHTS:
        tl.store(z + image + offset, active.to(dtype), mask=row_inside[:, None])
    dy_patch = tl.where(is_patch[:, None], dy, 0.0)
    rounded = dy_patch.to(dtype)
    if WEIGHTS:
        at = pid.to(tl.int64) * BC
        i = tl.arange(0, BC)
        if BC * dtype.primitive_bitwidth <= 1024:
            partial = multiply(tl.trans(rounded), v, PRECISION)
            tl.store(d_point + at * BC + i[:, None] * BC + i[None, :], partial)
        else:
            # The whole square does not fit into registers: it is made in strips, whose rows come
            # back through the place of dv.
            tl.store(dv + image + offset, rounded, mask=row_inside[:, None])
            tl.debug_barrier()
            for start in range(0, BC, 32):
                o = start + tl.arange(0, 32)
                strip = tl.load(
                    dv + image + rows[None, :] * BC + o[:, None], mask=is_patch[None, :], other=0.0
                )
                partial = multiply(strip, v, PRECISION)
                tl.store(d_point + at * BC + o[:, None] * BC + i[None, :], partial)
            tl.debug_barrier()
    if SUMS:
        tl.store(d_point_bias + pid.to(tl.int64) * BC + c, tl.sum(dy_patch, axis=0))
    point = square_weight(w_point, BC, False)
    through = multiply(rounded, point, PRECISION)
    tl.store(dv + image + offset, (dy + through).to(dtype), mask=row_inside[:, None])
