"""Write the page of how many of the native CUDA kernels spill registers, and which, by chip.

    python -m benchmarks.compile_cuda --kept runs/compiled/cuda.jsonl
    python -m benchmarks.cuda_spills --kept runs/compiled/cuda.jsonl docs/cuda_spills.md

Nothing is compiled here: the page has what is kept of these sources and this NVRTC, and says of how
many kernels that is. The kinds of calls are those of :mod:`benchmarks.compile_cuda`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.compile_cuda import DEVICES, NUMBERS, Kind, Made, row_of, wanted
from benchmarks.compile_releases import markdown_table
from benchmarks.compile_table import Row
from fastht.ops.cuda import nvrtc

CHANNELS = (32, 64, 128)
TITLE = "# Which of the native CUDA kernels spill registers, by chip"


@dataclass(frozen=True)
class Cell:
    """The kernels of all calls of some numbers and channels on a chip.

    Attributes:
        rows: of those that were compiled.
        missing: how many were not.
    """

    rows: tuple[Row, ...]
    missing: int

    def __str__(self) -> str:
        if not self.rows:
            return "-"
        spilling = sum(bool(row.stack or row.local) for row in self.rows)
        rest = f", {self.missing} not compiled" if self.missing else ""
        return f"{spilling} of {len(self.rows)}{rest}"


def cell(arch: str, channels: int, numbers: str, made: Made) -> Cell:
    """Return what is kept of the kernels of all calls, aligned or not."""
    kinds = (Kind(arch, channels, numbers, aligned) for aligned in (True, False))
    jobs = [(*job, made.known(job[0], arch)) for job in wanted(kinds)]
    rows = tuple(row_of(kernel, kind, size, found) for kernel, kind, size, found in jobs if found)
    return Cell(rows, len(jobs) - len(rows))


def page(cell_of: Callable[[str, int, str], Cell], version: str) -> Iterator[str]:
    """Yield the lines of the page."""
    cells = {
        (channels, numbers): [cell_of(arch, channels, numbers) for arch in DEVICES]
        for channels in CHANNELS
        for numbers in NUMBERS
    }
    yield TITLE
    yield ""
    yield f"Compiled, not run, with NVRTC {version}: all kernels of calls forward and backward,"
    yield "with every grid, filter and need of gradients that `benchmarks.compile_cuda` knows, for"
    yield "tokens that can be read 16 bytes at a time and for those that cannot. A kernel spills"
    yield "where it has a stack or its machine code touches local memory. A cell: how many do; of a"
    yield "kernel that several kinds of calls share, each kind counts it; -: not compiled."
    yield "`python -m benchmarks.cuda_spills` writes this page. sm_80 stands for 8.6 and 8.9 too,"
    yield "whose blocks have less shared memory and so other tilings."
    yield ""
    yield from markdown_table(
        ("C", "x > products", *(f"sm_{arch}" for arch in DEVICES)),
        ([str(c), numbers, *map(str, found)] for (c, numbers), found in cells.items()),
    )
    rows = [row for found in cells.values() for cell in found for row in cell.rows]
    if spilling := [row for row in rows if row.stack or row.local]:
        yield "Those that spill:"
        yield ""
        yield from markdown_table(
            ("kernel (threads x blocks)", "C", "x > products", "chip", "stack", "local accesses"),
            (
                [
                    f"`{row.kernel}` {row.options}", str(row.channels), row.numbers, row.arch,
                    str(row.stack), str(row.local),
                ]
                for row in spilling
            ),
        )  # fmt: skip
    yield "The most registers that a thread of each has, of all that were compiled; 255 is what a"
    yield "thread can have."
    yield ""
    names = list(dict.fromkeys(row.kernel for row in rows))
    yield from markdown_table(
        ("kernel", *(f"sm_{arch}" for arch in DEVICES)),
        ([f"`{name}`", *(_most(rows, name, f"sm_{arch}") for arch in DEVICES)] for name in names),
    )


def _most(rows: Iterable[Row], name: str, arch: str) -> str:
    found = [row.registers for row in rows if (row.kernel, row.arch) == (name, arch)]
    return str(max(found)) if found else "-"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=Path, required=True, help="file of compile_cuda --kept")
    parser.add_argument("page", type=Path)
    arguments = parser.parse_args()
    made = Made(arguments.kept)
    version = "{}.{}".format(*nvrtc.load().version)
    lines = page(lambda arch, c, numbers: cell(arch, c, numbers, made), version)
    arguments.page.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
