"""Runs PTX, as nvcc and NVRTC make it, on a CPU: what a GPU would be given, less the last step.

The simulator of ``csrc/cuda/simulate.h`` runs a kernel's source with its own versions of the warp
instructions; this machine runs what the compiler made of the inline assembly. Layouts of mma,
ldmatrix and shfl are written a second time here, from the PTX ISA manual, on purpose.
"""

from .machine import Machine, Result
from .memory import Memory
from .program import Program, parse

__all__ = ["Machine", "Memory", "Program", "Result", "parse"]
