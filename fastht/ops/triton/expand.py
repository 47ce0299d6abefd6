"""Backward, last launch over the tokens: the gradient leaves the bottleneck (eq. 1)."""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.down import token_rows
from fastht.ops.triton.products import add_product, multiply


@triton.jit(do_not_specialize=["N", "total_tokens", "tiles_per_group", "slices", "parts"])
def expand_kernel(
    x,
    dout,
    du,
    z,
    stats,
    row_means,
    w_down,
    norm_weight,
    gamma,
    gammax,
    dx,
    d_weights,  # [groups, 3, BC, D]: du^T x, du^T x_hat, z^T dout
    d_up_bias,  # [groups, D]
    d_down_bias,  # [groups, BC]
    du_sums,  # [parts, BC] sums of du, by those who wrote it
    N,
    D,
    total_tokens,
    tiles_per_group,
    slices,
    parts,
    stride_xb,
    stride_xn,
    stride_xd,
    stride_gb,
    stride_gn,
    stride_gd,
    stride_db,
    stride_dn,
    stride_dd,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    EVEN_D: tl.constexpr,
    FLAT: tl.constexpr,
    INPUT: tl.constexpr,
    WEIGHTS: tl.constexpr,
    TURNED: tl.constexpr,
    PREFETCH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write dx, and the sums from which all gradients of width D follow (identity 6).

    A program has a slice of features and a group of token tiles, in order, so x and dout are
    read once for everything and the partial sums need no atomics. Programs of one group are
    neighbours: they share du and z in the L2 cache. dx may take the place of x, which a program
    has read where it writes, and no other program reads.
    """
    pid = tl.program_id(0)
    group = pid // slices
    part = pid % slices
    c = tl.arange(0, BC)
    d = part * BD + tl.arange(0, BD)
    d_inside = d < D
    dtype = w_down.dtype.element_ty

    if INPUT:
        weight = tl.load(w_down + c[:, None] * D + d[None, :], mask=d_inside[None, :], other=0.0)
        skip = tl.load(gammax + d, mask=d_inside, other=0.0).to(tl.float32)
        norm = tl.load(gamma + d, mask=d_inside, other=0.0).to(tl.float32)
        norm *= tl.load(norm_weight + d, mask=d_inside, other=0.0).to(tl.float32)
    zero = tl.zeros((BD, BC), tl.float32) if TURNED else tl.zeros((BC, BD), tl.float32)
    by_x, by_norm, by_out = zero, zero, zero
    # Added up over the rows at the end: in the loop that would be shuffles and barriers.
    sum_out = tl.zeros((BM, BD), tl.float32)

    last = tl.minimum((group + 1) * tiles_per_group, tl.cdiv(total_tokens, BM))
    # Told, Triton prefetches what feeds no product as well: the rows' numbers.
    for index in tl.range(group * tiles_per_group, last, num_stages=PREFETCH):
        token = index * BM + tl.arange(0, BM)
        row_inside = token < total_tokens
        inside = row_inside[:, None]
        if not EVEN_D:
            inside = inside & d_inside[None, :]
        x_at = token_rows(token, N, stride_xb, stride_xn, FLAT)
        x_at = (x + x_at)[:, None] + d[None, :] * stride_xd
        g_at = token_rows(token, N, stride_gb, stride_gn, FLAT)
        g_at = (dout + g_at)[:, None] + d[None, :] * stride_gd
        token = token.to(tl.int64)
        raw = tl.load(x_at, mask=inside, other=0.0)
        upstream = tl.load(g_at, mask=inside, other=0.0)
        narrow = token[:, None] * BC + c[None, :]
        grad = tl.load(du + narrow, mask=row_inside[:, None], other=0.0)
        mean = tl.load(stats + token * 2, mask=row_inside, other=0.0)
        rstd = tl.load(stats + token * 2 + 1, mask=row_inside, other=0.0)
        x_hat = (raw.to(tl.float32) - mean[:, None]) * rstd[:, None]
        if INPUT:
            first = tl.load(row_means + token * 2, mask=row_inside, other=0.0)
            second = tl.load(row_means + token * 2 + 1, mask=row_inside, other=0.0)
            dh = multiply(grad, weight, PRECISION)
            total = upstream.to(tl.float32) + dh * skip[None, :]
            total += rstd[:, None] * (dh * norm[None, :] - first[:, None] - x_hat * second[:, None])
            d_at = token_rows(token, N, stride_db, stride_dn, FLAT)
            d_at = (dx + d_at)[:, None] + d[None, :] * stride_dd
            tl.store(d_at, total.to(dx.dtype.element_ty), mask=inside)
        if WEIGHTS:
            active = tl.load(z + narrow, mask=row_inside[:, None], other=0.0)
            # This one first: Triton waits for the last product alone, and with it for those
            # before; left in flight, this one would read a slot that is being refilled.
            by_out = _add_outer(active, upstream.to(dtype), by_out, TURNED, PRECISION)
            by_x = _add_outer(grad, raw.to(dtype), by_x, TURNED, PRECISION)
            by_norm = _add_outer(grad, x_hat.to(dtype), by_norm, TURNED, PRECISION)
            sum_out += upstream.to(tl.float32)

    if WEIGHTS:
        at = group.to(tl.int64) * 3 * BC * D + c[:, None] * D + d[None, :]
        if TURNED:
            by_x, by_norm, by_out = tl.trans(by_x), tl.trans(by_norm), tl.trans(by_out)
        tl.store(d_weights + at, by_x, mask=d_inside[None, :])
        tl.store(d_weights + at + BC * D, by_norm, mask=d_inside[None, :])
        tl.store(d_weights + at + 2 * BC * D, by_out, mask=d_inside[None, :])
        tl.store(d_up_bias + group.to(tl.int64) * D + d, tl.sum(sum_out, axis=0), mask=d_inside)
        if part == 0:
            total = _share(du_sums, group, tl.num_programs(0) // slices, parts, BC)
            tl.store(d_down_bias + group.to(tl.int64) * BC + c, total)


@triton.jit
def _add_outer(narrow, wide, acc, TURNED: tl.constexpr, PRECISION: tl.constexpr):
    """Return ``acc + narrow^T @ wide``, ``[BC, BD]``; or ``TURNED`` its transpose.

    On Hopper a warp group's product (wgmma) has 64 rows or more; one of fewer goes through the
    products of single warps, at half the speed, whose operands come from registers. So of 16-bit
    numbers the wider of the two should be the rows. Of float32 numbers rather the one that is
    under 64: from shared memory a warp group takes only those that follow one another along the
    sum, and these would have to be turned around one by one.
    """
    if TURNED:
        acc = add_product(tl.trans(wide), narrow, acc, PRECISION)
    else:
        acc = add_product(tl.trans(narrow), wide, acc, PRECISION)
    return acc


@triton.jit
def _share(sums, group, groups, parts, BC: tl.constexpr):
    """Return the sum of one group's share of ``parts`` rows."""
    c = tl.arange(0, BC)
    lane = tl.arange(0, 16)
    count = tl.cdiv(parts, groups)
    last = tl.minimum((group + 1) * count, parts)
    total = tl.zeros((16, BC), tl.float32)
    for start in range(group * count, last, 16):
        part = (start + lane).to(tl.int64)
        at = sums + part[:, None] * BC + c[None, :]
        total += tl.load(at, mask=(part < last)[:, None], other=0.0)
    return tl.sum(total, axis=0)
