"""Time tile sizes of the Triton kernels on this GPU, one kernel at a time, and keep the best.

    python -m benchmarks.tune --dim 768 --channels 64 --numbers 16 --batch 256 --grid 14 --write
    python -m benchmarks.tune --dry --write --table mine.json    # without a GPU

The launches are those of a real forward and backward call with the candidate in the place of the
table's row; then those of the kernel alone are repeated, together with the launch that adds up
what its tiles leave behind. The winner stays while the next kernel is tuned. ``--write`` puts a
row into the table for exactly this architecture, width, channels and numbers; run the tests on
the GPU after it. ``--dry`` takes the same path in Triton's interpreter, tiny: it measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:  # the kernels are defined for the interpreter or for a GPU
    os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
import triton.testing

from benchmarks.compile_table import DTYPES
from fastht import HTAdapter, HTConfig
from fastht.ops.call import Call
from fastht.ops.triton import adapter, configs, expansion
from fastht.ops.triton import launch as launcher

Options = dict[str, int]
# More programs on a multiprocessor hide more, until registers spill.
SPACE: dict[str, dict[str, tuple[int, ...]]] = {
    "down": {
        "BM": (32, 64, 128), "BK": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3),
    },
    "up": {
        "BM": (32, 64), "BD": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4),
        "maxnreg": (0, 128), "PIXELS": (1, 2), "AHEAD": (0, 768),
    },
    "contract": {
        "BM": (32, 64, 128), "BD": (64, 128), "num_warps": (4, 8), "num_stages": (2, 3, 4),
    },
    "point_backward": {
        "BM": (32, 64), "num_warps": (4, 8), "maxnreg": (0, 128, 168), "PIXELS": (1, 2),
    },
    "correlate": {"BP": (8, 16), "num_warps": (2, 4), "maxnreg": (128, 168), "PIXELS": (1, 2)},
    "mix_backward": {
        "BM": (16, 32, 64), "num_warps": (2, 4, 8), "maxnreg": (0, 96), "PIXELS": (1, 2),
    },
    "expand": {"BM": (32, 64), "BD": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3, 4)},
    "expand_input": {"BM": (32, 64), "BD": (32, 64), "num_warps": (4, 8), "num_stages": (2, 3)},
    "analyse": {"BB": (16, 32), "num_warps": (4, 8), "num_stages": (1, 2)},
}  # fmt: skip
# What stands for an option that is not there: no limit on registers, a pixel alone.
UNSET = {"maxnreg": 0, "PIXELS": 1, "AHEAD": 0}
# The tiles of these decide how much a later launch reads, which therefore counts as well.
FOLLOWERS = {
    "down": "gate",
    "point_backward": "finish",
    "correlate": "gate_backward",
    "expand": "finish",
}
# Rows of these are for launches of a kernel of another name.
LAUNCHES = {"expand_input": "expand"}
WORTH = 0.98  # what is not clearly faster than the table's row does not replace it


@dataclass
class Problem:
    """One call of the operator."""

    x: torch.Tensor
    params: dict[str, torch.Tensor]
    seed: torch.Tensor
    call: Call

    @classmethod
    def make(cls, arguments: argparse.Namespace, device: str, spectral: str) -> Problem:
        """Make the inputs that the command line describes, with a channel or a full filter."""
        torch.manual_seed(0)
        x_dtype, product_dtype, tf32 = DTYPES[arguments.numbers]
        grid = (arguments.grid, arguments.grid)
        config = HTConfig(bottleneck_dim=arguments.channels, spectral=spectral)
        module = HTAdapter(arguments.dim, config, grid_size=grid).to(device)
        tokens = 1 + arguments.grid**2
        return cls(
            torch.randn(arguments.batch, tokens, arguments.dim, device=device).to(x_dtype),
            {name: p.detach() for name, p in module.named_parameters()},
            torch.zeros(1, device=device, dtype=torch.int64),
            Call(grid, 1, True, True, 0.1, 1e-5, product_dtype, tf32),
        )

    def run(self) -> None:
        """Call forward and backward."""
        _, *saved = adapter.forward(self.x, self.params, self.seed, self.call, True)
        adapter.backward(
            self.x, self.x, self.params, self.seed, tuple(saved), self.call, True, True
        )


@dataclass
class Recorder:
    """Stands for a kernel in the module that launches it, and keeps its launches."""

    kernel: Any
    launches: list[Callable[[], Any]] = field(default_factory=list)
    spills: int = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what launches the kernel on ``grid``, as the kernel itself does."""

        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append(lambda: self.kernel[grid](*args, **kwargs))
            compiled = self.launches[-1]()
            self.spills = max(self.spills, getattr(compiled, "n_spills", 0) or 0)

        return launch


@contextlib.contextmanager
def recorded(names: list[str]) -> Iterator[list[Recorder]]:
    """Keep the launches of some kernels while the context lasts."""
    homes = {
        f"{name}_kernel": next(
            home for home in (adapter, expansion, launcher) if hasattr(home, f"{name}_kernel")
        )
        for name in names
    }
    originals = {name: getattr(home, name) for name, home in homes.items()}
    recorders = {name: Recorder(kernel) for name, kernel in originals.items()}
    try:
        for name, recorder in recorders.items():
            setattr(homes[name], name, recorder)
        yield list(recorders.values())
    finally:
        for name, kernel in originals.items():
            setattr(homes[name], name, kernel)


@contextlib.contextmanager
def replaced(chosen: dict[str, Options]) -> Iterator[None]:
    """Let the options in ``chosen`` count instead of the table's."""
    original = configs.options

    def options(kernel: str, *wanted: Any) -> Options:
        return dict(chosen[kernel]) if kernel in chosen else original(kernel, *wanted)

    configs.options = options  # type: ignore[assignment]
    try:
        yield
    finally:
        configs.options = original


def candidates(kernel: str, default: Options) -> list[Options]:
    """Return the default, then the rest of the kernel's space: what differs least comes first.

    Options outside of the space stay as they are.
    """
    space = SPACE[kernel]
    every = [
        {key: value for key, value in {**default, **dict(zip(space, values, strict=True))}.items()
         if value != UNSET.get(key)}
        for values in itertools.product(*space.values())
    ]  # fmt: skip
    others = [options for options in every if options != default]
    others.sort(key=lambda options: sum(options.get(key) != default.get(key) for key in space))
    return [default, *others]


def measure(problem: Problem, kernel: str, chosen: dict[str, Options], dry: bool) -> float:
    """Return the median microseconds of a kernel's launches in one call.

    Raises:
        RuntimeError: the kernel spills registers.
        Exception: it does not compile, or needs more than the device has.
    """
    names = [LAUNCHES.get(kernel, kernel), *([FOLLOWERS[kernel]] if kernel in FOLLOWERS else [])]
    with replaced(chosen), recorded(names) as recorders:
        problem.run()
    launches = [launch for recorder in recorders for launch in recorder.launches]

    def launch_all() -> None:
        for launch in launches:
            launch()

    if dry:
        start = time.perf_counter()
        launch_all()
        return (time.perf_counter() - start) * 1e6
    torch.cuda.synchronize()
    if recorders[0].spills:
        raise RuntimeError(f"spills {4 * recorders[0].spills} bytes")
    return 1e3 * triton.testing.do_bench(launch_all, warmup=10, rep=50, return_mode="median")


def show(options: Options) -> str:
    """Return options on one line."""
    return " ".join(f"{key}={value}" for key, value in options.items())


def compile_candidates(arguments: argparse.Namespace, best: dict[str, Options]) -> None:
    """Compile all candidates in processes of their own: what they make stays in Triton's cache."""
    todo = [
        (kernel, options)
        for kernel in arguments.kernels
        for options in candidates(kernel, best[kernel])
    ]
    small = argparse.Namespace(**{**vars(arguments), "batch": 2})
    shares = [(small, todo[i :: arguments.jobs]) for i in range(arguments.jobs)]
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile_share, shares))


def _compile_share(share: tuple[argparse.Namespace, list[tuple[str, Options]]]) -> None:
    arguments, todo = share
    problems = {kind: Problem.make(arguments, "cuda", kind) for kind in ("channel", "full")}
    for kernel, options in todo:
        problem = problems["full" if kernel == "analyse" else "channel"]
        # One that does not compile is told of when its time is asked for.
        with contextlib.suppress(Exception), replaced({kernel: options}):
            problem.run()


def tune(
    problem: Problem, kernel: str, best: dict[str, Options], deadline: float, dry: bool
) -> tuple[float, float]:
    """Time the candidates of a kernel, print them, and put the best one into ``best``.

    Returns:
        The microseconds of the best candidate and of the table's row; that of a row that does
        not run is infinite.
    """
    default = best[kernel]
    times: list[tuple[float, Options]] = []
    todo = candidates(kernel, default)[: 2 if dry else None]
    for number, options in enumerate(todo):
        if number and time.monotonic() > deadline:
            print(f"{kernel:13} {len(todo) - number} candidates not tried: out of time", flush=True)
            break
        try:
            micros, note = measure(problem, kernel, {**best, kernel: options}, dry), ""
        except Exception as error:  # each compiler stage has its own, and none may stop the rest
            note = f"skipped: {str(error).splitlines()[0][:100] if str(error) else repr(error)}"
            micros = float("inf")
        times.append((micros, options))
        mark = "table" if number == 0 else ""
        print(f"{kernel:13} {show(options):44} {micros:10.1f} µs {mark:6}{note}", flush=True)
    fastest, options = min(times, key=lambda entry: entry[0])
    before = times[0][0]
    if fastest >= WORTH * before:
        return before, before
    best[kernel] = options
    return fastest, before


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a table, in the place of those for the same case, one row a line."""
    keys = ("kernel", "arch", "dim", "channels", "numbers")
    new = [[row[key] for key in keys] for row in rows]
    source = path if path.exists() else configs.TABLE
    kept = [
        row
        for row in json.loads(source.read_text(encoding="utf-8"))
        if [row[key] for key in keys] not in new
    ]
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in [*kept, *rows])
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    """Read the command line, and end with one line where the wanted thing is impossible."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--numbers", choices=list(DTYPES), default="16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--grid", type=int, default=14, help="patches along each side")
    parser.add_argument("--kernels", nargs="+", choices=configs.KERNELS, default=configs.KERNELS)
    parser.add_argument("--budget-s", type=float, default=600, help="seconds for everything")
    parser.add_argument(
        "--jobs", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="processes that compile"
    )
    parser.add_argument("--write", action="store_true", help="put the winners into the table")
    parser.add_argument("--table", type=Path, default=configs.TABLE)
    parser.add_argument("--dry", action="store_true", help="tiny, interpreted, without a GPU")
    arguments = parser.parse_args()
    if arguments.write and arguments.table.exists():  # before minutes are spent on it
        try:
            table = json.loads(arguments.table.read_text(encoding="utf-8"))
            whole = all({"kernel", "options", "chosen"} <= row.keys() for row in table)
        except (ValueError, AttributeError, TypeError):
            whole = False
        if not whole:
            sys.exit(f"tune: {arguments.table} is no table of tile sizes; name another file")
    if arguments.dry:
        if os.environ.get("TRITON_INTERPRET") != "1":
            sys.exit("tune: --dry needs TRITON_INTERPRET=1 before Python starts")
        if arguments.write and arguments.table.resolve() == configs.TABLE.resolve():
            sys.exit("tune: --dry measures nothing; give --table, it does not write to the shipped")
        arguments.dim, arguments.channels, arguments.batch, arguments.grid = 48, 12, 2, 3
    elif not torch.cuda.is_available():
        sys.exit("tune: needs a GPU that CUDA sees (--dry takes the same path without one)")
    return arguments


def main() -> int:
    """Tune the kernels, print the times, and write the table where asked to."""
    arguments = parse()
    device = "cpu" if arguments.dry else "cuda"
    name = "interpreter, no measurement" if arguments.dry else torch.cuda.get_device_name()
    arch = configs.architecture(torch.device(device))
    channels = max(16, triton.next_power_of_2(arguments.channels))
    case = (arch, channels, arguments.numbers, arguments.dim)
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(
        f"{name}, {versions}: {arch}, C={channels}, {arguments.numbers}, D={arguments.dim}, "
        f"B={arguments.batch}, {arguments.grid}x{arguments.grid} patches"
    )
    problems = {kind: Problem.make(arguments, device, kind) for kind in ("channel", "full")}
    best = {kernel: configs.options(kernel, *case) for kernel in configs.KERNELS}
    written = 0
    start = time.monotonic()
    if not arguments.dry:
        compile_candidates(arguments, best)
        print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
        start = time.monotonic()
    for number, kernel in enumerate(arguments.kernels, start=1):
        if kernel == "expand_input" and not best["expand"].get("APART"):
            continue  # it is not launched
        problem = problems["full" if kernel == "analyse" else "channel"]
        deadline = start + arguments.budget_s * number / len(arguments.kernels)
        before = best[kernel]
        micros, table = tune(problem, kernel, best, deadline, arguments.dry)
        if best[kernel] == before:
            print(f"{kernel:13} keeps {show(before)}")
            continue
        print(f"{kernel:13} takes {show(best[kernel])}: {micros:.1f} µs against {table:.1f} µs")
        chosen = (
            f"measured: {name}, {versions}, {datetime.date.today()}, B={arguments.batch}, "
            f"{micros:.1f} µs against {table:.1f} µs with {show(before)}"
        )
        row = {
            "kernel": kernel,
            "arch": [arch],
            "dim": [arguments.dim],
            "channels": [channels],
            "numbers": [arguments.numbers],
            "options": best[kernel],
            "chosen": chosen,
        }
        written += 1
        if arguments.write:  # at once: a run that is cut short keeps what it has found
            write(arguments.table, [row])
    if arguments.write:
        if not written:
            write(arguments.table, [])
        print(f"{written} rows written to {arguments.table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
