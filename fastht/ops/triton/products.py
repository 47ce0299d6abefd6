"""Matrix products on tensor cores, to the digits that a call asks for.

How operands are multiplied, by the name that kernels are given as ``PRECISION``:

- ``"ieee"``: as they are. For 16-bit numbers, whose products tensor cores keep whole; float64.
- ``"tf32"``: as TensorFloat-32, to which the tensor cores cut them.
- ``"rounded"``: as the nearest TensorFloat-32. Cutting is twice as far off, and to one side.
- ``"split"``: with float32's digits, by three products of TensorFloat-32.
- ``"thirds"``: with float32's digits, by six products of bfloat16. They cost what those three do,
  and take operands from shared memory in either order, where TensorFloat-32's on Hopper have to
  follow one another along the sum.

Any other name is one of ``tl.dot``'s own.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_product(a, b, acc, PRECISION: tl.constexpr):
    """Return ``acc + a @ b``.

    Tensor cores cut their sums too, after every eight products: all of a long sum in one was off
    by eight times as much as PyTorch's on an H200. So where float32's digits count, the products
    of this tile have a sum of their own, which is added as float32 adds. (Triton's own tf32x3
    neither rounds its operands nor does this.)
    """
    if PRECISION == "split" or PRECISION == "thirds":
        acc += multiply(a, b, PRECISION)
    elif PRECISION == "rounded":
        acc = tl.dot(_rounded(a), _rounded(b), acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def multiply(a, b, PRECISION: tl.constexpr):
    """Return ``a @ b``; of float32 numbers' parts, all products but the least.

    The small ones come first: what is cut off a small sum is small.
    """
    if PRECISION == "split":
        a_high, a_low = split(a)
        b_high, b_low = split(b)
        value = tl.dot(a_low, b_high, input_precision="tf32")
        value = tl.dot(a_high, b_low, value, input_precision="tf32")
        value = tl.dot(a_high, b_high, value, input_precision="tf32")
    elif PRECISION == "thirds":
        a_high, a_middle, a_low = thirds(a)
        b_high, b_middle, b_low = thirds(b)
        value = tl.dot(a_middle, b_middle)
        value = tl.dot(a_low, b_high, value)
        value = tl.dot(a_high, b_low, value)
        value = tl.dot(a_middle, b_high, value)
        value = tl.dot(a_high, b_middle, value)
        value = tl.dot(a_high, b_high, value)
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
    high = _nearest_tf32(a)
    return high, a - high


@triton.jit
def thirds(a):
    """Return three bfloat16 numbers of eight bits each, which add up to a float32 number.

    As in :func:`split`, an infinity becomes NaN.
    """
    high = a.to(tl.bfloat16)
    rest = a - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)


@triton.jit
def _rounded(a):
    """Return the nearest TensorFloat-32; a NaN, whose bits may all be set, must not become 0."""
    return tl.where(a == a, _nearest_tf32(a), a)


@triton.jit
def _nearest_tf32(a):
    bits = a.to(tl.uint32, bitcast=True) + 0x1000
    return (bits & 0xFFFFE000).to(tl.float32, bitcast=True)
