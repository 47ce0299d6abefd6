"""The exponential function, without the digits that its usual constant lacks."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """Return e to the power of x; of float32 numbers, as 2 to the power of ``x log2(e)``.

    So does Triton's own, whose log2(e) is float32's, too small by 1.3e-8 of itself: its exponents
    are those of a smaller scale, in every pair. Here the constant has two parts. The second is
    under half a place of the first, so that only a sum rounded once has it.
    """
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        y = tl.exp2(tl.fma(x, 1.4426950216293335, x * 1.925963033500011e-08))
    return y
