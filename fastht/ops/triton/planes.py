"""How the kernels read a bottleneck map channel by channel: two planes of half of the channels.

Two 16-bit channels lie in one 32-bit word, so one load and no conversion gives both: a bfloat16 is
the upper half of its float32. The even channels are one plane then, the odd ones the other. In
float32 the planes are the lower and the upper half of the channels. Kernels that are multiplied
with planes lie in memory plane after plane.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plane_pointer(map_ptr, token, BC: tl.constexpr):
    """Return a pointer to a token of a map ``[tokens, BC]``, of words where numbers are 16 bit.

    The next token is ``BC // 2`` words or ``BC`` numbers further on; Triton 3.4 can take no such
    constant from a function.
    """
    if map_ptr.dtype.element_ty.primitive_bitwidth == 16:
        pointer = map_ptr.to(tl.pointer_type(tl.int32)) + token * (BC // 2)
    else:
        pointer = map_ptr + token * BC
    return pointer


@triton.jit
def load_planes(pointer, mask, map_ptr, BC: tl.constexpr):
    """Load both planes as float32; ``pointer`` is one of planes to numbers of the lower one."""
    if map_ptr.dtype.element_ty.primitive_bitwidth == 16:
        word = tl.load(pointer, mask=mask, other=0)
        if map_ptr.dtype.element_ty == tl.bfloat16:
            low = (word << 16).to(tl.float32, bitcast=True)
            high = (word & -65536).to(tl.float32, bitcast=True)
        else:
            low = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
            high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        low = tl.load(pointer, mask=mask, other=0.0)
        high = tl.load(pointer + BC // 2, mask=mask, other=0.0)
    return low, high


@triton.jit
def merge_planes(low, high, map_ptr, BC: tl.constexpr):
    """Return ``[rows, BC]`` of two planes, in the order of the channels."""
    both = tl.join(low, high)
    if map_ptr.dtype.element_ty.primitive_bitwidth != 16:
        both = tl.permute(both, (0, 2, 1))
    return tl.reshape(both, (low.shape[0], BC))


@triton.jit
def within(index, size):
    """Tell where ``0 <= index < size``, in one comparison: a negative number is a large one."""
    return index.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)
