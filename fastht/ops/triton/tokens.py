"""How the last forward launch comes by its tokens, and writes them (eq. 5).

Everything here is a device function. A product's numbers lie in a thread as the tensor cores leave
them: two neighbouring features, and the next two eight features on. Tokens are read and written
sixteen bytes at a time. So either the numbers change threads, through shared memory, or the
features of the product change places: see :func:`add_dealt`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastht.ops.triton.planes import within
from fastht.ops.triton.products import COMPILED, multiply

# Threads are dealt out to neighbouring features first, and then to the dimensions in their order
# from the last; up to Triton 3.6 from the first.
_LAST_FIRST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7))
_FETCHED = tl.constexpr(64)  # bytes that a prefetch brings: what it is by default, of a line of 128


@triton.jit
def fetch_ahead(x, rows, N, D, stride_n, stride_d, WIDTH: tl.constexpr):
    """Ask for the first ``WIDTH`` features of an image's tokens, and do not wait for them.

    They come into the L2 cache while the program convolves, which asks nothing of the memory:
    programs that start together would else all wait for it together afterwards.

    Rows that the image does not have ask for its first or last token again. It is a hint to the
    chip, from which no value depends.
    """
    if COMPILED:  # the interpreter has no cache to fill
        each: tl.constexpr = _FETCHED // (x.dtype.element_ty.primitive_bitwidth // 8)
        there = tl.maximum(tl.minimum(rows, N - 1), 0)
        pointers = x + there.to(tl.int64)[:, None] * stride_n
        for start in tl.static_range(0, WIDTH, 8 * each):
            d = tl.minimum(start + tl.arange(0, 8) * each, D - 1)
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
                "=r,l",
                [pointers + d[None, :] * stride_d],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def add_dealt(
    x,
    out,
    w_up,
    up_bias,
    z,
    rows,
    N,
    D,
    stride_xn,
    stride_xd,
    stride_on,
    stride_od,
    BC: tl.constexpr,
    BM: tl.constexpr,
    BD: tl.constexpr,
    ACROSS: tl.constexpr,
    EVEN_D: tl.constexpr,
    REBUILD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Write an image's tokens and their update, without shared memory between the two.

    ``ACROSS`` warps stand beside one another in the product's features. Its column ``(j, w, q, r)``
    of ``[4, ACROSS, 4, 2]``, which thread ``q`` of a row has in warp ``w``, is feature
    ``(w, q, j, r)``: eight neighbours in a thread. The weights' rows are read in that order, so the
    rest is names: of the same numbers in the same threads. Where the compiler divides a product
    otherwise, the values are right and go through shared memory.

    ``x`` and ``out`` point to the image's first token. ``z`` is ``[BM, BC]`` in the products'
    format, ``rows`` are the tile's tokens, some of which the image may not have.
    """
    GROUP: tl.constexpr = 32 * ACROSS
    column = tl.arange(0, BD)
    dealt = (
        column // GROUP * GROUP
        + column // 8 % ACROSS * 32
        + column // 2 % 4 * 8
        + column % GROUP // (8 * ACROSS) * 2
        + column % 2
    )
    c = tl.arange(0, BC)
    row = tl.reshape(rows, (BM // 8, 1, 8, 1))
    if not _LAST_FIRST:
        row = tl.permute(row, (2, 1, 0, 3))
    there = within(row, N)
    beside = (tl.arange(0, BD // 32) * 32)[None, :, None, None]
    beside += tl.arange(0, 32)[None, None, None, :]
    x_at = x + row.to(tl.int64) * stride_xn + beside * stride_xd
    out_at = out + row.to(tl.int64) * stride_on + beside * stride_od
    for start in range(0, D, BD):
        d = start + dealt
        inside = there if EVEN_D else there & (start + beside < D)
        residual = tl.load(x_at + start * stride_xd, mask=inside, other=0.0)
        if EVEN_D:
            weight = tl.load(w_up + d[:, None] * BC + c[None, :])
            shift = tl.load(up_bias + start + column)
        else:
            weight = tl.load(w_up + d[:, None] * BC + c[None, :], mask=(d < D)[:, None], other=0.0)
            shift = tl.load(up_bias + start + column, mask=start + column < D, other=0.0)
        update = multiply(z, tl.trans(weight), PRECISION)
        update = tl.reshape(update, (BM // 8, 8, BD // GROUP, 4, ACROSS, 4, 2))
        if _LAST_FIRST:
            update = tl.permute(update, (0, 2, 4, 1, 5, 3, 6))
            update = tl.reshape(update, (BM // 8, BD // 32, 8, 32))
        else:
            update = tl.permute(update, (1, 2, 4, 0, 5, 3, 6))
            update = tl.reshape(update, (8, BD // 32, BM // 8, 32))
        change = update + tl.reshape(shift.to(tl.float32), (1, BD // 32, 1, 32))
        total = residual.to(tl.float32)
        total = total - change if REBUILD else total + change
        tl.store(out_at + start * stride_od, total.to(out.dtype.element_ty), mask=inside)
