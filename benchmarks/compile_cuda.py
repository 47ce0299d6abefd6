"""Compile every native CUDA kernel that fastht ships, without a GPU, and show what came of it.

    python -m benchmarks.compile_cuda                  # everything: an hour
    python -m benchmarks.compile_cuda --thin           # what CI compiles
    python -m benchmarks.compile_cuda --arch 90a --channels 64 --numbers bf16
    python -m benchmarks.compile_cuda --kept runs/compiled/cuda.jsonl  # goes on where it was
    python -m benchmarks.cuda_spills --kept runs/compiled/cuda.jsonl docs/cuda_spills.md

The kernels and the shared memory of a launch are what the library's own plan says for a device of
that architecture; NVRTC compiles them, with the library's options. Columns and exit status are
those of benchmarks.compile_table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compile_table import FORM, HEADER, Row, resources
from fastht.ops.cuda import adapter, kernels, nvrtc, sources
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


@dataclass(frozen=True)
class Kind:
    """Calls of one kind: whose kernels are compiled for which architecture."""

    arch: str
    channels: int
    numbers: str
    aligned: bool  # whether tokens can be read 16 bytes at a time
    grids: tuple[Grid, ...] = GRIDS
    names: frozenset[str] = frozenset()  # of kernels; none: all


# Kernels that had too few registers once.
_ONCE_SPILLED = (
    Kind("90a", 64, "bf16", False, ((1, 32, 32),), frozenset({"down", "mix_up"})),
    Kind("90a", 64, "32>bf16", True, ((1, 32, 32),), frozenset({"down"})),
    Kind("90a", 64, "32>bf16", False, ((1, 32, 32),), frozenset({"down", "mix_up"})),
    Kind("90a", 64, "tf32", True, ((1, 14, 14),), frozenset({"down"})),
    Kind("90a", 128, "tf32", False, ((1, 14, 14),), frozenset({"down"})),
    Kind("90a", 32, "bf16", True, ((1, 2, 2),), frozenset({"contract"})),
    Kind("90a", 64, "32", True, ((1, 14, 14),), frozenset({"down", "mix_up", "expand"})),
    Kind("90a", 128, "32", True, ((1, 14, 14),), frozenset({"down", "mix_up", "expand"})),
    Kind("80", 32, "32>bf16", False, ((1, 14, 14),), frozenset({"expand"})),
    Kind("90a", 128, "bf16", False, ((1, 14, 14),), frozenset({"expand"})),
    Kind("90a", 128, "32>bf16", False, ((1, 14, 14),), frozenset({"expand"})),
    Kind("100", 64, "bf16", True, GRIDS, frozenset({"contract"})),
    Kind("120", 64, "fp16", False, ((1, 14, 14),), frozenset({"expand"})),
)
_THIN = (
    *(Kind(arch, 64, "bf16", True, ((1, 14, 14),)) for arch in DEVICES),
    Kind("90a", 64, "bf16", True, ((1, 2, 2),)),
    *_ONCE_SPILLED,
)


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


class Made:
    """What the compiler made of kernels: each is compiled once.

    Args:
        file: where it is kept between processes, a line of JSON each; ``None``: nowhere. What has
            been made of other sources, or by another compiler, counts as missing.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._known, self._lock = (
            file,
            dict[str, tuple[int, int, int]](),
            threading.Lock(),
        )
        if file is not None and file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                key, registers, stack, local = json.loads(line)
                self._known[key] = registers, stack, local

    def known(self, kernel: Kernel, arch: str) -> tuple[int, int, int] | None:
        """Return registers, stack and accesses of local memory, or ``None`` where not compiled."""
        return self._known.get(_key(kernel, arch))

    def of(self, kernel: Kernel, arch: str) -> tuple[int, int, int]:
        """Return the same; compile what there is none of."""
        key = _key(kernel, arch)
        if (found := self._known.get(key)) is not None:
            return found
        made = resources(kernels.compile_kernel(nvrtc.load(), kernel, f"sm_{arch}"))
        with self._lock:
            self._known[key] = made
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a", encoding="utf-8") as kept:
                    kept.write(json.dumps([key, *made]) + "\n")
        return made


def _key(kernel: Kernel, arch: str) -> str:
    return sources.key(kernel, arch, "nvrtc {}.{}".format(*nvrtc.load().version))


def row_of(kernel: Kernel, kind: Kind, shared: int, made: tuple[int, int, int]) -> Row:
    """Return a line of the table: options are the template's arguments, then threads x blocks."""
    arguments = kernel.function.partition("<")[2].rstrip(">")
    threads, blocks = kernel.instance.split(", ")[2:4]
    return Row(
        "", f"sm_{kind.arch}", kind.channels, kind.numbers, kernel.name,
        f"{arguments} ({threads} x {blocks})", *made, shared, "mma.sync", (),
    )  # fmt: skip


def problem(row: Row) -> str | None:
    """Return what is wrong with a kernel: unlike Triton's, it may have no stack at all."""
    limit = DEVICES[row.arch.removeprefix("sm_")][0][0]
    if row.local or row.stack:
        return f"{row.stack} bytes of stack, {row.local} accesses of local memory"
    if row.shared > limit:
        return f"needs {row.shared} bytes of shared memory of {limit}"
    return None


def wanted(kinds: Iterable[Kind]) -> Iterator[tuple[Kernel, Kind, int]]:
    """Yield the kernels of these kinds of calls, each once a chip, and its shared memory."""
    known: set[tuple[str, Kernel]] = set()
    for kind in kinds:
        found = launches(kind.arch, kind.channels, kind.numbers, kind.aligned, kind.grids)
        for kernel, (_, shared) in found.items():
            if (kind.names and kernel.name not in kind.names) or (kind.arch, kernel) in known:
                continue
            known.add((kind.arch, kernel))
            yield kernel, kind, shared


def rows(kinds: Iterable[Kind], jobs: int, made: Made) -> Iterator[Row]:
    """Compile all kernels of calls of these kinds, ``jobs`` at a time."""

    def compiled(job: tuple[Kernel, Kind, int]) -> Row:
        kernel, kind, shared = job
        return row_of(kernel, kind, shared, made.of(kernel, kind.arch))

    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(compiled, wanted(kinds))


def main() -> int:
    """Print the table and say what is wrong with it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--channels", nargs="+", type=int, default=[32, 64, 128])
    parser.add_argument("--numbers", nargs="+", default=list(NUMBERS), choices=list(NUMBERS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--thin", action="store_true",
        help="C = 64, bf16, aligned, a grid or two, and some of what spilled once",
    )  # fmt: skip
    parser.add_argument("--problems-only", action="store_true")
    parser.add_argument("--kept", type=Path, help="file of what is compiled: not twice")
    arguments = parser.parse_args()
    kinds = [
        Kind(*kind)
        for kind in itertools.product(
            arguments.arch, arguments.channels, arguments.numbers, (True, False)
        )
    ]
    if arguments.thin:
        kinds = [kind for kind in _THIN if kind.arch in arguments.arch]
    print(FORM.format(*HEADER))
    count = bad = 0
    for made in rows(kinds, arguments.jobs, Made(arguments.kept)):
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
