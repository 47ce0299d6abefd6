"""Cycles of one multiprocessor, played from the machine code of one kernel.

A quarter of the multiprocessor is simulated: one scheduler, which issues one warp instruction a
cycle. A warp issues in order; it waits for its stall counts and scoreboards, for the unit, for
``cp.async`` groups, matrix products and barriers. Both sides of a branch are executed, as ptxas
predicates most of them. Accesses of shared memory take the wavefronts that were counted for them
(:mod:`banks`); where the addresses of their lanes are not known, those that the bytes need, times a
factor of the machine. Not modelled: the instruction cache, memory fences, and the order in which
the memory serves other multiprocessors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.issue_model.machine import (
    PREFETCHED,
    WAVEFRONT,
    Machine,
    pipe,
    product_cycles,
)
from benchmarks.issue_model.sass import NO_BARRIER, Code, Instruction

Loop = tuple[int, int]


@dataclass(frozen=True)
class Access:
    """Where a global access ends (``L1``, ``L2``, ``DRAM``), and the bytes of a warp's request."""

    level: str
    request: int | None = None  # distinct bytes, where the lanes ask for the same ones
    far: float = 1.0  # share of the bytes that the memory is asked for, and not a prefetch before


@dataclass
class Work:
    """A kernel's launch, ready to be played."""

    code: Code
    programs: int
    warps: int  # of a program
    registers: int
    shared: int
    turns: Mapping[Loop, float]  # of each loop; the missing ones turn once
    access: Callable[[Instruction], Access]
    fill: float = 1.0  # the share of a tile's rows that are not padding
    skipped: frozenset[int] = frozenset()  # instructions that these programs branch around
    order: list[int] | None = None  # what a warp executes, where it was counted: no turns needed
    wavefronts: Mapping[int, float] = field(default_factory=dict)  # of shared memory, where known


@dataclass
class Modelled:
    """What a launch takes, modelled."""

    micros: float
    resident: int  # programs of a multiprocessor
    instructions: int  # of one warp
    guessed: int  # loops whose turns are not known: played once
    issue_micros: float  # if a scheduler issued one each cycle
    pipe_micros: dict[str, float] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)
    issued_a_cycle: float = 0.0
    memory_bytes: float = 0.0


def trace(code: Code, turns: Mapping[Loop, float]) -> list[int]:
    """Return the numbers of the instructions that a warp executes, loops unrolled."""
    out: list[int] = []

    def walk(first: int, last: int, within: list[Loop]) -> None:
        at = first
        while at <= last:
            here = [loop for loop in within if loop[0] == at]
            if here:
                loop = max(here, key=lambda item: item[1])
                inner = [i for i in within if loop[0] <= i[0] and i[1] <= loop[1] and i != loop]
                for _ in range(round(turns.get(loop, 1))):
                    walk(*loop, inner)
                at = loop[1] + 1
            else:
                out.append(at)
                at += 1

    walk(0, code.end - 1, list(code.loops))
    return out


def model(work: Work, machine: Machine) -> Modelled:
    """Play one multiprocessor's share of a launch."""
    executed = work.order
    if executed is None:
        executed = [n for n in trace(work.code, work.turns) if n not in work.skipped]
    resident = machine.resident(work.registers, work.shared, work.warps)
    share = -(-work.programs // machine.multiprocessors)
    player = _Player(work, machine, executed)
    # Programs of less than a warp a scheduler are dealt out in turn, as all warps are: a scheduler
    # has warps of some. It is the first that has its part of the last of them.
    cycles, issued, moved = player.play(min(resident, share), share)
    scale = machine.multiprocessors * machine.schedulers * machine.clock / 1e6
    pipes: Counter[str] = Counter()
    for number in executed:
        step = player.steps[number]
        if step.pipe:
            pipes["FMA" if step.pipe == "heavy" else step.pipe] += step.cost
        pipes["tensor"] += step.product
    pipes["FMA"] //= 2  # a pair of units
    total = work.programs * work.warps
    return Modelled(
        micros=machine.micros(cycles) + 1e6 * machine.ramp,
        resident=resident,
        instructions=len(executed),
        guessed=sum(loop not in work.turns for loop in work.code.loops) * (work.order is None),
        issue_micros=total * len(executed) / scale,
        pipe_micros={name: total * busy / scale for name, busy in pipes.items() if busy},
        categories=Counter(work.code.instructions[number].category for number in executed),
        issued_a_cycle=issued / max(1, cycles),
        memory_bytes=moved * machine.schedulers * machine.multiprocessors,
    )


class _Step:
    """An instruction with everything that playing it needs, worked out once.

    Where accesses were counted, loads say themselves which share a prefetch has brought near; else
    a prefetch's bytes are ``ahead`` of the loads of its warp.
    """

    __slots__ = (
        "ahead", "arrives", "barrier", "category", "commits", "cost", "far", "kind", "level",
        "pipe", "product", "read", "request", "stall", "waits", "write",
    )  # fmt: skip

    def __init__(self, number: int, work: Work, machine: Machine) -> None:
        instruction = work.code.instructions[number]
        self.category = instruction.category
        self.pipe, self.cost = pipe(instruction)
        if number in work.wavefronts:
            self.cost = round(WAVEFRONT * work.wavefronts[number])
        elif self.category in ("LDS", "STS") and not instruction.matrices:
            self.cost = round(self.cost * machine.conflicts)
        self.product = product_cycles(instruction)
        self.stall = max(1, instruction.stall)
        self.write = instruction.write_barrier
        self.read = instruction.read_barrier
        self.waits = [b for b in range(6) if instruction.waits >> b & 1]
        self.level, self.request, self.far = "", 0.0, 1.0
        self.ahead = 0.0
        if self.category == "PREFETCH":
            counted = work.access(instruction).request
            self.level, self.request = "DRAM", (counted or 32 * PREFETCHED) * work.fill
            self.ahead = 0.0 if counted else self.request
        elif self.category in ("LDG", "LDGSTS", "STG"):
            access = work.access(instruction)
            self.level, self.far = access.level, access.far
            lanes = 32 * instruction.width
            if access.request is not None and access.request < lanes:
                self.cost = 4 * max(1, -(-access.request // 128))
                lanes = access.request
            self.request = lanes * work.fill
        self.barrier = instruction.opcode.startswith("BAR.")
        self.commits = instruction.opcode.startswith("LDGDEPBAR")
        self.arrives = "gsb0" in instruction.text
        self.kind = ""
        if instruction.opcode.startswith("DEPBAR") and "SB0" in instruction.text:
            self.kind, self.request = "copies", instruction.operand(r"SB0, (0x\w+)")
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            self.kind, self.request = "products", instruction.operand(r"gsb0, (0x\w+)")


class _Warp:
    __slots__ = (
        "ahead", "arrival", "at", "barred", "boards", "copies", "pending", "products", "program",
        "ready",
    )  # fmt: skip

    def __init__(self, program: _Program, ready: int) -> None:
        self.program, self.ready = program, ready
        self.at = 0
        self.boards = [0.0] * 6
        self.copies: list[float] = []  # when each committed group of cp.async is there
        self.products: list[float] = []  # when each committed group of products is done
        self.pending = 0.0
        self.ahead = 0.0  # bytes asked for that no load has read yet
        self.arrival = 0.0  # when all of them are in the L2 cache
        self.barred = False


class _Program:
    __slots__ = ("left", "waiting")

    def __init__(self, warps: int) -> None:
        self.left = warps
        self.waiting: list[_Warp] = []

    def release(self, at: float) -> None:
        if self.waiting and len(self.waiting) == self.left:
            for warp in self.waiting:
                warp.barred, warp.ready = False, max(warp.ready, at)
            self.waiting = []


class _Player:
    def __init__(self, work: Work, machine: Machine, executed: list[int]) -> None:
        self.work, self.machine = work, machine
        self.steps = {n: _Step(n, work, machine) for n in set(executed)}
        self.sequence = [self.steps[n] for n in executed]
        self.free: defaultdict[str, float] = defaultdict(float)
        self.memory = 0.0  # when the memory has served what was asked of it
        self.cache = 0.0  # the same of the L2 cache
        self.moved = 0.0

    def play(self, resident: int, total: int) -> tuple[float, int, float]:
        """Return cycles, issued instructions and bytes of a scheduler's part of ``total``."""
        warps: list[_Warp] = []
        started = 0

        def start(now: float) -> None:
            # Where schedulers have unlike numbers of a program's warps, they take turns at it.
            nonlocal started
            before, after = (
                (started + i) * self.work.warps // self.machine.schedulers for i in (0, 1)
            )
            started += 1
            program = _Program(after - before)
            ready = int(now) + self.machine.launch
            warps.extend(_Warp(program, ready) for _ in range(after - before))

        for _ in range(resident):
            start(0)
        while not warps and started < total:
            start(0)
        now, issued, turn = 0.0, 0, 0
        while warps:
            best, when = self._next(warps, now, turn)
            warp = warps[best]
            self._issue(warp, self.sequence[warp.at], when)
            issued += 1
            turn, now = best, when + 1
            warp.at += 1
            if warp.at == len(self.sequence):
                warps.remove(warp)
                warp.program.left -= 1
                if warp.program.left:
                    warp.program.release(now)
                else:
                    # One that has no warp here takes no place here.
                    before = len(warps)
                    while started < total and len(warps) == before:
                        start(now)
        return max(now, self.memory, self.cache), issued, self.moved

    def _next(self, warps: list[_Warp], now: float, turn: int) -> tuple[int, float]:
        """Return the warp that issues next, in turn where several could, and when."""
        count = len(warps)
        best, when, rank = -1, float("inf"), count
        for index, warp in enumerate(warps):
            if warp.barred:
                continue
            at = max(now, self._earliest(warp))
            order = (index - turn) % count
            if at < when or (at == when and order < rank):
                best, when, rank = index, at, order
        if best < 0:
            raise RuntimeError("every warp waits at a barrier")
        return best, when

    def _earliest(self, warp: _Warp) -> float:
        step = self.sequence[warp.at]
        at = warp.ready
        for board in step.waits:
            if warp.boards[board] > at:
                at = warp.boards[board]
        if step.kind:
            groups = warp.copies if step.kind == "copies" else warp.products
            finished = groups[: len(groups) - int(step.request)]
            if finished:
                at = max(at, *finished)
        if step.pipe == "FMA":
            at = max(at, min(self.free["heavy"], self.free["light"]))
        elif step.pipe:
            at = max(at, self.free[step.pipe])
        return at

    def _issue(self, warp: _Warp, step: _Step, now: float) -> None:
        machine = self.machine
        if step.pipe == "FMA":
            self.free["light" if self.free["light"] <= now else "heavy"] = now + step.cost
        elif step.pipe:
            self.free[step.pipe] = now + step.cost
        done = now + 6
        if step.category == "PREFETCH":
            warp.ahead += step.ahead
            warp.arrival = self._moved(step, now) + 0.6 * machine.latency["DRAM"]
        elif step.category in ("LDG", "LDGSTS"):
            done = self._load(step, now, warp)
            if step.category == "LDGSTS":
                warp.pending = max(warp.pending, done)
        elif step.category in ("STG", "STS"):
            done = now + step.cost + 20
            if step.level:
                warp.ready = max(warp.ready, self._moved(step, now) - machine.write_queue)
        elif step.category in machine.latency:
            done = now + step.cost + machine.latency[step.category]
        elif step.category == "LDC":
            done = now + 35
        elif step.category == "UNI":
            done = now + 14
        elif step.product:
            self.free["tensor"] = max(self.free["tensor"], now) + step.product
            done = self.free["tensor"] + (30 if step.category == "HGMMA" else 20)
            if step.arrives:
                warp.products = [*warp.products[-7:], done]
        if step.commits:
            warp.copies = [*warp.copies[-23:], warp.pending]
            warp.pending = 0.0
        if step.write != NO_BARRIER:
            warp.boards[step.write] = max(warp.boards[step.write], done)
        if step.read != NO_BARRIER:
            warp.boards[step.read] = max(warp.boards[step.read], now + max(step.cost, 8) + 6)
        warp.ready = max(warp.ready, now + step.stall)
        if step.barrier:
            warp.barred = True
            warp.program.waiting.append(warp)
            warp.program.release(now + machine.barrier)

    def _moved(self, step: _Step, now: float) -> float:
        """Return when the caches, and the memory where it is asked, have served a request."""
        machine = self.machine
        if step.level == "L1":
            return now
        self.cache = max(self.cache, now) + step.request / machine.l2_bytes
        if step.level != "DRAM":
            return self.cache
        self.memory = max(self.memory, now) + step.request * step.far / machine.bytes_a_cycle
        self.moved += step.request * step.far
        return max(self.cache, self.memory)

    def _load(self, step: _Step, now: float, warp: _Warp) -> float:
        if step.level == "DRAM" and warp.ahead > 0:
            # A program's warps ask for as much as they read, though not each for its own.
            warp.ahead -= step.request
            self.cache = max(self.cache, now) + step.request / self.machine.l2_bytes
            there = max(self.cache, warp.arrival) + self.machine.latency["L2"]
            return max(now + step.cost + self.machine.latency["L2"], there)
        latency = self.machine.latency[step.level]
        served = self._moved(step, now)
        queued = 0.6 * latency if step.level == "DRAM" else latency
        return max(now + step.cost + latency, served + queued)
