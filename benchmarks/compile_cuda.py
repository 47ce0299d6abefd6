"""Compile every native CUDA kernel that fastht ships, without a GPU, and show what came of it.

    python -m benchmarks.compile_cuda                  # everything: many minutes
    python -m benchmarks.compile_cuda --thin           # what CI compiles
    python -m benchmarks.compile_cuda --arch 90a --channels 64 --numbers bf16

The kernels and the shared memory of a launch are what the library's own plan says for a device of
that architecture; NVRTC compiles them, with the library's options. Columns and exit status are
those of benchmarks.compile_table.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.compile_table import FORM, HEADER, Row, resources
from fastht.ops.cuda import adapter, kernels, nvrtc
from fastht.ops.cuda.sources import Kernel

# Bytes of shared memory of a block and of a multiprocessor, and how many there are (CUDA C++
# programming guide). sm_80 serves 8.0 and stands for 8.6 and 8.9, which have less.
DEVICES = {
    "80": ((166_912, 167_936, 108), (101_376, 102_400, 84)),
    "90a": ((232_448, 233_472, 132),),
    "100": ((232_448, 233_472, 148),),
    "120": ((101_376, 102_400, 170),),
}
NUMBERS = {  # formats of x and of the products, and whether these may be TensorFloat-32
    "bf16": (0, 0, False),
    "fp16": (1, 1, False),
    "32>bf16": (2, 0, False),
    "32>fp16": (2, 1, False),
    "tf32": (2, 2, True),
    "32": (2, 2, False),
}
Grid = tuple[int, int, int]
GRIDS: tuple[Grid, ...] = ((1, 2, 2), (1, 7, 7), (1, 14, 14), (1, 32, 32), (1, 37, 37))  # P, H, W
# Forward; backward's needs, and with the input rebuilt from the output.
PASSES: tuple[tuple[bool, ...] | None, ...] = (
    None, (True, True), (True, False), (False, True), (True, True, True),
)  # fmt: skip
_THIN_GRIDS: tuple[Grid, ...] = ((1, 2, 2), (1, 14, 14))
# What is known to use local memory, and the most instructions that do, of all architectures. Three
# TF32 products of float32 numbers need more than the 255 registers that a thread can have, so that
# fewer threads do not help; nothing else may.
ALLOWED = {
    ("32", 64): {"down": 4, "mix_up": 25, "expand": 22},
}


def launches(
    arch: str, channels: int, numbers: str, aligned: bool, grids: tuple[Grid, ...] = GRIDS
) -> dict[Kernel, tuple[str, int]]:
    """Return the kernels of all calls of a kind, each with the pass and the most shared memory."""
    x, products, tf32 = NUMBERS[numbers]
    found: dict[Kernel, tuple[str, int]] = {}
    for device, (prefix, height, width), spectral, needs in itertools.product(
        DEVICES[arch], grids, (1, 2), PASSES
    ):
        configuration = adapter.Configuration(
            2, prefix, height, width, 768, channels, channels // 4, 1e-5, True, spectral, x,
            products, tf32, 0.1, aligned,
        )  # fmt: skip
        try:
            plan, wanted = adapter.plan_of(configuration, device, needs)
        except ValueError:  # too large a grid for the device; a call says so
            continue
        most: dict[int, int] = {}

        def note(
            kernel: int, blocks: int, shared: int, params: int, most: dict[int, int] = most
        ) -> None:
            most[kernel] = max(most.get(kernel, 0), shared)

        adapter.dry_run(plan, configuration, needs, note)
        for index, kernel in enumerate(wanted):
            before = found.get(kernel, ("", 0))[1]
            found[kernel] = (
                "forward" if needs is None else "backward",
                max(before, most.get(index, 0)),
            )
    return found


def row(kernel: Kernel, arch: str, channels: int, numbers: str, shared: int) -> Row:
    """Compile one kernel and return what the compiler made of it."""
    cubin = kernels.compile_kernel(nvrtc.load(), kernel, f"sm_{arch}")
    registers, stack, local = resources(cubin)
    arguments = kernel.function.partition("<")[2].rstrip(">")
    return Row(
        "", f"sm_{arch}", channels, numbers, kernel.name, arguments, registers, stack, local,
        shared, "mma.sync", (),
    )  # fmt: skip


def problem(row: Row) -> str | None:
    """Return what is wrong with a kernel: unlike Triton's, it may have no stack at all.

    But for those of :data:`ALLOWED`, which may have no more than they have.
    """
    limit = DEVICES[row.arch.removeprefix("sm_")][0][0]
    allowed = ALLOWED.get((row.numbers, row.channels), {}).get(row.kernel, 0)
    if row.local > allowed or (row.stack and not allowed):
        return f"{row.stack} bytes of stack, {row.local} accesses of local memory"
    if row.shared > limit:
        return f"needs {row.shared} bytes of shared memory of {limit}"
    return None


def rows(
    archs: list[str], channels: list[int], numbers: list[str], aligned: tuple[bool, ...], jobs: int,
    grids: tuple[Grid, ...] = GRIDS,
) -> Iterator[Row]:  # fmt: skip
    """Compile all kernels of these kinds, ``jobs`` at a time."""
    wanted = []
    for arch, c, n in itertools.product(archs, channels, numbers):
        known: set[Kernel] = set()
        for even in aligned:
            for kernel, (_, shared) in launches(arch, c, n, even, grids).items():
                if kernel not in known:
                    known.add(kernel)
                    wanted.append((kernel, arch, c, n, shared))
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda job: row(*job), wanted)


def main() -> int:
    """Print the table and say what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--channels", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--numbers", nargs="+", default=list(NUMBERS), choices=list(NUMBERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--thin", action="store_true", help="C = 64, bf16, aligned, two grids")
    parser.add_argument("--problems-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.thin:
        arguments.channels, arguments.numbers = [64], ["bf16"]
    print(FORM.format(*HEADER))
    count = bad = 0
    for made in rows(
        arguments.arch,
        arguments.channels,
        arguments.numbers,
        (True,) if arguments.thin else (True, False),
        arguments.jobs,
        _THIN_GRIDS if arguments.thin else GRIDS,
    ):
        count += 1
        wrong = problem(made)
        bad += wrong is not None
        if wrong or not arguments.problems_only:
            print(made.line(wrong or ""), flush=True)
    version = "{}.{}".format(*nvrtc.load().version)
    print(f"{count} CUDA kernels; {bad} with a problem (NVRTC {version})")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())
