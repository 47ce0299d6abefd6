"""Find tile sizes with which a kernel compiles without spills, without a GPU.

    python -m benchmarks.propose --kernel up --arch sm_120 --channels 64 --numbers bf16 fp16
    python -m benchmarks.compile_releases --triton 3.4 3.6 --module benchmarks.propose -- \\
        --kernel mix_backward --arch sm_86 sm_89

Compiles the table's choice and, where that spills or does not fit, what differs least from it,
until something serves every chip, C and numbers asked for; the last line is a row for the table.
Nothing is timed: among those that do not spill :mod:`benchmarks.tune` chooses, on a GPU. Exit
status: 0, or 1 where nothing is found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from benchmarks.compile_table import CHANNELS, KINDS, SHARED_LIMIT, Row, compiled
from benchmarks.tune import LAUNCHES
from fastht.ops.triton import configs

Options = dict[str, int]
# What may be changed, the cheapest in time first. Tiles are only made smaller: a larger one needs
# more registers.
SPACE: dict[str, tuple[int, ...]] = {
    "maxnreg": (128, 168, 224, 255),
    "num_stages": (1, 2, 3),
    "num_warps": (4, 8, 16),
    "UNROLL": (0, 1),
    "PIXELS": (1, 2),
    "BD": (16, 32, 64),
    "BK": (16, 32, 64),
    "BP": (8, 16, 32),
    "BM": (16, 32, 64, 128),
}
TILES = ("BD", "BK", "BP", "BM")


def candidates(default: Options, most: int) -> Iterator[Options]:
    """Yield the default, then what differs from it in one option, then in two."""
    yield default
    names = [name for name in SPACE if name in default or name == "maxnreg"]
    tried = 1
    for count in (1, 2):
        for changed in itertools.combinations(names, count):
            for values in itertools.product(*(SPACE[name] for name in changed)):
                options = default | dict(zip(changed, values, strict=True))
                same = any(default.get(name) == options[name] for name in changed)
                larger = any(options[name] > default[name] for name in changed if name in TILES)
                # A program has no more than 64 Ki registers, of which each thread takes its share.
                over = options.get("maxnreg", 0) * 32 * options["num_warps"] > 65_536
                if same or larger or over:
                    continue
                if tried == most:
                    return
                tried += 1
                yield options


def made_with(
    kernel: str, options: Options, arch: str, channels: int, numbers: str, width: int
) -> list[Row]:
    """Compile a kernel's launches of one case with the options in the place of the table's."""
    original = configs.options

    def chosen(name: str, *wanted: object) -> Options:
        return dict(options) if name == kernel else original(name, *wanted)  # type: ignore[arg-type]

    configs.options = chosen  # type: ignore[assignment]
    try:
        launched = LAUNCHES.get(kernel, kernel)
        return list(compiled(arch, channels, numbers, (width,), f"{launched}_kernel"))
    finally:
        configs.options = original


def verdict(rows: list[Row]) -> str:
    """Say on one line what became of the launches; empty where there is nothing to remark."""
    return "; ".join(
        f"{row.arch} C={row.channels} {row.numbers} {row.options.partition('num_warps')[0]}"
        f"{row.remark()}"
        for row in rows
        if row.remark()
    )


def main() -> int:
    """Try, print what becomes of each, and end with the row of the first that serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", choices=configs.KERNELS, required=True)
    parser.add_argument("--arch", nargs="+", choices=SHARED_LIMIT, default=["sm_90"])
    parser.add_argument("--channels", nargs="+", type=int, choices=CHANNELS, default=[64])
    parser.add_argument("--numbers", nargs="+", choices=KINDS, default=["bf16"])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--most", type=int, default=40, help="candidates to try")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    cases = list(itertools.product(arguments.arch, arguments.channels, arguments.numbers))
    classes = {numbers: configs.number_class(*KINDS[numbers]) for numbers in arguments.numbers}
    default = configs.options(
        arguments.kernel,
        arguments.arch[0],
        arguments.channels[0],
        classes[arguments.numbers[0]],
        arguments.dim,
    )
    with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
        for options in candidates(default, arguments.most):
            shown = " ".join(f"{key}={value}" for key, value in options.items())
            rows: list[Row] = []
            try:
                jobs = [
                    pool.submit(made_with, arguments.kernel, options, *case, arguments.dim)
                    for case in cases
                ]
                for job in jobs:
                    rows += job.result()
                said = verdict(rows)
            except Exception as error:  # each stage of the compiler has its own
                said = f"does not compile: {str(error).splitlines()[0][:100]}"
            registers = max((row.registers for row in rows), default=0)
            print(f"{arguments.kernel} {shown}: {said or f'{registers} registers'}", flush=True)
            if not said:
                row = {
                    "kernel": arguments.kernel,
                    "arch": arguments.arch,
                    "dim": "*",
                    "channels": arguments.channels,
                    "numbers": sorted(set(classes.values())),
                    "triton": [configs.release()],
                    "options": options,
                    "chosen": f"compiles without spills (Triton {configs.release()}); not timed",
                }
                print(json.dumps(row))
                return 0
    print("nothing among the candidates serves")
    return 1


if __name__ == "__main__":
    sys.exit(main())
