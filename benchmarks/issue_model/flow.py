"""What a kernel's registers hold at each access of shared memory, followed along its flow.

Stretches of code without jumps are run in their order; where two meet, what holds on both is kept.
Lanes of a warp that a jump has parted come to the place where they meet again with numbers of their
own: of what either way has written only what is exact, and the same, is kept there. So it is behind
a loop that lanes leave in different turns. Every warp of a block is followed at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.issue_model import lanes
from benchmarks.issue_model.arithmetic import State, address, decode, execute, read
from benchmarks.issue_model.lanes import Lanes
from benchmarks.issue_model.sass import Code, Instruction

Active = NDArray[np.bool_]  # lanes: (1 or warps, 1 or 32)
_OPERAND = re.compile(r"(?<![\w`(.])!?U?P\d")  # a predicate among a jump's operands


@dataclass
class _Block:
    first: int
    end: int
    next: list[int] = field(default_factory=list)  # numbers of blocks, the one jumped to last
    before: list[int] = field(default_factory=list)
    entry: State | None = None
    active: Active | None = None
    leave: dict[int, tuple[State, Active]] = field(default_factory=dict)
    meeting: bool = False  # of lanes that have come by different ways


class Flow:
    """A kernel's registers, followed until nothing changes."""

    def __init__(self, code: Code, warps: int) -> None:
        self.code, self.warps = code, warps
        self.decoded = [decode(i) for i in code.instructions]
        self.blocks = _blocks(code)
        self.after = _after(self.blocks)
        self.loops = [self._loop(first, last) for first, last in code.loops]
        self.parting: set[int] = set()  # blocks whose jump parts a warp's lanes
        self.made: dict[tuple[int, str], Lanes] = {}
        self._follow()

    def accesses(self) -> dict[int, tuple[Lanes | None, Active]]:
        """Return the addresses of all accesses of shared memory, and the lanes that make them."""
        found: dict[int, tuple[Lanes | None, Active]] = {}
        for block in self.blocks:
            if block.entry is None or block.active is None:
                continue
            state = dict(block.entry)
            for place in range(block.first, block.end):
                instruction = self.code.instructions[place]
                operand = re.search(r"\[[^\]]*\]", instruction.text)
                if instruction.category in ("LDS", "STS") and operand:
                    truth = _guard(instruction, state)
                    active = block.active
                    if truth is not None and truth.exact:
                        active = active & (truth.words != 0)
                    found[place] = address(state, operand[0]), active
                self._step(place, state)
        return found

    def _loop(self, first: int, last: int) -> tuple[set[int], set[str]]:
        """Return a loop's blocks and what is written in them."""
        inside = {n for n, b in enumerate(self.blocks) if first <= b.first and b.end <= last + 1}
        body = self.decoded[first : last + 1]
        return inside, {r for d in body for r in (*d.writes, *d.truths)}

    def _follow(self) -> None:
        start = self.blocks[0]
        start.entry, start.active = {}, np.ones((1, 1), dtype=bool)
        waiting = set(self._leave(0))
        while waiting:
            # The first of the code: what it leads to is joined when all of that has been followed.
            number = min(waiting)
            waiting.remove(number)
            if self._enter(number):
                waiting.update(self._leave(number))

    def _enter(self, number: int) -> bool:
        """Join what comes to a block; say whether that is anything new."""
        block = self.blocks[number]
        ways = [
            self.blocks[b].leave[number] for b in block.before if number in self.blocks[b].leave
        ]
        (state, active), *others = ways
        for other, mask in others:
            state, active = _joined(state, other, not block.meeting), active | mask
        if block.entry is not None and block.active is not None:
            # As before, or what holds for both: lanes go from turn to turn together.
            state, active = _joined(block.entry, state, True), active | block.active
            if _same(block.entry, state) and np.array_equal(block.active, active):
                return False
        block.entry, block.active = state, active
        return True

    def _leave(self, number: int) -> Iterator[int]:
        """Run a block, and yield those that are entered from it."""
        block = self.blocks[number]
        assert block.entry is not None
        assert block.active is not None
        state = dict(block.entry)
        for place in range(block.first, block.end):
            self._step(place, state)
        last = self.code.instructions[block.end - 1]
        truth = _condition(last, state)
        jumps = len(block.next) == 2
        if jumps and (truth is None or not truth.uniform) and number not in self.parting:
            self.parting.add(number)
            yield from self._meetings(number)
        for place, target in enumerate(block.next):
            active = block.active
            if truth is not None and truth.exact and (jumps or last.opcode == "EXIT"):
                active = active & ((truth.words != 0) == (place == 1))
            if active.any():
                block.leave[target] = self._out(number, target, state), active
                yield target

    def _step(self, place: int, state: State) -> None:
        done = self.decoded[place]
        if done.name == "CALL":
            for name in self._called(place):
                state.pop(name, None)
        execute(done, state, self.warps)
        for name in (*done.writes, *done.truths):
            # The same number again, known by its object, where a path is followed once more.
            value, before = state.get(name), self.made.get((place, name))
            if value is not None:
                same = before is not None and lanes.alike(before, value)
                state[name] = self.made[place, name] = before if same and before else value

    def _called(self, place: int) -> set[str]:
        """Return what the function that is called at a place may write."""
        target = re.search(r"`\((.*)\)", self.code.instructions[place].text)
        start = self.code.labels.get(target[1], 0) if target else 0
        ends = [n for name, n in self.code.labels.items() if name.startswith("$") and n > start]
        body = self.decoded[start : min(ends, default=None)]
        return {r for d in body for r in (*d.writes, *d.truths)}

    def _meetings(self, number: int) -> Iterator[int]:
        """Mark where lanes that a jump has parted meet again; yield what is joined anew."""
        block = self.blocks[number]
        left = [b for b, _ in self.loops if number in b and not b >= set(block.next)]
        # Those that stay in a loop which others have left are together in it.
        around = min(left, key=len, default=set())
        one, other = (self._reached(first, self.after[number]) for first in block.next)
        for here in (one & other) - around:
            if len(self.blocks[here].before) > 1 and not self.blocks[here].meeting:
                self.blocks[here].meeting = True
                if self.blocks[here].entry is not None:
                    yield here

    def _reached(self, first: int, end: int | None) -> set[int]:
        """Return the blocks that are come to from one, up to another."""
        found: set[int] = set()
        todo = [first]
        while todo:
            here = todo.pop()
            if here not in found:
                found.add(here)
                todo += self.blocks[here].next if here != end else []
        return found

    def _out(self, number: int, target: int, state: State) -> State:
        """Return what is known where a jump arrives, out of loops that lanes leave apart."""
        gone: set[str] = set()
        for inside, written in self.loops:
            left = number in inside and target not in inside
            if left and any(not inside >= set(self.blocks[n].next) for n in inside & self.parting):
                gone |= written
        return {n: v for n, v in state.items() if n not in gone or v.exact} if gone else state


def _guard(instruction: Instruction, state: State) -> Lanes | None:
    return read(state, instruction.predicate[1:]) if instruction.predicate else lanes.ONE


def _condition(last: Instruction, state: State) -> Lanes | None:
    """Return the predicate under which an instruction jumps or leaves."""
    operands = _OPERAND.findall(last.text)
    if not operands:
        return _guard(last, state)
    return read(state, operands[0]) if len(operands) == 1 and not last.predicate else None


def _joined(one: State, other: State, together: bool) -> State:
    if one is other:
        return one
    both = {n: lanes.joined(v, other[n], together) for n, v in one.items() if n in other}
    return {n: v for n, v in both.items() if v is not None}


def _same(one: State, other: State) -> bool:
    return len(one) == len(other) and all(other.get(n) is v for n, v in one.items())


def _blocks(code: Code) -> list[_Block]:
    """Return the stretches of code without jumps, and where each goes on."""
    starts = {0, *code.labels.values()}
    for number, instruction in enumerate(code.instructions):
        if re.match(r"BRA|EXIT|RET|BRX|JMP", instruction.opcode):
            starts.add(number + 1)
    edges = sorted(n for n in starts if n < len(code.instructions))
    of = {start: n for n, start in enumerate(edges)}
    ends = [*edges[1:], len(code.instructions)]
    blocks = [_Block(first, end) for first, end in zip(edges, ends, strict=True)]
    for number, block in enumerate(blocks):
        block.next = _next(code, block.end - 1, number, of)
        for target in block.next:
            blocks[target].before.append(number)
    return blocks


def _next(code: Code, last: int, number: int, of: dict[int, int]) -> list[int]:
    instruction = code.instructions[last]
    on = [number + 1] if last + 1 < len(code.instructions) else []
    # Lanes that wait for each other are never apart: what BRA.DIV guards against is not followed.
    if instruction.opcode == "BRA.DIV":
        return on
    if not re.match(r"BRA|EXIT|RET|BRX|JMP", instruction.opcode):
        return on
    conditional = bool(instruction.predicate) or bool(_OPERAND.search(instruction.text))
    target = re.search(r"`\((\.L_x_\d+)\)", instruction.text)
    there = [of[code.labels[target[1]]]] if target and target[1] in code.labels else []
    return [n for n in on if conditional and n not in there] + there


def _after(blocks: list[_Block]) -> list[int | None]:
    """Return for each block the next one that all ways from it lead through."""
    every = set(range(len(blocks)))
    behind = [every if block.next else {n} for n, block in enumerate(blocks)]
    changed = True
    while changed:
        changed = False
        for n in reversed(range(len(blocks))):
            if blocks[n].next:
                found = set.intersection(*(behind[t] for t in blocks[n].next)) | {n}
                if found != behind[n]:
                    behind[n], changed = found, True
    # The nearest has all of the others behind it.
    return [
        max(behind[n] - {n}, key=lambda m: len(behind[m]), default=None) for n in range(len(blocks))
    ]
