"""Time what a training call of an adapter costs the host: everything but the driver's launches.

    python -m benchmarks.host_time                        # both backends, microseconds
    python -m benchmarks.host_time --backend triton --functions 25

The module's forward, with dropout, and the backward pass for x and every parameter, on CPU tensors
that are so small that only the calls count. The kernels are compiled for a chip that is not there
and each launch is a function that does nothing: what remains is the library's own code, PyTorch's
dispatcher, autograd engine and allocations, and Triton's way from arguments to a compiled kernel. A
GPU adds the driver's part, a few microseconds a launch. ``autograd`` is what PyTorch takes for a
function of as many inputs, saved tensors and gradients that computes nothing. On a shared machine
the minimum is the number to look at. :mod:`benchmarks.gpu.host_profile` is its like on a GPU.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Shape
from fastht import HTAdapter, HTConfig
from fastht.ops import registry

SHAPE = Shape(1, 4, 64, 16)
DROPOUT = 0.1

Forward = Callable[[], Tensor]
Backward = Callable[[Tensor], Any]


def stub_triton(arch: str) -> None:
    """Let every launch of this process compile for a chip, and do nothing else."""
    import triton
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from benchmarks import compile_table
    from fastht.ops.triton import configs, replay

    replay.DEVICES.add("cpu")
    triton.runtime.driver.set_active(compile_table.NoDevice(arch))
    configs.architecture = lambda device: arch
    original = JITFunction.run

    run_name = "_run" if hasattr(CompiledKernel, "run") else "run"  # a property since Triton 3.5

    def loaded(self: CompiledKernel) -> None:
        self.module, self.function = 0, 0
        setattr(self, run_name, lambda *arguments, **options: None)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return original(self, *args, grid=grid, warmup=False, **kwargs)

    CompiledKernel._init_handles = loaded
    JITFunction.run = run
    registry._BACKENDS["triton"] = replace(
        registry._BACKENDS["triton"], missing=lambda: None, refuses=lambda *_: None
    )


def stub_cuda() -> None:
    """Let every launch of this process plan for a GPU, and do nothing else."""
    from fastht.ops.cuda import simulated

    os.environ["FASTHT_CUDA_SIMULATE"] = "1"
    simulated.launcher = lambda wanted, threads: lambda *launch: None


def make_passes(backend: str) -> tuple[Forward, Backward]:
    """Return the forward pass, and the backward pass of what it returns."""
    config = HTConfig(bottleneck_dim=SHAPE.channels, dropout=DROPOUT)
    adapter = HTAdapter(SHAPE.dim, config, backend=backend)
    x = torch.randn(SHAPE.tokens, dtype=torch.bfloat16, requires_grad=True)
    wanted, upstream = (x, *adapter.parameters()), torch.randn_like(x)
    return (
        lambda: adapter(x, SHAPE.grid),
        lambda out: torch.autograd.grad(out, wanted, upstream),
    )


class Nothing(torch.autograd.Function):
    """As many inputs, saved tensors and gradients as an adapter has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ready: list[Tensor], *params: Tensor) -> Tensor:
        ctx.save_for_backward(x, *params, *ready[:6])
        ctx.ready = ready
        return x.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        ready = ctx.ready[: len(ctx.saved_tensors) - 6]
        return ready[0], None, *ready[1:]


def autograd_alone(device: str = "cpu") -> tuple[Forward, Backward]:
    """Return both passes of a function that computes nothing."""
    config = HTConfig(bottleneck_dim=SHAPE.channels)
    adapter = HTAdapter(SHAPE.dim, config, backend="reference", device=device)
    x = torch.randn(SHAPE.tokens, dtype=torch.bfloat16, device=device, requires_grad=True)
    wanted, upstream = (x, *adapter.parameters()), torch.randn_like(x)
    ready = [torch.empty_like(t) for t in wanted]
    return (
        lambda: Nothing.apply(x, ready, *wanted[1:]),
        lambda out: torch.autograd.grad(out, wanted, upstream),
    )


def times(forward: Forward, backward: Backward, repeats: int) -> dict[str, list[float]]:
    """Return the microseconds of many calls, after some that compile."""
    for _ in range(3):
        backward(forward())
    found: dict[str, list[float]] = {"forward": [], "backward": [], "both": []}
    for _ in range(repeats):
        start = time.perf_counter()
        out = forward()
        between = time.perf_counter()
        gradients = backward(out)
        end = time.perf_counter()
        for name, seconds in zip(found, (between - start, end - between, end - start), strict=True):
            found[name].append(1e6 * seconds)
        del out, gradients  # not a part of the next call
    return found


def show_functions(forward: Forward, backward: Backward, count: int, calls: int = 200) -> None:
    """Print the functions in which many calls spend the most time of their own."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        backward(forward())
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(count)


def main() -> int:
    """Time the backends, each in a process of its own, since a stub is for good."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("autograd", "triton", "cuda"))
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--arch", default="sm_90", help="for which Triton compiles")
    parser.add_argument("--functions", type=int, default=0, help="also show as many functions")
    arguments = parser.parse_args()
    if arguments.backend is None:
        command = [sys.executable, "-m", "benchmarks.host_time", *sys.argv[1:], "--backend"]
        return max(
            subprocess.run([*command, name]).returncode for name in ("autograd", "triton", "cuda")
        )
    torch.set_num_threads(1)
    registry.LASTING.add("cpu")
    if arguments.backend == "triton":
        stub_triton(arguments.arch)
    elif arguments.backend == "cuda":
        stub_cuda()
    autograd = arguments.backend == "autograd"
    passes = autograd_alone() if autograd else make_passes(arguments.backend)
    for name, found in times(*passes, arguments.repeats).items():
        least, median = min(found), statistics.median(found)
        print(f"{arguments.backend} {name}: {least:.0f} µs at least, median {median:.0f} µs")
    if arguments.functions:
        show_functions(*passes, arguments.functions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
