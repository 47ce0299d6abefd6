"""Backward through the depthwise bank: from the gradient of v to that of u (eq. 4)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.depthwise import depthwise, tile_tokens


@triton.jit
def write_sums(
    du, u_norm, offset, token, row_inside, row_sum, scale, row_means, du_sum, D, BC: tl.constexpr
):
    """Store what later launches need of some rows of du: their sum, and two means over D.

    The means are those of the LayerNorm's backward, as sums over C: ``mean(dh_norm) = du .
    row_sum / D`` and ``mean(dh_norm * x_hat) = du . u_norm / D`` (identity 5 of the design).
    """
    counted = tl.where(row_inside[:, None], du, 0.0)
    tl.store(du_sum + tl.arange(0, BC), tl.sum(counted, axis=0))
    saved = tl.load(u_norm + offset, mask=row_inside[:, None], other=0.0).to(tl.float32)
    first = tl.sum(du * row_sum[None, :], axis=1) * (scale / D)
    second = tl.sum(du * saved, axis=1) * (scale / D)
    at = row_means + token[:, None] * 2 + tl.arange(0, 2)[None, :]
    tl.store(at, tl.join(first, second), mask=row_inside[:, None])


@triton.jit(do_not_specialize=["N", "P", "H", "W", "num_tiles"])
def mix_backward_kernel(
    dv,
    u_norm,
    kernels,
    constant,
    sums,
    scale_ptr,
    du,  # [B, N, BC] gradient of u; with a full filter that of f, and of u for prefix tokens
    row_means,  # [B, N, 2]
    du_sums,  # [B * num_tiles (and more), BC] sums of du over the rows that are finished here
    N,
    P,
    H,
    W,
    D,
    num_tiles,
    BC: tl.constexpr,
    BM: tl.constexpr,
    UNROLL: tl.constexpr,
    PIXELS: tl.constexpr,
    FULL: tl.constexpr,
    GATED: tl.constexpr,
):
    """Convolve ``dv`` with the flipped bank, and add the gate's path and the skip."""
    pid = tl.program_id(0)
    b = (pid // num_tiles).to(tl.int64)
    tile = pid % num_tiles
    c = tl.arange(0, BC)
    rows, row_inside, is_patch = tile_tokens(tile, N, P, BM, PIXELS)

    kernel = kernels + b * 50 * BC
    spread = depthwise(dv, b * N, kernel, tile, H, W, P, BM, BC, True, UNROLL, PIXELS)
    if GATED:
        spread += tl.load(constant + b * BC + c)[None, :]
    offset = b * N * BC + rows[:, None] * BC + c[None, :]
    upstream = tl.load(dv + offset, mask=row_inside[:, None], other=0.0).to(tl.float32)
    if FULL:  # the filter's backward has yet to come, then the skip
        total = tl.where(is_patch[:, None], spread, upstream)
        finished = row_inside & (rows < P)
    else:
        total = upstream + tl.where(is_patch[:, None], spread, 0.0)
        finished = row_inside
    total = total.to(du.dtype.element_ty)
    tl.store(du + offset, total, mask=row_inside[:, None])
    row_sum = tl.load(sums + c)
    write_sums(
        total.to(tl.float32), u_norm, offset, b * N + rows, finished, row_sum,
        tl.load(scale_ptr), row_means, du_sums + pid.to(tl.int64) * BC, D, BC,
    )  # fmt: skip
