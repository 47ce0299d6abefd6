"""The chip that is modelled: units, speeds, latencies, and what one program leaves of a
multiprocessor to the others.

Units, costs and cycles of an H100 are those of NVIDIA's white paper and of published
microbenchmarks (Luo et al., arXiv 2402.13499), rounded. What stands in :data:`FITTED` was fitted to
kernels that were timed on GPUs (:mod:`benchmarks.issue_model.fit`), and the bandwidths of the H100
and the H200 are those of a large copy there, read and written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from benchmarks.issue_model.sass import Instruction

# Bytes that a thread's prefetch brings to the L2 cache: the least that is likely, not measured.
PREFETCHED = 64
# Cycles that a quarter's load and store unit is busy with 128 bytes of a warp: all four share one.
WAVEFRONT = 4


@dataclass(frozen=True)
class Machine:
    """Speeds in cycles of one scheduler, a quarter of a multiprocessor."""

    name: str
    multiprocessors: int
    registers: int  # of a multiprocessor
    shared: int  # bytes of a multiprocessor
    warps: int  # of a multiprocessor
    clock: float = 1.8e9  # what ncu saw of an H100 in long kernels
    bandwidth: float = 3.0e12  # bytes a second, of the whole memory
    # A quarter multiprocessor may draw so many times its share of the bandwidth.
    burst: float = 1.0
    l2_bytes: float = 16.0  # a cycle, what a quarter may draw from the L2 cache
    # Wavefronts of shared memory for each that the bytes need, where they are not counted.
    conflicts: float = 1.0
    launch: int = 60  # cycles from a program's start to its first instruction
    ramp: float = 0.0  # seconds that a launch takes beside its programs
    gap: float = 1.0e-6  # seconds from one launch to the next
    barrier: float = 22
    write_queue: int = 1500  # cycles of stores that wait for the memory before a warp does
    schedulers: int = 4
    latency: dict[str, float] = field(
        default_factory=lambda: {
            "L1": 38, "L2": 270, "DRAM": 750, "LDS": 28, "SHFL": 25, "MUFU": 24, "CVT": 24,
            "LDL": 38, "REDUX": 25,
        }
    )  # fmt: skip

    @property
    def bytes_a_cycle(self) -> float:
        """What one scheduler's warps may draw from the memory."""
        quarters = self.multiprocessors * self.schedulers
        return self.burst * self.bandwidth / quarters / self.clock

    def micros(self, cycles: float) -> float:
        """Return cycles as microseconds."""
        return cycles / self.clock * 1e6

    def resident(self, registers: int, shared: int, warps: int) -> int:
        """Return how many programs a multiprocessor holds at once."""
        # Registers are given out eight a thread, by each scheduler to its own warps; shared memory
        # with one KiB of the system's own.
        rounded = -(-registers // 8) * 8
        at_once = self.registers // self.schedulers // (rounded * 32) * self.schedulers
        return max(
            1,
            min(
                at_once // warps,
                self.shared // (shared + 1024),
                self.warps // warps,
                32,
            ),
        )


# Latencies in cycles by name; seconds of ``ramp``; the rest are fields of a machine.
FITTED: dict[str, float] = {
    "burst": 1.0,
    "l2_bytes": 16.0,
    "conflicts": 1.2,
    "barrier": 25.9,
    "ramp": 1.57e-06,
    "L1": 46.3,
    "L2": 389.0,
    "DRAM": 2300.0,
}


def with_parameters(machine: Machine, parameters: Mapping[str, float]) -> Machine:
    """Return a machine with some of its fields and latencies set by name."""
    latency = {k: parameters.get(k, v) for k, v in machine.latency.items()}
    fields = {k: v for k, v in parameters.items() if k not in latency}
    return replace(machine, latency=latency, **fields)  # type: ignore[arg-type]


_H100 = with_parameters(Machine("H100", 132, 65536, 227 * 1024, 64, bandwidth=3.01e12), FITTED)
# The fitted parameters are in cycles, and taken over to the chips that were not measured.
MACHINES = {
    "sm_80": with_parameters(
        Machine("A100", 108, 65536, 164 * 1024, 64, clock=1.41e9, bandwidth=1.9e12), FITTED
    ),
    "sm_90": _H100,
    "sm_100": with_parameters(
        Machine("B200", 148, 65536, 227 * 1024, 64, clock=1.8e9, bandwidth=7.0e12), FITTED
    ),
}
CARDS = {"H100": _H100, "H200": replace(_H100, name="H200", bandwidth=4.24e12)}


def pipe(instruction: Instruction) -> tuple[str, int]:
    """Return the unit that executes an instruction and the cycles that it is busy.

    ``FMA`` is the pair of float units, of which integer multiplies take the ``heavy`` one.
    """
    category = instruction.category
    words = max(1, instruction.width // 4)
    if category in ("FMA", "HFMA2"):
        return "FMA", 2
    if category == "IMAD":
        return "heavy", 2
    if category == "ALU":
        return "ALU", 2
    if category in ("MUFU", "CVT"):
        return "MUFU", 8
    if category in ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDL"):
        return "LSU", WAVEFRONT * words
    if category == "PREFETCH":
        return "LSU", WAVEFRONT * 32 * PREFETCHED // 128  # a wavefront for each line of 128 bytes
    if category in ("SHFL", "REDUX"):
        return "LSU", WAVEFRONT
    if category == "UNI":
        return "uniform", 2
    return "", 0


def product_cycles(instruction: Instruction) -> int:
    """Return the cycles of the tensor core for one matrix instruction."""
    if instruction.category == "HMMA":
        # A quarter multiplies 256 pairs of 16-bit numbers a cycle, half as many of TF32: all of an
        # A100's rate, and what mma.sync is below wgmma on Hopper (arXiv 2402.13499).
        return 4 if "1688" in instruction.opcode and "TF32" not in instruction.opcode else 8
    if instruction.category == "HGMMA":
        shape = re.search(r"64x(\d+)x\d+", instruction.opcode)
        return max(16, int(shape[1]) // 2) if shape else 16
    return 0
