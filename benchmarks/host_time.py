"""Time what a call of the Triton backend costs the host: everything but the driver's launches.

    python -m benchmarks.host_time                 # minimum and median of many calls, microseconds

The kernels are compiled for a chip that is not there, then each launch is a function that does
nothing: what remains is the library's own code, PyTorch's allocations (of tensors without storage)
and Triton's way from arguments to a compiled kernel. A GPU adds the driver's part, a few
microseconds a launch. On a shared machine the minimum is the number to look at.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import triton
from triton.compiler.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from benchmarks import compile_table
from fastht.ops.triton import configs


def stub(arch: str) -> None:
    """Let every launch of this process compile for a chip, and do nothing else."""
    triton.runtime.driver.set_active(compile_table.NoDevice(arch))
    configs.architecture = lambda device: arch
    original = JITFunction.run

    def loaded(self: CompiledKernel) -> None:
        self.module, self.function, self._run = 0, 0, lambda *arguments, **options: None

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return original(self, *args, grid=grid, warmup=False, **kwargs)

    CompiledKernel._init_handles = loaded
    JITFunction.run = run


def times(call: Callable[[], Any], repeats: int) -> list[float]:
    """Return the microseconds of many calls, after one that compiles."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(1e6 * (time.perf_counter() - start))
    return found


def main() -> int:
    """Time both passes and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--arch", default="sm_90")
    arguments = parser.parse_args()
    stub(arguments.arch)
    forward, backward = compile_table.call_on_meta(64, (14, 14), 768, 64, "16")
    saved = forward()
    for name, call in (("forward", forward), ("backward", lambda: backward(saved))):
        found = times(call, arguments.repeats)
        print(f"{name}: {min(found):.0f} µs at least, median {statistics.median(found):.0f} µs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
