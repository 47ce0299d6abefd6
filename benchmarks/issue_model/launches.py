"""The launches of one forward and one backward call, compiled for a chip that is not there.

As in :mod:`benchmarks.compile_table` the library's own code runs on tensors without storage, here
of the size that is modelled, and each launch is compiled instead of started.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton

from benchmarks.issue_model import banks, sass, source
from benchmarks.issue_model.sass import Code, Frame, Instruction
from benchmarks.issue_model.simulate import Access, Loop, Work
from fastht.ops.custom_op import keeps_output

# Read or written once, from and to the memory; maps and partial sums are in the L2 cache.
WIDE = {"x", "dout", "out", "dx"}
# Written before `expand` has let three wide tensors through the L2 cache: from the memory again. An
# H100 counted 34 MB there, which is what these have.
EVICTED = {"finish": {"d_point", "d_point_bias", "taps"}}
# Their reads overlap, so all but the first hit L1. The last four are called by them alone: up to
# Triton 3.8 the tables may not say by whom.
NEAR = {
    "depthwise", "correlate_tile", "correlate_kernel", "_pairs", "_tap", "_column", "load_planes",
}  # fmt: skip
KERNELS = {
    "kernels",
    "kernel_row",
    "kernel_ptr",
}  # of the convolution: a row of numbers for all of a tile


@dataclass(frozen=True)
class Shape:
    """One adapter on tokens ``[batch, 1 + side * side, dim]``."""

    batch: int = 256
    side: int = 14
    dim: int = 768
    channels: int = 64
    numbers: str = "16"  # as in fastht.ops.triton.configs
    keep: str = "auto"  # for the backward pass, as fastht.patch has it

    @property
    def tokens(self) -> int:
        """Tokens an image: a class token and the patches."""
        return 1 + self.side * self.side

    @property
    def rebuilds(self) -> bool:
        """Whether the backward pass makes x of the output."""
        return keeps_output(self.keep, torch.bfloat16 if self.numbers == "16" else torch.float32)

    def __str__(self) -> str:
        return f"({self.batch},{self.tokens},{self.dim}) C={self.channels}"


@dataclass
class Launch:
    """One launch: machine code, geometry, and the numbers that its loops depend on."""

    kernel: str
    phase: str  # "forward" or "backward"
    cubin: bytes
    programs: int
    warps: int
    registers: int
    shared: int
    values: dict[str, Any]  # scalar arguments and constants by name
    sizes: dict[str, int]  # bytes of the tensors by name
    assembly: Mapping[str, Any] = field(default_factory=dict, repr=False)
    counted: list[Work] = field(default_factory=list, repr=False)  # where a backend made them


def triton_launches(shape: Shape, arch: str, only: str = "") -> list[Launch]:
    """Compile one call of the Triton backend; ``only`` keeps the kernels with it in their names."""
    from benchmarks import compile_table

    found: list[Launch] = []
    phase = ["forward"]

    def keep(kernel: Any, function: Any, grid: Any, values: dict[str, Any]) -> None:
        registers, _, _ = compile_table.resources(kernel.asm["cubin"])
        given = {n: v for n, v in values.items() if isinstance(v, (int, float, str, bool))}
        sizes = {
            n: v.untyped_storage().nbytes() for n, v in values.items() if hasattr(v, "data_ptr")
        }
        found.append(
            Launch(
                function.__name__.removesuffix("_kernel"), phase[0], kernel.asm["cubin"],
                math.prod(grid), kernel.metadata.num_warps, registers, kernel.metadata.shared,
                given, sizes, kernel.asm,
            )
        )  # fmt: skip

    with compile_table.compiling(arch, keep, only), _compiling_here():
        forward, backward = compile_table.call_on_meta(
            shape.batch, (shape.side, shape.side), shape.dim, shape.channels, shape.numbers,
            keep=shape.keep,
        )  # fmt: skip
        saved = forward()
        phase[0] = "backward"
        backward(saved)
    return found


@contextlib.contextmanager
def _compiling_here() -> Iterator[None]:
    """Take no kernel from Triton's cache in the block.

    Machine code names the files that it was made of, and what loops and loads are is read there. A
    kernel that another checkout has left in the cache names files that may be gone or changed.
    """
    knobs = triton.knobs.compilation
    before, knobs.always_compile = knobs.always_compile, True
    try:
        yield
    finally:
        knobs.always_compile = before


def cuda_launches(shape: Shape, arch: str, only: str = "") -> list[Launch]:
    """Compile and count one call of the CUDA backend."""
    from benchmarks.issue_model import cuda

    return cuda.launches(shape, arch, only)


BACKENDS: dict[str, Callable[..., list[Launch]]] = {
    "triton": triton_launches,
    "cuda": cuda_launches,
}


# Programs of these kernels do one of several things: of each, the function and its programs.
ROLES: dict[str, Callable[[dict[str, Any]], dict[str, int]]] = {
    "fold": lambda v: {
        "_pack_convolution": 3, "_sum_rows": v["BC"] // v["ROWS"], "_fold_slice": v["SLICES"],
    },
    "finish": lambda v: {
        "_finish_projections": -(-v["D"] // v["BD"]), "_finish_tap": 49,
        "_finish_biases": 1, "_finish_filter": 1, "_finish_gate": 1, "_finish_point": v["BC"],
        "_finish_point_bias": 1, "_finish_gate_row": v["CQ"],
    },
}  # fmt: skip


# What a kernel does for tokens that no model's stream has but now and then: left out.
SELDOM = {"down": "_project_apart"}


def works(launch: Launch, shape: Shape) -> list[Work]:
    """Return a launch as the simulation takes it, one for each role of its programs.

    Roles run side by side on a chip that they do not fill: the longest counts.
    """
    if launch.counted:
        return launch.counted
    code = sass.parse(sass.disassemble(launch.cubin))
    turns = loop_turns(code, launch.values)
    wavefronts = banks.counted(code, launch.warps)
    roles = ROLES.get(launch.kernel, lambda values: {"": launch.programs})(launch.values)
    return [
        Work(
            code, programs, launch.warps, launch.registers, launch.shared,
            turns, _access(launch), _fill(launch, shape),
            _others(code, role, roles) | _seldom(code, launch.kernel),
            wavefronts=wavefronts,
        )
        for role, programs in roles.items()
    ]  # fmt: skip


def _seldom(code: Code, kernel: str) -> frozenset[int]:
    """Return what a kernel branches around where its tokens are as most models have them."""
    return frozenset(
        number
        for number, instruction in enumerate(code.instructions)
        if SELDOM.get(kernel, "") in source.names(instruction.frames)
    )


def _others(code: Code, role: str, roles: Iterable[str]) -> frozenset[int]:
    """Return what a role's programs branch around: the other roles, and its own other calls."""
    left_out = set(roles) - {role}
    of: dict[int, tuple[Frame, ...]] = {}  # the call of the role that an instruction is in
    for number, instruction in enumerate(code.instructions):
        called = source.names(instruction.frames)
        if role in called:
            of[number] = instruction.frames[called.index(role) + 1 :]
        elif left_out.intersection(called):
            of[number] = ()
    kept = max(of.values(), default=())  # the last call in the source
    return frozenset(number for number, call in of.items() if call != kept or not call)


def loop_turns(code: Code, values: Mapping[str, Any]) -> dict[Loop, float]:
    """Return how often each loop of the machine code turns.

    A loop belongs to the innermost ``for`` that most of its own instructions come from. Where the
    compiler has made two of one, the larger is the smaller unrolled, which takes the rest.
    """
    of_source: dict[source.Turn, list[Loop]] = {}
    taken: dict[Loop, source.Turn] = {}
    for loop in sorted(code.loops, key=lambda item: item[1] - item[0]):
        inner = code.inside(loop)
        excluded = {taken[i] for i in inner if i in taken}
        votes: Counter[source.Turn] = Counter()
        own = 0
        for number in range(loop[0], loop[1] + 1):
            if any(a <= number <= b for a, b in inner):
                continue
            frames = code.instructions[number].frames
            around = set(source.turns(frames))
            # Up to Triton 3.8 the tables may not say from where a function was called: a line of
            # one alone tells nothing of the loop around the call.
            own += bool(around) or source.names(frames[-1:])[:1] != source.names(frames)[:1]
            votes.update(around - excluded)
        likely = [t for t, n in votes.items() if 2 * n > own]
        if likely:
            taken[loop] = max(likely, key=lambda turn: (len(turn.frames), turn.line))
            of_source.setdefault(taken[loop], []).append(loop)
    turns: dict[Loop, float] = {}
    for turn, loops in of_source.items():
        total = source.count(turn, values)
        if total is None:
            continue
        loops.sort(key=lambda item: item[1] - item[0])
        smallest = loops[0][1] - loops[0][0] + 1
        for loop in reversed(loops):
            unrolled = max(1, round((loop[1] - loop[0] + 1) / smallest))
            turns[loop] = total // unrolled
            total -= unrolled * turns[loop]
    return turns


def _access(launch: Launch) -> Callable[[Instruction], Access]:
    """Return the rule by which the kernel's accesses go to memory or caches."""
    channels = launch.values.get("BC", 64)
    far = WIDE | EVICTED.get(launch.kernel, set())

    def access(instruction: Instruction) -> Access:
        roots = source.tensors(instruction.frames)
        if instruction.category == "STG":
            return Access("DRAM" if roots & WIDE else "L2")
        near = bool(NEAR.intersection(source.names(instruction.frames)))
        # Every row of a tile reads the same numbers of a channel.
        request = 4 * channels if roots & KERNELS and near else None
        if roots & far:
            return Access("DRAM")
        return Access("L1" if near else "L2", request)

    return access


def _fill(launch: Launch, shape: Shape) -> float:
    """Return the share of the rows of a kernel's tiles that are tokens."""
    block = launch.values.get("BM")
    if not block:
        return 1.0
    # Tiles that run on from image to image are counted by their kernel, for the whole batch.
    total = launch.values.get("total_tokens")
    tiles = -(-total // block) if total else launch.programs
    return min(1.0, shape.batch * shape.tokens / (tiles * block))
