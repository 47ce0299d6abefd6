"""Phase ``host``: what a training call costs the host on a GPU, and where.

    python -m benchmarks.gpu.host_profile [--backend cuda] [--functions 25]

At the smallest and the main shape: the microseconds that forward and backward keep the host, in
rows of calls that nothing waits for; the backward pass once as PyTorch runs it, in the device's
thread, and once in the calling one; and a replay of both as a CUDA graph, which is the device's
part. Before them, what PyTorch alone takes: for a function of as many inputs, saved tensors and
gradients that computes nothing, and for the small things that a call consists of. Then the
functions that take the most time of their own in 200 calls at the smallest shape.
:mod:`benchmarks.host_time` times the same without a GPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from benchmarks import cases, host_time, operators
from benchmarks.cases import Shape
from benchmarks.gpu import launches
from benchmarks.gpu.common import DRY, mend_interpreter
from fastht.bench.meter import Rotation

ROWS, CALLS = (1, 1) if DRY else (20, 10)  # of calls in a row, that the device's queue can hold


def make_passes(shape: Shape, backend: str) -> tuple[host_time.Forward, host_time.Backward]:
    """Return both passes of an adapter with dropout, compiled."""
    adapter = operators.make_adapter(shape, backend)
    x, upstream = operators.make_inputs(shape, launches.DTYPE, 1)
    inputs = Rotation(lambda: (x.requires_grad_(), upstream), set_bytes=1, cache_bytes=0)
    passes = operators.passes(adapter, shape, inputs)
    chosen = inputs.next()

    def forward() -> torch.Tensor:
        return passes["forward"].run(chosen)

    def backward(out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return passes["backward"].run((chosen, out))

    for _ in range(launches.WARM_UP + 1):
        backward(forward())
    launches.synchronize()
    return forward, backward


def times(forward: host_time.Forward, backward: host_time.Backward) -> Iterator[tuple[str, float]]:
    """Yield the median microseconds of the host a call, by pass."""
    found: dict[str, list[float]] = {"forward": [], "backward": []}
    for _ in range(ROWS):
        launches.synchronize()
        start = time.perf_counter()
        outs = [forward() for _ in range(CALLS)]
        between = time.perf_counter()
        launches.synchronize()
        again = time.perf_counter()
        kept = [backward(out) for out in outs]
        end = time.perf_counter()
        launches.synchronize()
        del outs, kept
        found["forward"].append(1e6 * (between - start) / CALLS)
        found["backward"].append(1e6 * (end - again) / CALLS)
    for name, micros in found.items():
        yield name, statistics.median(micros)


def small_things() -> Iterator[tuple[str, float]]:
    """Yield what a call consists of and the microseconds of each."""
    number, flat = torch.empty(1, device=cases.DEVICE), torch.empty(64, 16, device=cases.DEVICE)
    things: dict[str, Callable[[], Any]] = {
        "randint": lambda: torch.randint(2**63 - 1, (1,), device=cases.DEVICE),
        "empty_strided": lambda: torch.empty_strided((64, 16), (16, 1), device=cases.DEVICE),
        "empty_like": lambda: torch.empty_like(flat),
        "an addition in place": lambda: number.add_(1),
    }
    if not DRY:
        things["current_stream"] = torch.cuda.current_stream
        things["current_device"] = torch.cuda.current_device
    for name, thing in things.items():
        thing()  # loads its kernel
        launches.synchronize()
        start = time.perf_counter()
        for _ in range(500):
            thing()
        yield name, 1e6 * (time.perf_counter() - start) / 500


def both_threads(
    forward: host_time.Forward, backward: host_time.Backward
) -> list[tuple[str, float]]:
    """Return the times of both passes, and of the backward pass in the calling thread."""
    parts = list(times(forward, backward))
    with torch.autograd.set_multithreading_enabled(False):
        alone = dict(times(forward, backward))["backward"]
    return [*parts, ("backward in the calling thread", alone)]


def line(title: str, parts: Iterable[tuple[str, float]]) -> None:
    """Print some times."""
    print(f"{title}: " + ", ".join(f"{name} {micros:.1f} µs" for name, micros in parts), flush=True)


def show(shape: Shape, backend: str) -> None:
    """Print the times of a backend at a shape."""
    parts = both_threads(*make_passes(shape, backend))
    if not DRY:
        replays = launches.graph(shape, backend)
        parts.append(("calls in a row", replays["calls"]))
        parts.append(("replay of a CUDA graph", replays["replays"]))
    line(f"{backend} {shape}", parts)


def main() -> int:
    """Print the times, then the functions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("triton", "cuda"), help="one of them only")
    parser.add_argument("--functions", type=int, default=25)
    arguments = parser.parse_args()
    mend_interpreter()
    both = ("triton",) if DRY else ("triton", "cuda")  # the dry mode has no CUDA
    backends = both if arguments.backend is None else (arguments.backend,)
    print(
        f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} processors"
    )
    line("PyTorch", small_things())
    line("autograd alone", both_threads(*host_time.autograd_alone(cases.DEVICE)))
    for shape in dict.fromkeys((launches.SMALL, launches.MAIN)):
        for backend in backends:
            show(shape, backend)
    for backend in backends:
        # A profile sees the thread that it was started in.
        with torch.autograd.set_multithreading_enabled(False):
            print(f"\n{backend} {launches.SMALL}: functions of many calls")
            passes = make_passes(launches.SMALL, backend)
            host_time.show_functions(*passes, arguments.functions, 1 if DRY else 200)
    return 0


if __name__ == "__main__":
    sys.exit(main())
