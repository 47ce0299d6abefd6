"""Forward, second launch over the tokens: gated convolutions, up-projection (eq. 4, 5)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.depthwise import tile_tokens
from fastht.ops.triton.mix import dropout_scale, gated_map, normal, square_weight
from fastht.ops.triton.products import multiply
from fastht.ops.triton.tokens import add_dealt, fetch_ahead


@triton.jit(do_not_specialize=["N", "P", "H", "W", "num_tiles", "threshold"])
def up_kernel(
    x,
    u,
    f,  # the filtered map, laid out as u; u itself unless the filter is a full one
    w_up,
    up_bias,
    kernels,
    w_point,
    point_bias,
    seed,
    out,
    N,
    P,
    H,
    W,
    D,
    num_tiles,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_ob,
    stride_on,
    stride_od,
    threshold,
    inverse,
    C: tl.constexpr,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    EVEN_D: tl.constexpr,
    UNROLL: tl.constexpr,
    PIXELS: tl.constexpr,
    AHEAD: tl.constexpr,
    ACROSS: tl.constexpr,
    DROPOUT: tl.constexpr,
    REBUILD: tl.constexpr,
    PREFETCH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Finish ``BM`` tokens of one image: the bottleneck in registers, then the features.

    With ``REBUILD``, ``x`` is what this kernel once wrote, and ``out`` becomes what it was made
    of: the update, which is the same to the bit, is taken away again.

    ``AHEAD`` features of the tokens are asked for before the convolution, and ``ACROSS`` warps
    share the features of a product: see :mod:`fastht.ops.triton.tokens`; 0 does without.
    """
    pid = tl.program_id(0)
    b = pid // num_tiles
    tile = pid % num_tiles
    c = tl.arange(0, BC)
    rows, row_inside, is_patch = tile_tokens(tile, N, P, BM, PIXELS)
    dtype = w_up.dtype.element_ty
    if AHEAD:
        fetch_ahead(x + b.to(tl.int64) * stride_xb, rows, N, D, stride_xn, stride_xd, AHEAD)

    kernel = kernels + b.to(tl.int64) * 50 * BC
    v, s = gated_map(
        u, f, b.to(tl.int64) * N, kernel, tile, rows, row_inside, is_patch, H, W, P,
        BM, BC, UNROLL, PIXELS,
    )  # fmt: skip
    point = square_weight(w_point, BC, True)
    bias = tl.load(point_bias + c, mask=c < C, other=0.0).to(tl.float32)
    y = v + multiply(v.to(dtype), point, PRECISION) + bias[None, :]
    y = tl.where(is_patch[:, None], y, s)
    cdf, _ = normal(y, dtype.primitive_bitwidth == 16)
    z = y * cdf
    if DROPOUT:
        if threshold > 0:  # a condition for the sake of the product: see gated_map
            token = b.to(tl.int64) * N + rows
            z *= dropout_scale(tl.load(seed), token, threshold, inverse, C, BC)
    z = z.to(dtype)

    if ACROSS:
        add_dealt(
            x + b.to(tl.int64) * stride_xb, out + b.to(tl.int64) * stride_ob, w_up, up_bias, z,
            rows, N, D, stride_xn, stride_xd, stride_on, stride_od,
            BC, BM, BD, ACROSS, EVEN_D, REBUILD, PRECISION,
        )  # fmt: skip
        return
    x_rows = x + b.to(tl.int64) * stride_xb + rows.to(tl.int64) * stride_xn
    out_rows = out + b.to(tl.int64) * stride_ob + rows.to(tl.int64) * stride_on
    # x feeds no product, so Triton prefetches it only where it is told to.
    for start in tl.range(0, D, BD, num_stages=PREFETCH):
        d = start + tl.arange(0, BD)
        inside = row_inside[:, None]
        if EVEN_D:
            weight = tl.load(w_up + d[:, None] * BC + c[None, :])
            shift = tl.load(up_bias + d)
        else:
            inside = inside & (d < D)[None, :]
            weight = tl.load(w_up + d[:, None] * BC + c[None, :], mask=(d < D)[:, None], other=0.0)
            shift = tl.load(up_bias + d, mask=d < D, other=0.0)
        residual = tl.load(x_rows[:, None] + d[None, :] * stride_xd, mask=inside, other=0.0)
        update = multiply(z, tl.trans(weight), PRECISION)
        change = update + shift.to(tl.float32)[None, :]
        total = residual.to(tl.float32)
        total = total - change if REBUILD else total + change
        tl.store(
            out_rows[:, None] + d[None, :] * stride_od,
            total.to(out.dtype.element_ty),
            mask=inside,
        )
