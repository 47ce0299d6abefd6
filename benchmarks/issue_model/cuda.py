"""The launches of the CUDA backend: the library's own plan, NVRTC's machine code, counted blocks.

A plan says kernels, blocks and shared memory of each launch. The PTX machine runs the blocks of the
first image, or of the first group of tiles, on memory full of zeros at the modelled size: what a
kernel does depends on no number but counters. Kernels of small work, whose blocks differ, are run
whole, and blocks with as much to do are one role.
"""

from __future__ import annotations

import ctypes
import importlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compile_cuda import DEVICES, NUMBERS
from benchmarks.compile_table import resources
from benchmarks.issue_model import banks, counts, sass
from benchmarks.issue_model.counts import Counts
from benchmarks.issue_model.launches import Launch, Shape
from benchmarks.issue_model.machine import PREFETCHED
from benchmarks.issue_model.sass import Code, Instruction
from benchmarks.issue_model.simulate import Access, Work
from fastht.ops.cuda import adapter, kernels, native, nvrtc, sources
from fastht.ops.cuda.sources import Kernel

ARCHS = {"sm_80": "80", "sm_90": "90a", "sm_100": "100"}  # of machines, as compile_cuda's
KINDS = {"16": "bf16", "32>16": "32>bf16", "tf32": "tf32", "32": "32"}
WHOLE = {"fold", "finish"}  # their blocks do unlike things, and are few
ROLES = 6  # the heaviest of them are played
_FIRST, _GAP = 0x5000_0000_0000, 1 << 40
_WIDE = ("x", "out", "dout", "dx")  # come from and go to the memory


@dataclass(frozen=True)
class _Arrays:
    """Addresses and bytes of all that a call touches; nothing is there until it is reserved."""

    sizes: dict[str, int]

    def at(self, name: str) -> int:
        return _FIRST + _GAP * list(self.sizes).index(name)

    def wide(self) -> set[int]:
        return {self.at(name) for name in _WIDE}

    def by_address(self) -> dict[int, int]:
        return {self.at(name): size for name, size in self.sizes.items()}


def launches(shape: Shape, arch: str, only: str = "") -> list[Launch]:
    """Compile and count one forward and one backward call."""
    if native is None:
        raise SystemExit("the native extension was built without the CUDA backend's plan")
    configuration = _configuration(shape)
    found: list[Launch] = []
    for phase, needs in (("forward", None), ("backward", (True, True, shape.rebuilds))):
        plan, wanted = adapter.plan_of(configuration, DEVICES[ARCHS[arch]][0], needs)
        threads = [count for _, _, count in plan.kernels]
        arrays = _arrays(configuration, plan.workspace_bytes)

        def launch(
            kernel: int, blocks: int, shared: int, params: int, phase: str = phase,
            wanted: Sequence[Kernel] = wanted, threads: Sequence[int] = threads,
            arrays: _Arrays = arrays,
        ) -> None:  # fmt: skip
            if only in wanted[kernel].name:
                found.append(
                    _launch(
                        wanted[kernel], phase, arch, shape, blocks, threads[kernel], shared, params,
                        arrays,
                    )
                )  # fmt: skip

        _run(plan, configuration, needs, arrays, launch)
    return found


def _configuration(shape: Shape) -> adapter.Configuration:
    x, products, tf32 = NUMBERS[KINDS[shape.numbers]]
    return adapter.Configuration(
        shape.batch, 1, shape.side, shape.side, shape.dim, shape.channels, shape.channels // 4,
        1e-5, True, 1, x, products, tf32, 0.1, shape.dim % 8 == 0,
    )  # fmt: skip


def _arrays(c: adapter.Configuration, workspace: int) -> _Arrays:
    tokens = c.batch * (c.prefix + c.height * c.width)
    padded, number = native.padded_channels(c.channels), 4 if c.products == 2 else 2
    wide = tokens * c.dim * (4 if c.x == 2 else 2)
    sizes = dict.fromkeys(_WIDE, wide)
    sizes |= {"u": tokens * padded * number, "u_norm": tokens * padded * number}
    sizes |= {"stats": tokens * 8, "pooled": c.batch * padded * 4, "gate": c.batch * 16}
    sizes |= {"workspace": workspace, "seed": 8}
    parameters = 4 * max(c.channels, 49) * max(c.dim, c.channels)
    for kind in ("parameter", "gradient"):
        sizes |= {f"{kind} {i}": parameters for i in range(21)}
    return _Arrays(sizes)


def _run(
    plan: Any, c: adapter.Configuration, needs: tuple[bool, ...] | None, arrays: _Arrays,
    launch: Callable[[int, int, int, int], None],
) -> None:  # fmt: skip
    rows = (c.prefix + c.height * c.width) * c.dim

    def tokens(name: str) -> tuple[int, int, int]:
        return arrays.at(name), rows, c.dim

    params, grads = (
        [(arrays.at(f"{kind} {i}"), 2) for i in range(21)] for kind in ("parameter", "gradient")
    )
    saved = [arrays.at(name) for name in ("u", "u_norm", "stats", "pooled", "gate")]
    ends = arrays.at("seed"), saved, arrays.at("workspace")
    target, problem = native.Target(launch), c.problem()
    if needs is None:
        plan.run(problem, target, 0, tokens("x"), tokens("out"), params, *ends)
    else:
        # Rebuilt, x is in the memory of dx.
        x, out = ("dx", tokens("out")) if needs[2] else ("x", None)
        plan.run(
            problem, target, 0, tokens("dout"), tokens(x), tokens("dx"), params, grads, *ends, out
        )


def _launch(
    kernel: Kernel, phase: str, arch: str, shape: Shape, blocks: int, threads: int, shared: int,
    params: int, arrays: _Arrays,
) -> Launch:  # fmt: skip
    lines = (*sources.OPTIONS, "-lineinfo")
    chip = f"sm_{ARCHS[arch]}"
    cubin, ptx = (
        kernels.compile_kernel(nvrtc.load(), kernel, chip, ptx=as_ptx, options=lines)
        for as_ptx in (False, True)
    )
    registers, _, _ = resources(cubin)
    made = Launch(
        kernel.name, phase, cubin, blocks, threads // 32, registers, shared, {}, arrays.sizes
    )
    code = sass.parse(sass.disassemble(cubin))
    given = _Counting(ptx.decode(), params, arrays, threads, shared)
    wavefronts = banks.counted(code, made.warps)
    for numbers in given.roles(kernel.name, blocks, shape):
        made.counted.append(_work(code, numbers[1], numbers[0], made, arrays, wavefronts))
    return made


class _Counting:
    """Runs blocks of one launch in the PTX machine."""

    def __init__(self, ptx: str, params: int, arrays: _Arrays, threads: int, shared: int) -> None:
        self.machine = importlib.import_module("tests.ptx_machine")
        self.program = self.machine.parse(ptx)
        self.params = ctypes.string_at(params, self.program.parameter_bytes)
        self.arrays, self.threads, self.shared = arrays, threads, shared

    def counts(self, blocks: int, order: Sequence[int]) -> Counts:
        memory = self.machine.Memory()
        memory.reserve(self.arrays.by_address())
        machine = self.machine.Machine(self.program, memory)
        result = machine.run(blocks, self.threads, self.shared, self.params, order=order)
        return counts.gathered(result, len(order) * self.threads // 32)

    def roles(self, name: str, blocks: int, shape: Shape) -> list[tuple[int, Counts]]:
        """Return how many programs do what: one role, but for the kernels of small work."""
        if name not in WHOLE:
            first = max(1, blocks // shape.batch) if blocks % shape.batch == 0 else 1
            return [(blocks, self.counts(blocks, range(first)))]
        by_total: dict[int, list[tuple[int, Counts]]] = {}
        step = -(-blocks // 64)  # of many alike, some
        for block in range(0, blocks, step):
            found = self.counts(blocks, [block])
            by_total.setdefault(round(found.total / 50), []).append((block, found))
        heaviest = sorted(by_total.items(), reverse=True)[:ROLES]
        return [(step * len(same), same[0][1]) for _, same in heaviest]


def _work(
    code: Code, found: Counts, programs: int, made: Launch, arrays: _Arrays,
    wavefronts: Mapping[int, float],
) -> Work:  # fmt: skip
    counts.renamed(code, found)
    counts.adopted(code, found)
    order = counts.played(code, counts.expected(code, found))
    wide = arrays.wide()
    have = Counter(counts.key(code.instructions[n]) for n in order)

    def access(instruction: Instruction) -> Access:
        key = counts.key(instruction)
        lanes = 32.0
        if key in found.lanes:  # all bytes that were counted, no more
            lanes *= found.lanes[key] * found.runs[key] / have[key]
        far = wide & found.touched.get(key, set())
        width = PREFETCHED if instruction.category == "PREFETCH" else instruction.width
        return Access(
            "DRAM" if far else "L2", max(1, round(lanes * width)), 1 - found.near.get(key, 0.0)
        )

    return Work(
        code, programs, made.warps, made.registers, made.shared, {}, access, order=order,
        wavefronts=wavefronts,
    )  # fmt: skip
