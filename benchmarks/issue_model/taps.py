"""How many instructions the CUDA kernels' convolutions take for each tap of each number, counted.

    python -m benchmarks.issue_model.taps                # sm_90
    python -m benchmarks.issue_model.taps --arch sm_100

A tap of a number is one multiplication and addition for one channel of one patch. What the
functions of the convolution execute is counted as the issue model counts it: by the PTX machine, a
block at a time, and shared among the machine code's instructions. Two quotients: by the
multiplications that are executed, and by those that a convolution of the patches alone has, without
what tiles and warps do twice.
"""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.issue_model.launches import Launch, Shape, cuda_launches
from benchmarks.issue_model.sass import Frame
from fastht.ops.cuda import sources

# What loads taps and the map, widens, multiplies and adds, by file; what brings the map into
# shared memory and stores the results is not of it.
FUNCTIONS = {"depthwise.cuh": "convolve_item", "correlate.cuh": "run"}
ARCHS = ("sm_80", "sm_90", "sm_100")
KERNELS = ("mix_up", "contract", "mix_back")


@dataclass(frozen=True)
class Taps:
    """Warp instructions of one convolution in one launch."""

    kernel: str
    function: str
    instructions: float
    multiplications: float
    needed: float  # multiplications of all patches, taps and channels, 32 lanes to an instruction


@functools.cache
def lines(name: str, function: str) -> range:
    """Return the lines of a function in a file of ``csrc/cuda``, the first of its name.

    Raises:
        LookupError: there is none.
    """
    text = (sources.folder() / "cuda" / name).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(text, start=1):
        if found := re.match(rf"(\s*)(?:static )?FASTHT_DEVICE \w+ {function}\(", line):
            end = text.index(found[1] + "}", number)
            return range(number, end + 2)
    raise LookupError(f"{name} has no function {function}")


def within(frames: tuple[Frame, ...], name: str) -> bool:
    """Whether an instruction comes from the convolution in the file of that name, or its calls."""
    own = lines(name, FUNCTIONS[name])
    return any(Path(file).name == name and line in own for file, line in frames)


def counted(launch: Launch, shape: Shape) -> Iterator[Taps]:
    """Yield what the convolutions of a launch take; nothing for a launch without one."""
    needed = shape.batch * shape.side**2 * 49 * shape.channels / 32
    for name, function in FUNCTIONS.items():
        instructions = multiplications = 0.0
        for work in launch.counted:
            warps = work.programs * work.warps
            found = [work.code.instructions[n] for n in work.order or ()]
            own = [i for i in found if within(i.frames, name)]
            instructions += warps * len(own)
            multiplications += warps * sum(i.opcode.startswith("FFMA") for i in own)
        if multiplications:
            yield Taps(launch.kernel, function, instructions, multiplications, needed)


def main() -> None:
    """Print a line a convolution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=ARCHS, default="sm_90")
    arguments = parser.parse_args()
    shape = Shape()
    print(f"{shape}, bfloat16, {arguments.arch}; counted, not timed")
    print("| launch | convolution | instructions a multiplication | a tap of a number |")
    print("|---|---|---|---|")
    for kernel in KERNELS:
        for launch in cuda_launches(shape, arguments.arch, kernel):
            for taps in counted(launch, shape):
                print(
                    f"| {taps.kernel} | {taps.function} "
                    f"| {taps.instructions / taps.multiplications:.2f} "
                    f"| {taps.instructions / taps.needed:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
