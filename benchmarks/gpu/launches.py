"""Phase ``launches``: each kernel of one forward and backward, its time and its bytes.

    python -m benchmarks.gpu.launches --out launches.json --seconds 60 [--backend cuda]

Of the fused operator at the suites' main shape, in bfloat16: the time of each kernel by
torch.profiler, with the bytes of the byte model and so the share of a large copy's bandwidth; and
the bytes that the counters of Nsight Compute see (:mod:`benchmarks.gpu.dram`). At the smallest
shape, where launches rather than bytes may set the time: calls against replays of a CUDA graph,
each in a row by the host's clock.
The operator has to pass the gate first. Exit status: 0, or 1 where it does not, or a part fails;
that ncu is missing or not permitted is no failure.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import byte_model, cases, operators
from benchmarks.cases import DEVICE, Shape
from benchmarks.gpu import dram
from benchmarks.gpu.common import DRY, ROOT, kernel_name, mend_interpreter, write_json
from fastht.bench import gate
from fastht.bench.machine import cache_bytes
from fastht.bench.meter import Contestant, Limits, Rotation, alternate

MAIN, SMALL = (cases.TINY, cases.TINY) if DRY else (cases.MAIN, cases.SMALL)
DTYPE = "bfloat16"
CALLS = 1 if DRY else 10  # that are profiled, or timed in a row
LIMITS = Limits(warm_up=0, min_rounds=1, min_seconds=0) if DRY else Limits(min_seconds=1)
WARM_UP = 0 if DRY else 3

Call = Callable[[], Any]


def make_call(shape: Shape, backend: str) -> Call:
    """Return one forward and backward with dropout, of kernels that are compiled."""
    adapter = operators.make_adapter(shape, backend)
    x, dout = operators.make_inputs(shape, DTYPE, 1)
    inputs = Rotation(lambda: (x.requires_grad_(), dout), set_bytes=1, cache_bytes=0)
    call = operators.passes(adapter, shape, inputs)["both"].once
    for _ in range(WARM_UP):
        call()
    synchronize()
    return call


def model(shape: Shape, backend: str) -> dict[str, int]:
    """Return the bytes of the byte model, by kernel of both passes."""
    sizes = byte_model.Shape(shape.rows, shape.dim, shape.channels)
    return byte_model.forward(sizes, backend) | byte_model.backward(sizes, backend)


def synchronize() -> None:
    """Wait for the device."""
    if not DRY:
        torch.cuda.synchronize()


def copy_bandwidth() -> float:
    """Return what a copy far larger than the caches moves, in bytes a second, read and written."""
    size = 2**20 if DRY else max(2 * cache_bytes(DEVICE), 2**30)
    source = torch.randn(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    copies = {"copy": Contestant(lambda _: target.copy_(source))}
    seconds = alternate(copies, device=DEVICE, limits=LIMITS)["copy"]
    return 2 * source.nbytes / statistics.median(seconds)


def profile(shape: Shape, backend: str) -> dict[str, Any]:
    """Return launches, microseconds and model bytes of each kernel of a call."""
    call, copy = make_call(shape, backend), copy_bandwidth()
    sizes = model(shape, backend)
    rows = []
    for name, launches, micros in kernels(call):
        kernel = kernel_name(name)
        size = sizes.get(kernel)
        rate = size and size * launches / micros * 1e6
        rows.append(
            {
                "kernel": kernel,
                "launches": launches,
                "micros": micros,
                "model_bytes": size,
                "bytes_per_second": rate,
                "of_copy": rate and rate / copy,
            }
        )
    rows.sort(key=lambda row: -row["micros"])
    return {"copy_bytes_per_second": copy, "rows": rows}


def kernels(call: Call) -> Iterator[tuple[str, float, float]]:
    """Yield each kernel of a call: its name, launches, and the microseconds of all of them."""
    if DRY:  # the interpreter knows no times
        from benchmarks.byte_meter import metered

        with metered() as launches:
            call()
        for name, count in Counter(launch.kernel for launch in launches).items():
            yield name, count, 1.0
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as recorded:
        for _ in range(CALLS):
            call()
        synchronize()
    for event in recorded.key_averages():
        if event.self_device_time_total > 0:  # else it is a call of the driver
            yield event.key, event.count / CALLS, event.self_device_time_total / CALLS


def graph(shape: Shape, backend: str) -> dict[str, Any]:
    """Return what a call takes, and a replay of it as a CUDA graph, one after another, in µs.

    By the host's clock, since the time in question is the host's.
    """
    call = make_call(shape, backend)
    found = {"calls": back_to_back(call)}
    if not DRY:
        # As PyTorch asks: the last call before the capture is on a stream of its own.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            _, gradients = call()
        captured.replay()
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise gate.IncorrectError("the replayed gradients are not finite")
        found["replays"] = back_to_back(captured.replay)
    return found


def back_to_back(call: Call) -> float:
    """Return the median microseconds of a call in rows of calls that nothing interrupts."""
    rows = []
    for _ in range(1 if DRY else 20):
        synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        synchronize()
        rows.append(1e6 * (time.perf_counter() - start) / CALLS)
    return statistics.median(rows)


def counters(shape: Shape, backend: str, seconds: float) -> dict[str, Any]:
    """Return what the memory's counters see of one call, made by a process of its own."""
    program = (sys.executable, "-m", "benchmarks.gpu.launches", "--call", "--backend")
    program = (*program, backend)
    if DRY:
        subprocess.run(program, cwd=ROOT, check=True)
        return {"error": "ncu is not run"}
    return dram.measure(program, model(shape, backend), seconds)


def one_call(shape: Shape, backend: str) -> None:
    """Show a profiler one call and nothing else."""
    call = make_call(shape, backend)
    with contextlib.nullcontext() if DRY else torch.cuda.profiler.profile():
        call()
        synchronize()


def measure(out: Path, backend: str, seconds: float) -> int:
    """Run all parts, whichever of them fail, and write the file after each; return the status."""
    end = time.monotonic() + seconds
    found: dict[str, Any] = {
        "shape": list(MAIN.tokens),
        "small_shape": list(SMALL.tokens),
        "channels": MAIN.channels,
        "dtype": DTYPE,
        "backend": backend,
    }
    parts: Mapping[str, Callable[[], dict[str, Any]]] = {
        "gate": lambda: {"worst_error_of_bound": operators.check(MAIN, DTYPE, backend)},
        "profile": lambda: profile(MAIN, backend),
        "graph": lambda: graph(SMALL, backend),
        "dram": lambda: counters(MAIN, backend, max(10.0, end - time.monotonic())),
    }
    failed = 0
    for name, part in parts.items():
        try:
            found[name] = part()
        except Exception as error:
            traceback.print_exc()
            failed = 1
            words = (str(error).strip() or "no message").splitlines()[0]
            found[name] = {"error": f"{type(error).__name__}: {words[:300]}"}
        write_json(out, found)
        if failed and name == "gate":
            break  # no numbers for wrong results
    return failed


def main() -> int:
    """Measure within the given time, or only call."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--call", action="store_true", help="one call between profiler marks")
    parser.add_argument("--backend", default="triton", choices=("triton", "cuda"))
    parser.add_argument("--out", type=Path, help="the file to write")
    parser.add_argument("--seconds", type=float, default=120, help="end by then")
    arguments = parser.parse_args()
    mend_interpreter()
    if arguments.call:
        one_call(MAIN, arguments.backend)
        return 0
    if arguments.out is None:
        parser.error("--out or --call is needed")
    return measure(arguments.out, arguments.backend, arguments.seconds)


if __name__ == "__main__":
    sys.exit(main())
