"""The sweeps of :mod:`fastht.losses.sweeps` as Triton kernels."""

from fastht.losses.triton.sweeps import backward, forward

__all__ = ["backward", "forward"]
