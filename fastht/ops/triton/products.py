"""Matrix products on tensor cores, to the digits that a call asks for.

How operands are multiplied, by the name that kernels are given as ``PRECISION``:

- ``"ieee"``: as they are. For 16-bit numbers, whose products tensor cores keep whole; float64.
- ``"tf32"``: as TensorFloat-32, to which the tensor cores cut them.
- ``"rounded"``: as the nearest TensorFloat-32. Cutting is twice as far off, and to one side.
- ``"split"``: with float32's digits, by three products of TensorFloat-32.

Any other name is one of ``tl.dot``'s own.
"""

from __future__ import annotations

import triton
import triton.language as tl

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)  # the interpreter has no instructions


@triton.jit
def add_product(a, b, acc, PRECISION: tl.constexpr):
    """Return ``acc + a @ b``.

    Tensor cores cut their sums too, after every eight products: all of a long sum in one was off
    by eight times as much as PyTorch's on an H200. So where float32's digits count, the products
    of this tile have a sum of their own, which is added as float32 adds. (Triton's own tf32x3
    neither rounds its operands nor does this.)
    """
    if PRECISION == "split":
        acc += multiply(a, b, PRECISION)
    elif PRECISION == "rounded":
        acc = tl.dot(_rounded(a), _rounded(b), acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def settled(acc):
    """Return float32 sums as soon as all products so far have been added to them.

    Of a load that feeds products and something else as well, Triton keeps a slot too few: with
    products in flight at the end of a turn it would be refilled under them (3.9, on Hopper).
    Whoever uses the sums of the last product waits for it; this is a use that costs nothing.
    """
    if COMPILED:
        acc = tl.inline_asm_elementwise("", "=f,0", [acc], dtype=tl.float32, is_pure=True, pack=1)
    return acc


@triton.jit
def multiply(a, b, PRECISION: tl.constexpr):
    """Return ``a @ b``; of float32 numbers that are ``"split"``, all but the least product.

    The small products come first: what is cut off a small sum is small.
    """
    if PRECISION == "split":
        a_high, a_low = split(a)
        b_high, b_low = split(b)
        value = tl.dot(a_low, b_high, input_precision="tf32")
        value = tl.dot(a_high, b_low, value, input_precision="tf32")
        value = tl.dot(a_high, b_high, value, input_precision="tf32")
    elif PRECISION == "rounded":
        value = tl.dot(_rounded(a), _rounded(b), input_precision="tf32")
    else:
        value = tl.dot(a, b, input_precision=PRECISION)
    return value


@triton.jit
def split(a):
    """Return the nearest TensorFloat-32 of float32 numbers, and what it leaves over.

    That has 12 bits, of which a tensor core reads 11. To round it first would be no nearer: the
    bit that is cut is a tie. An infinity becomes NaN: what it leaves over is none less itself.
    """
    high = nearest_tf32(a)
    return high, a - high


@triton.jit
def _rounded(a):
    """Return the nearest TensorFloat-32; a NaN, whose bits may all be set, must not become 0."""
    return tl.where(a == a, nearest_tf32(a), a)


@triton.jit
def nearest_tf32(a):
    """Return the nearest TensorFloat-32 of float32 numbers, away from zero where two are."""
    bits = a.to(tl.uint32, bitcast=True) + 0x1000
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)
