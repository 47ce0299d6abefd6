"""The machine: blocks one after another, of a block all threads at the lowest place in the text.

Threads are array elements. Those that went ahead wait until the others have come to where they
are, or to a barrier; so lanes meet again wherever the compiler's text lets them. What a copy
(cp.async) brings is there only once it is waited for; until then its target holds 0xff bytes, as
all of shared memory does at first.
"""

from dataclasses import dataclass, field

import numpy as np

from . import memory as spaces
from .operands import Operands
from .operations import build
from .warp import LANES

SHARED_START = 1024  # shared addresses begin here, so that a null pointer is out of bounds


@dataclass
class Result:
    """What a launch did.

    Attributes:
        counts: warp instructions issued, by place in the program.
        lanes: threads that were active in them.
        touched: addresses of the arrays in global memory that an instruction went to.
        near: threads whose copies an instruction began that ask nothing of the memory: of no bytes,
            or from where a prefetch had been.
        undefined: registers that were read where nothing had been written, as texts of the
            instructions that did.
    """

    program: object
    counts: np.ndarray
    lanes: np.ndarray
    touched: dict = field(default_factory=dict)
    near: dict = field(default_factory=dict)
    undefined: set = field(default_factory=set)

    def by_opcode(self):
        """Return warp instructions by the opcode's first part, most first."""
        totals = {}
        for instruction, count in zip(self.program.instructions, self.counts, strict=True):
            part = instruction.parts[0]
            totals[part] = totals.get(part, 0) + int(count)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def by_phase(self):
        """Return warp instructions between one barrier of the text and the next."""
        phases = [0]
        for instruction, count in zip(self.program.instructions, self.counts, strict=True):
            phases[-1] += int(count)
            if instruction.parts[0] in ("bar", "barrier"):
                phases.append(0)
        return phases


class Machine:
    """Runs one kernel on a memory."""

    def __init__(self, program, memory):
        self.program = program
        self.memory = memory

    def run(self, blocks, threads, shared_bytes, params, order=None):
        """Launch the kernel.

        Args:
            blocks, threads: of the grid, of a block.
            shared_bytes: dynamic shared memory of a block.
            params: the parameters' bytes.
            order: the blocks' order, if not by number.
        """
        if threads % LANES or self.program.threads not in (None, threads):
            raise ValueError(f"{threads} threads a block; compiled for {self.program.threads}")
        if len(params) != self.program.parameter_bytes:
            raise ValueError(
                f"{len(params)} bytes of parameters; the kernel takes "
                f"{self.program.parameter_bytes}"
            )
        size = len(self.program.instructions)
        result = Result(self.program, np.zeros(size, np.int64), np.zeros(size, np.int64))
        for block in range(blocks) if order is None else order:
            _Block(self, result, block, blocks, threads, shared_bytes, params).run()
        return result


class _Block:
    def __init__(self, machine, result, index, blocks, threads, shared_bytes, params):
        self.program, self.memory, self.result = machine.program, machine.memory, result
        self.threads = threads
        self.params = np.frombuffer(bytes(params), np.uint8)
        self.shared = np.full(self.program.static_shared + shared_bytes, 0xFF, np.uint8)
        self.registers = Operands(self, index, blocks, threads)
        self.copies = []  # [groups, threads, shared offsets, bytes] of each instruction
        self.groups = np.zeros(threads, np.int64)  # that a thread has closed
        self.code = [build(self, instruction) for instruction in self.program.instructions]
        self.ready = {0: np.ones(threads, bool)}  # masks by place
        self.waiting = {}

    def run(self):
        while self.ready or self.waiting:
            if not self.ready:
                if len(self.waiting) > 1:
                    texts = [self.program.instructions[place - 1].text for place in self.waiting]
                    raise RuntimeError(f"threads are at different barriers: {texts}")
                self.ready, self.waiting = self.waiting, {}
            place = min(self.ready)
            self.advance(place, self.ready.pop(place))
        if self.copies:
            raise RuntimeError("a thread ends with copies that it did not wait for")

    def advance(self, place, mask):
        """Run threads from a place on, until others are behind them or they part."""
        behind = min(self.ready, default=None)
        warps, threads = int(mask.reshape(-1, LANES).any(1).sum()), int(mask.sum())
        instructions, counts = self.program.instructions, self.result.counts
        lanes = self.result.lanes
        with np.errstate(all="ignore"):
            while True:
                if place == len(instructions):
                    return
                if behind is not None and place >= behind:
                    self.join(place, mask)
                    return
                instruction = instructions[place]
                counts[place] += warps
                active = mask
                if instruction.predicate is not None:
                    active = mask & self.registers.predicate(instruction, mask)
                kind = instruction.parts[0]
                if kind == "bra":
                    self.join(self.program.labels[instruction.operands[0]], active)
                    self.join(place + 1, mask & ~active)
                    return
                if kind in ("ret", "exit"):
                    self.join(place + 1, mask & ~active)
                    return
                if instruction.parts[:2] == ["bar", "warp"]:  # lanes run side by side in any case
                    place += 1
                    continue
                if kind in ("bar", "barrier"):
                    if active is not mask:
                        raise NotImplementedError(instruction.text)
                    self.waiting[place + 1] = self.waiting.get(place + 1, False) | mask
                    return
                if count := threads if active is mask else int(active.sum()):
                    lanes[place] += count
                    try:
                        self.code[place](active)
                    except (IndexError, RuntimeError, KeyError) as error:
                        raise type(error)(f"{error} (at: {instruction.text})") from error
                    if self.memory.seen:
                        self.result.touched.setdefault(place, set()).update(self.memory.seen)
                        self.memory.seen = set()
                    if self.memory.near:
                        near = self.result.near
                        near[place] = near.get(place, 0) + self.memory.near
                        self.memory.near = 0
                place += 1

    def join(self, place, mask):
        if mask.any():
            self.ready[place] = self.ready[place] | mask if place in self.ready else mask

    def together(self, mask):
        """Return which warps are active; a warp instruction needs all lanes of each."""
        lanes = mask.reshape(-1, LANES)
        warps = lanes.all(1)
        if (lanes.any(1) != warps).any():
            raise RuntimeError("lanes of a warp are missing")
        return warps

    def shared_offsets(self, addresses, size):
        offsets = addresses.astype(np.int64) - SHARED_START
        if (offsets < 0).any() or (offsets + size > self.shared.size).any():
            raise IndexError(f"out of bounds of {self.shared.size} bytes of shared memory")
        if (offsets % size).any():
            raise IndexError("misaligned access to shared memory")
        return offsets

    def start_copy(self, mask, to, rows):
        offsets = self.shared_offsets(to, rows.shape[1])
        spaces.scatter(self.shared, offsets, np.full_like(rows, 0xFF))
        self.copies.append([self.groups[mask], np.flatnonzero(mask), offsets, rows])

    def finish_copies(self, mask, pending):
        """Bring what all but the latest ``pending`` groups of each active thread copy."""
        left = []
        for group, thread, offsets, rows in self.copies:
            due = mask[thread] & (group < self.groups[thread] - pending)
            spaces.scatter(self.shared, offsets[due], rows[due])
            if not due.all():
                left.append([group[~due], thread[~due], offsets[~due], rows[~due]])
        self.copies = left
