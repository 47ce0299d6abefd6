"""Wavefronts of shared memory for each access of a kernel, counted from the addresses of its lanes.

Shared memory has 32 banks of four bytes. A wavefront serves each bank one word, to all lanes that
want it: a warp's accesses of 4 bytes take as many as different words fall on one bank, those of 8
bytes are served by half warps and those of 16 by quarters. Where lanes that are neighbours load the
same, twice as many are served at once. Machine code says how the addresses are made of the thread's
index (:mod:`flow`, :mod:`arithmetic`, :mod:`lanes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from benchmarks.issue_model.flow import Active, Flow
from benchmarks.issue_model.lanes import Lanes
from benchmarks.issue_model.sass import Code, Instruction

_ROW = 128  # bytes of all banks; a row of a matrix has 16


def wavefronts(addresses: Sequence[int], width: int, load: bool = True) -> int:
    """Return the wavefronts of one warp's access, by the addresses of its active lanes.

    ``addresses`` has one of each of the 32 lanes, -1 where a lane is not active.
    """
    together = min(32, _ROW // width)
    if width > 4 and load and _pairs(addresses):
        together *= 2
    return sum(
        _turns(addresses[first : first + together], width) for first in range(0, 32, together)
    )


def _pairs(addresses: Sequence[int]) -> bool:
    """Whether lanes that differ in their lowest bit, or in the next, read the same."""
    return any(
        all(
            here == there or min(here, there) < 0
            for here, there in ((addresses[n], addresses[n ^ apart]) for n in range(32))
        )
        for apart in (1, 2)
    )


def _turns(addresses: Iterable[int], width: int) -> int:
    words: dict[int, set[int]] = {}
    for start in addresses:
        if start >= 0:
            for word in range(start // 4, (start + width - 1) // 4 + 1):
                words.setdefault(word % 32, set()).add(word)
    return max(map(len, words.values()), default=0)


def counted(code: Code, warps: int) -> dict[int, float]:
    """Return the wavefronts of each access whose lanes are known, a mean of a block's warps."""
    found = {
        number: _mean(code.instructions[number], where, active, warps)
        for number, (where, active) in Flow(code, warps).accesses().items()
    }
    return {number: mean for number, mean in found.items() if mean is not None}


def _mean(
    instruction: Instruction, where: Lanes | None, active: Active, warps: int
) -> float | None:
    if not active.any():
        return 0.0
    # All moved by a multiple of four bytes they fall on the banks alike.
    if where is None or (where.known < 2 and instruction.width < 4):
        return None
    there = np.broadcast_to(active, (warps, 32))
    width, load = instruction.width, instruction.category == "LDS"
    if instruction.matrices:  # a lane has the address of a row
        there = there & (np.arange(32) < 8 * instruction.matrices)
        width, load = 16, False
    seen: dict[tuple[int, ...], int] = {}
    total = 0
    for row, mask in zip(np.broadcast_to(where.words, (warps, 32)), there, strict=True):
        if not mask.any():
            continue
        first = int(row[mask][0])
        start = np.uint32(first if where.known < 2 else first // _ROW * _ROW)
        apart = (row - start).view(np.int32).astype(np.int64)
        apart -= apart[mask].min() // _ROW * _ROW  # none is negative
        key = tuple(np.where(mask, apart, -1).tolist())
        if key not in seen:
            seen[key] = wavefronts(key, width, load)
        total += seen[key]
    return total / warps
