"""Whether Triton's interpreter, which the dry mode needs, works here at all.

    python -m benchmarks.gpu.interpreter

Exit status 1, and the reason on one line, where it does not. Triton 3.4 to 3.6 ask numpy for the
integer that an array of one element is, which numpy refuses since 2.4. Kernels on a GPU have
nothing to do with it.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def count_kernel(target, number):
    """Write how often a loop ran whose bound is a loaded number."""
    count = 0
    for _ in range(tl.load(number)):
        count += 1
    tl.store(target, count)


def defect() -> str | None:
    """Return why the interpreter cannot be used, or ``None``."""
    target, number = torch.zeros(1, dtype=torch.int32), torch.full((1,), 3, dtype=torch.int32)
    try:
        count_kernel[(1,)](target, number)
    except Exception as error:
        reason = (str(error.__cause__ or error).splitlines() or ["no message"])[0]
        return (
            f"the interpreter of Triton {triton.__version__} fails with numpy {np.__version__} "
            f"({reason}). The run on a GPU does not need it; to try the script, install numpy<2.4 "
            "or Triton 3.7"
        )
    return None if target.item() == 3 else f"the interpreter counted to {target.item()}, not to 3"


if __name__ == "__main__":
    reason = defect()
    if reason:
        print(reason)
    sys.exit(1 if reason else 0)
