"""Compile every Triton kernel that fastht ships, without a GPU, and show what the compiler made.

    python -m benchmarks.compile_table                 # the whole table
    python -m benchmarks.compile_table --arch sm_90 --channels 64 --numbers bf16 --of adapter
    python -m benchmarks.compile_table --arch sm_90 --of losses    # benchmarks.compile_losses

The launches are those of a real call: the library's own code runs on tensors without storage, and
each launch is compiled for the wanted chip instead of started. Registers, stack and the loads and
stores of local memory are read from the machine code (cuobjdump). A kernel spills where it has
such loads or stores; a stack without any is a frame that ptxas reserved and never used.

What is promised: every kernel fits into the chip's shared memory; none spills that takes 16-bit
tokens with C up to 64; and with the newest release of Triton none of a column's namesake spills at
all. Other spills are shown; a chip that fastht refuses with this release is left out. Exit
status: 0, or 1 where a promise is broken. The Triton that is installed compiles;
:mod:`benchmarks.compile_releases` does the same with every other.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from fastht import HTAdapter, HTConfig
from fastht.ops import registry
from fastht.ops.call import Call
from fastht.ops.custom_op import keeps_output
from fastht.ops.triton import adapter, configs

WIDTHS = (384, 512, 768, 896, 1024, 1152, 1280, 1408, 1664, 1792)
CHANNELS = (16, 32, 64, 128)
NEWEST = "3.9"  # the release of Triton that the table is made with
# Bytes of shared memory that one program may use (CUDA C programming guide, table of compute
# capabilities).
SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
}
OPTIONS = (
    "BM", "BN", "BK", "BD", "BP", "BB", "UNROLL", "PIXELS", "AHEAD", "ACROSS", "FILTER",
    "REBUILD", "num_warps", "num_stages", "maxnreg",
)  # fmt: skip
DTYPES = {
    "16": (torch.bfloat16, torch.bfloat16, False),
    "32>16": (torch.float32, torch.bfloat16, False),
    "tf32": (torch.float32, torch.float32, True),
    "32": (torch.float32, torch.float32, False),
}
# By name: x's dtype, that of the products, and TensorFloat-32. Two of the classes of numbers
# stand for two dtypes each.
KINDS = {
    "bf16": DTYPES["16"],
    "fp16": (torch.float16, torch.float16, False),
    "32>bf16": DTYPES["32>16"],
    "32>fp16": (torch.float32, torch.float16, False),
    "tf32": DTYPES["tf32"],
    "32": DTYPES["32"],
}
FORM = "{:7} {:>4} {:>7} {:26} {:44} {:>5} {:>5} {:>5} {:>7} {:11} {}"
HEADER = (
    "arch", "C", "x>dot", "kernel", "options", "regs", "stack", "local", "shared", "MMA", "",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What the compiler made of one kernel; of the losses' kernels, ``channels`` is 0."""

    triton: str
    arch: str
    channels: int
    numbers: str
    kernel: str
    options: str
    registers: int
    stack: int
    local: int
    shared: int
    mma: str
    widths: tuple[int, ...]

    def line(self, remark: str) -> str:
        """Return it as a line of the table."""
        return FORM.format(
            self.arch, self.channels or "-", self.numbers, self.kernel, self.options,
            self.registers, self.stack, self.local, self.shared, self.mma, remark,
        )  # fmt: skip

    def remark(self) -> str:
        """Return what is not as it should be."""
        if self.shared > SHARED_LIMIT[self.arch]:
            return f"needs {self.shared} bytes of shared memory of {SHARED_LIMIT[self.arch]}"
        return f"spills {self.stack} bytes" if self.local else ""

    def breaks_promise(self) -> bool:
        """Whether it is one of those that may not spill and does, or does not fit the chip."""
        if self.shared > SHARED_LIMIT[self.arch]:
            return True
        made_for = self.triton == NEWEST and self.arch in configs.ARCHITECTURES
        return self.local > 0 and (self.promised_for_all() or made_for)

    def promised_for_all(self) -> bool:
        """Whether it may spill with no release on no chip."""
        return 0 < self.channels <= 64 and self.numbers in ("bf16", "fp16")


class NoDevice:
    """Stands for the CUDA driver where the only thing wanted of it is the chip's name."""

    def __init__(self, arch: str) -> None:
        self._number = int(arch.removeprefix("sm_"))
        self._target = GPUTarget("cuda", self._number, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        # A JIT function keeps what it compiled by device: one number for all would mix the chips.
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"the driver's {name!r} was asked for, but there is no device")


def call_on_meta(
    batch: int, grid: tuple[int, int], width: int, channels: int, numbers: str,
    spectral: str = "channel", keep: str = "auto",
) -> tuple[Callable[[], tuple[Any, ...]], Callable[[tuple[Any, ...]], Any]]:  # fmt: skip
    """Return forward, which returns what it saves, and backward, on tensors without storage.

    ``keep``, as :func:`fastht.patch` has it, says whether backward makes x of the output first.
    """
    x_dtype, product_dtype, tf32 = (KINDS | DTYPES)[numbers]
    module = HTAdapter(
        width,
        HTConfig(bottleneck_dim=channels, spectral=spectral),
        grid_size=grid,
        device="meta",
    )
    params = {name: p.detach() for name, p in module.named_parameters()}
    x = torch.empty(batch, 1 + grid[0] * grid[1], width, device="meta", dtype=x_dtype)
    seed = torch.empty(1, device="meta", dtype=torch.int64)
    call = Call(grid, 1, True, True, 0.1, 1e-5, product_dtype, tf32)
    rebuild = keeps_output(keep, x_dtype)
    return (
        lambda: tuple(adapter.forward(x, params, seed, call, True)[1:]),
        lambda saved: adapter.backward(x, x, params, seed, saved, call, True, True, rebuild),
    )


def capability(arch: str) -> tuple[int, int]:
    """Return a chip's compute capability."""
    return divmod(int(arch.removeprefix("sm_")), 10)


@contextlib.contextmanager
def compiling(
    arch: str, keep: Callable[[Any, Any, Any, dict[str, Any]], None], only: str = ""
) -> Iterator[None]:
    """Compile for a chip what is launched in the block (kernels with ``only`` in their name).

    ``keep`` gets the compiled kernel, its function, its grid and its arguments by name.
    """
    driver, column = triton.runtime.driver, configs.architecture
    original = JITFunction.run
    driver.set_active(NoDevice(arch))

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        if only not in self.__name__:
            return None
        kwargs.setdefault("enable_fp_fusion", True)  # Triton 3.10 changes the default
        kernel = original(self, *args, grid=grid, warmup=True, **kwargs)
        keep(kernel, self, grid, dict(zip(self.arg_names, args, strict=False)) | kwargs)
        return kernel

    JITFunction.run = compile_only
    configs.architecture = lambda device: arch
    try:
        yield
    finally:
        JITFunction.run, configs.architecture = original, column


def compiled(
    arch: str, channels: int, numbers: str, widths: tuple[int, ...], only: str = ""
) -> Iterator[Row]:
    """Compile the kernels of one row of the table (those with ``only`` in their name) once each."""
    found: dict[int, tuple[Any, str, dict[str, Any], set[int]]] = {}

    def keep(kernel: Any, function: Any, grid: Any, values: dict[str, Any]) -> None:
        entry = found.setdefault(id(kernel), (kernel, function.__name__, values, set()))
        entry[3].add(width)

    with compiling(arch, keep, only):
        cases = [(w, s, 14) for w, s in itertools.product(widths, ("channel", "full"))]
        # Rows of an odd number of patches have no pairs of pixels, which other kernels serve.
        for width, spectral, side in [*cases, (widths[0], "channel", 13)]:
            # A call that makes x anew launches all that one with a kept x does, and more.
            forward, backward = call_on_meta(
                2, (side, side), width, channels, numbers, spectral, keep="output"
            )
            backward(forward())
    for kernel, name, values, used in found.values():
        registers, stack, local = resources(kernel.asm["cubin"])
        options = " ".join(f"{key}={values[key]}" for key in OPTIONS if key in values)
        yield Row(
            configs.release(), arch, channels, numbers, name, options, registers, stack, local,
            kernel.metadata.shared, matrix_unit(kernel.asm["ptx"]), tuple(sorted(used)),
        )  # fmt: skip


def resources(cubin: bytes) -> tuple[int, int, int]:
    """Return a cubin's registers, bytes of stack, and how many instructions touch local memory."""
    tool = next(
        path
        for path in (
            os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump"),
            "/usr/local/cuda/bin/cuobjdump",
            "cuobjdump",
        )
        if path == "cuobjdump" or os.path.exists(path)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def said(what: str) -> str:
            command = [tool, what, file.name]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            return run.stdout + run.stderr

        usage = said("-res-usage")
        match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
        if match is None:
            raise RuntimeError(f"cuobjdump said nothing about registers: {usage[:1000]}")
        registers, stack, local = map(int, match.groups())
        if not stack and not local:  # nothing to touch: disassembling takes longer than compiling
            return registers, 0, 0
        code = said("-sass")
    if "EXIT" not in code:
        raise RuntimeError(f"cuobjdump said nothing about code: {code[:1000]}")
    return registers, stack, len(re.findall(r"\b(?:STL|LDL)\b", code))


def matrix_unit(ptx: str) -> str:
    """Return the instruction of a kernel's matrix products."""
    for pattern in (r"wgmma\.mma_async", r"tcgen05\.mma", r"mma\.sync"):
        if re.search(pattern, ptx):
            return pattern.replace("\\", "").split(".mma_async")[0]
    return "-"


def _job(arguments: tuple[str, int | str, str, tuple[int, ...], str]) -> list[Row]:
    arch, what, *rest = arguments
    if isinstance(what, int):
        return list(compiled(arch, what, *rest))
    from benchmarks import compile_losses

    return list(compile_losses.compiled(arch, what, *rest))


def show(rows: list[Row], problems_only: bool = False) -> None:
    """Print rows of the table, or those with a remark."""
    for row in rows:
        if row.remark() or not problems_only:
            print(row.line(row.remark()), flush=True)


def main() -> int:
    """Print the table and say what is wrong with it."""
    from benchmarks import compile_losses  # which takes its tools from here

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=list(SHARED_LIMIT), choices=SHARED_LIMIT)
    parser.add_argument("--channels", nargs="+", type=int, default=list(CHANNELS))
    parser.add_argument("--numbers", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--dim", nargs="+", type=int, default=list(WIDTHS), help="the adapter's D")
    parser.add_argument("--of", nargs="+", default=["adapter", "losses"], help="whose kernels")
    parser.add_argument("--forms", nargs="+", default=list(compile_losses.FORMS), help="of losses")
    parser.add_argument("--kernel", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--problems-only", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the rows there, one a line")
    arguments = parser.parse_args()
    refused = {
        arch: why
        for arch in arguments.arch
        if (why := registry.miscompiled(capability(arch), triton.__version__))
    }
    for arch, why in refused.items():
        print(f"{arch}: not compiled, for fastht refuses it: {why}")
    chips = [arch for arch in arguments.arch if arch not in refused]
    jobs = [
        (*job, tuple(arguments.dim), arguments.kernel)
        for job in itertools.product(chips, arguments.channels, arguments.numbers)
        if "adapter" in arguments.of
    ]
    jobs += [
        (*job, compile_losses.DIMS, arguments.kernel)
        for job in itertools.product(chips, arguments.forms, arguments.numbers)
        if "losses" in arguments.of and job[2] in compile_losses.NUMBERS
    ]
    print(FORM.format(*HEADER))
    count = remarks = broken = 0
    with ProcessPoolExecutor(max_workers=arguments.jobs) as pool:
        for rows in pool.map(_job, jobs):
            show(rows, arguments.problems_only)
            count += len(rows)
            remarks += sum(bool(row.remark()) for row in rows)
            broken += sum(row.breaks_promise() for row in rows)
            if arguments.json:  # as they come: a run that is cut short leaves what it has
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    widths = ", ".join(map(str, arguments.dim))
    print(
        f"{count} kernels serve D of {widths}; {remarks} with a remark, {broken} of them against "
        f"the promise (triton {triton.__version__})"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
