"""How often machine code runs, where no source says it that can be read: from the kernel's PTX.

The tests' PTX machine runs blocks of the launch and counts each instruction. PTX and machine code
name the source line that each of their instructions comes from, and the calls around it. Of most
kinds (a product, a load, a barrier) the assembler makes one instruction of one, so what a line's
instructions of a kind were run in all, shared among those that the machine code has of them, is how
often each of these runs, also where the assembler has unrolled a loop or doubled a path.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.issue_model.sass import Code, Frame, Instruction
from benchmarks.issue_model.simulate import Loop

Frames = tuple[Frame, ...]
Key = tuple[str, Frames]
# Kinds of which the assembler makes one instruction of one.
_PTX = (
    ("HMMA", r"mma\."),
    ("PREFETCH", r"prefetch\."),
    ("LDGSTS", r"cp\.async\.c[ag]"),
    ("LDS", r"ldmatrix|ld\.(volatile\.)?shared"),
    ("STS", r"st\.(volatile\.)?shared"),
    ("LDG", r"ld\.(?!param|const|local|shared|volatile\.shared)"),
    ("STG", r"st\.(?!local|shared|volatile\.shared)"),
    ("BAR", r"bar(rier)?\.(?!warp)"),  # lanes of a warp wait for one another by no instruction
    ("SHFL", r"shfl"),
    ("FMA", r"(fma|add|sub|mul)\.(\w+\.)*f32$"),
)


@dataclass
class Counts:
    """What some blocks of a launch ran, a warp of them on average."""

    runs: dict[Key, float] = field(default_factory=dict)  # of all instructions of a kind and line
    lines: dict[Frames, float] = field(default_factory=dict)  # of one instruction of a line
    lanes: dict[Key, float] = field(default_factory=dict)  # share of a warp that is active
    near: dict[Key, float] = field(
        default_factory=dict
    )  # share of lanes that the memory does not serve
    touched: dict[Key, set[int]] = field(default_factory=dict)  # arrays, by address
    total: float = 0.0

    def kinds(self) -> Counter[str]:
        """Return warp instructions by kind."""
        found: Counter[str] = Counter()
        for (kind, _), runs in self.runs.items():
            found[kind] += runs  # type: ignore[assignment]
        return found


def gathered(result: object, warps: int) -> Counts:
    """Return the counts of a run of the PTX machine that had ``warps`` warps in all its blocks."""
    found = Counts()
    each: defaultdict[Frames, list[float]] = defaultdict(list)
    runs: Counter[Key] = Counter()
    lanes: Counter[Key] = Counter()
    near: Counter[Key] = Counter()
    instructions = result.program.instructions  # type: ignore[attr-defined]
    for place, instruction in enumerate(instructions):
        count = int(result.counts[place])  # type: ignore[attr-defined]
        each[where(instruction.frames)].append(count / warps)
        found.total += count / warps
        kind = next((n for n, p in _PTX if re.match(p, instruction.opcode)), None)
        if kind is None:
            continue
        at = kind, where(instruction.frames)
        runs[at] += count
        lanes[at] += int(result.lanes[place])  # type: ignore[attr-defined]
        near[at] += int(result.near.get(place, 0))  # type: ignore[attr-defined]
        if place in result.touched:  # type: ignore[attr-defined]
            found.touched.setdefault(at, set()).update(result.touched[place])  # type: ignore[attr-defined]
    found.runs = {key: count / warps for key, count in runs.items()}
    found.lanes = {key: lanes[key] / (32 * count) for key, count in runs.items() if count}
    found.near = {key: near[key] / lanes[key] for key in near if near[key]}
    found.lines = {frames: statistics.mean(counts) for frames, counts in each.items()}
    return found


def where(frames: Frames) -> Frames:
    """Return what a place is known by: the line, its file, and the lines of the calls around it.

    Of a call's file the assembler's tables may name the one of the function that is called.
    """
    return (*frames[:1], *(("", line) for _, line in frames[1:]))


def kind(instruction: Instruction) -> str:
    """Return what an instruction of machine code is called here."""
    return "BAR" if instruction.opcode.startswith("BAR.") else instruction.category


def key(instruction: Instruction) -> Key:
    """Return what the counts of an instruction of machine code stand under."""
    return kind(instruction), where(instruction.frames)


def renamed(code: Code, counts: Counts) -> None:
    """Give instructions the frames that they have in PTX, where the assembler has dropped some.

    Its table has no entry of its own for a call on a line of the same number, and leaves out
    others now and then. An instruction that no count stands under takes the frames of the only
    count of its kind that has just its lines, but for such repeats; or else all of them in order;
    or else of the only one of these that no instruction stands under.
    """
    have = {key(instruction) for instruction in code.instructions}
    for instruction in code.instructions:
        name, frames = key(instruction)
        if (name, frames) in counts.runs:
            continue
        same = [more for other, more in counts.runs if other == name]
        within = [more for more in same if _within(frames, more)]
        for found in (
            [more for more in same if _repeats(frames, more)],
            within,
            [more for more in within if (name, more) not in have],
        ):
            if len(found) == 1:
                instruction.frames = found[0]
                break


def _repeats(few: Frames, many: Frames) -> bool:
    return [line for _, line in few] == [line for line, _ in itertools.groupby(n for _, n in many)]


def _within(few: Frames, many: Frames) -> bool:
    left = (line for _, line in many)
    return all(line in left for _, line in few)


def adopted(code: Code, counts: Counts) -> None:
    """Add counts that no instruction stands under to others of their kind, nearest by the calls.

    The assembler's table may name the lines of a neighbour for an instruction, which then shares
    that one's counts, and its own would be lost: a product, or all of its bytes.
    """
    have = {key(instruction) for instruction in code.instructions}
    counted = {at: runs for at, runs in counts.runs.items() if runs and at in have}
    for at, runs in list(counts.runs.items()):
        same = [other for other in counted if other[0] == at[0]]
        if at in have or not runs or not same:
            continue
        depth = max(_shared(at[1], frames) for _, frames in same)
        nearest = [other for other in same if _shared(at[1], other[1]) == depth]
        total = sum(counted[other] for other in nearest)
        for other in nearest:
            _add(counts, other, at, counted[other] / total)
        for kept in (counts.runs, counts.lanes, counts.near, counts.touched):
            kept.pop(at, None)  # type: ignore[attr-defined]


def _shared(one: Frames, other: Frames) -> int:
    """Return how many of the outermost calls two places share."""
    both = zip(reversed(one), reversed(other), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0][1] == pair[1][1], both)))


def _add(counts: Counts, to: Key, at: Key, share: float) -> None:
    """Add a share of one place's counts to another's."""

    def both(of: Mapping[Key, float], have: float, more: float) -> float:
        return (of.get(to, 0.0) * have + of.get(at, 0.0) * more) / (have + more)

    have, more = counts.runs[to], share * counts.runs[at]
    lanes = have * counts.lanes.get(to, 1.0), more * counts.lanes.get(at, 1.0)
    if to in counts.near or at in counts.near:
        counts.near[to] = both(counts.near, *lanes)
    counts.lanes[to] = sum(lanes) / (have + more)
    counts.runs[to] = have + more
    if at in counts.touched:
        counts.touched.setdefault(to, set()).update(counts.touched[at])


def expected(code: Code, counts: Counts) -> list[float]:
    """Return how often a warp runs each instruction of the machine code, on average."""
    have = Counter(key(i) for i in code.instructions)
    marks = {k: counts.runs[k] / n for k, n in have.items() if k in counts.runs}
    out: list[float] = []
    before = 1.0
    for first, end in _blocks(code):
        block = code.instructions[first:end]
        found = [marks[key(i)] for i in block if key(i) in marks]
        if not found:
            found = [
                counts.lines[where(i.frames)] for i in block if where(i.frames) in counts.lines
            ]
        before = statistics.median(found) if found else before
        out += [marks.get(key(i), before) for i in block]
    return out


def _blocks(code: Code) -> Iterable[tuple[int, int]]:
    """Yield the first instruction of each stretch without a jump, and the one after its last."""
    starts = {0, *code.labels.values()}
    for number, instruction in enumerate(code.instructions):
        if re.match(r"BRA|EXIT|RET|CALL|BRX|JMP", instruction.opcode):
            starts.add(number + 1)
    edges = sorted(start for start in starts if start < len(code.instructions))
    yield from zip(edges, [*edges[1:], len(code.instructions)], strict=True)


def played(code: Code, runs: list[float]) -> list[int]:
    """Return the numbers of the instructions that one warp executes, in their order.

    As many in all as were counted: a stretch that is run in every second turn of its loop is played
    in every second. A jump backwards from a path laid out of line makes no loop: what it spans
    runs once.
    """
    turns: dict[Loop, int] = {}
    for loop in sorted(code.loops, key=_size, reverse=True):
        if any(_cross(loop, other) for other in turns):
            continue  # one of the two is no loop
        body = _own(loop, code.inside(loop))
        around = _visits(turns, loop)
        ratio = statistics.median(runs[n] for n in body) / around if body and around else 0.0
        if not 0.5 <= ratio < 1.5:
            # Most of it, not all: a path that warps without tokens leave out runs less often.
            most = sorted(runs[n] for n in body)[9 * len(body) // 10] if body else 0.0
            turns[loop] = round(most / around) if around else 0
    visits = [_visits(turns, (n, n)) for n in range(len(runs))]
    due = [0.5] * len(runs)
    out: list[int] = []

    def walk(first: int, last: int, within: list[Loop]) -> None:
        at = first
        while at <= last:
            here = [loop for loop in within if loop[0] == at]
            if here:
                loop = max(here, key=_size)
                inner = [i for i in within if loop[0] <= i[0] and i[1] <= loop[1] and i != loop]
                for _ in range(turns[loop]):
                    walk(*loop, inner)
                at = loop[1] + 1
                continue
            due[at] += runs[at] / visits[at]
            while due[at] >= 1 - 1e-9:
                due[at] -= 1
                out.append(at)
            at += 1

    walk(0, code.end - 1, list(turns))
    return out


def _size(loop: Loop) -> int:
    return loop[1] - loop[0]


def _cross(one: Loop, other: Loop) -> bool:
    (a, b), (c, d) = sorted((one, other))
    return a < c <= b < d


def _own(loop: Loop, inner: Iterable[Loop]) -> list[int]:
    """Return a loop's instructions that are in none of others."""
    within = {n for a, b in inner for n in range(a, b + 1)}
    return [n for n in range(loop[0], loop[1] + 1) if n not in within]


def _visits(turns: Mapping[Loop, int], inside: Loop) -> int:
    """Return how often a place is come to: the turns of the loops around it."""
    found = 1
    for other, count in turns.items():
        if other != inside and other[0] <= inside[0] and inside[1] <= other[1]:
            found *= count
    return found


def compared(
    code: Code, executed: Iterable[int], counts: Counts
) -> Mapping[str, tuple[float, float]]:
    """Return by kind what is played and what the PTX machine counted."""
    have = Counter(kind(code.instructions[n]) for n in executed)
    return {name: (have[name], runs) for name, runs in counts.kinds().items()}
