"""Matrix products in flight where the shared memory that they read is filled again.

On Hopper a ``wgmma`` reads its operands from shared memory after it is issued. Triton pipelines
loads through a ring of slots there; a slot may be filled again (``cp.async``, LDGSTS in machine
code) only when every product that reads it is done. Two views of each loop with both:

- Triton's own representation says which ring a product reads and which turn's slot is refilled.
  A product in flight that reads that slot is a defect, even where ptxas happens to serialise it.
- The machine code says how many groups are pending at the first refill in fact, and how many
  barriers of the whole program stand between the last wait and that refill: waiting for one's own
  products does not wait for those of another warp group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.issue_model import sass
from benchmarks.issue_model.launches import Launch
from benchmarks.issue_model.sass import Code
from benchmarks.issue_model.simulate import Loop


@dataclass(frozen=True)
class Loops:
    """What the loops of one kernel with products and refills have in flight."""

    kernel: str
    warps: int
    unguarded: tuple[str, ...]  # rings that a product in flight reads while they are refilled
    pending: tuple[int, ...]  # of each loop of the machine code, groups at the first refill
    barriers: tuple[int, ...]

    def problem(self) -> str | None:
        """Return what is wrong, if anything."""
        if self.unguarded:
            return f"a product in flight reads {', '.join(self.unguarded)} while it is refilled"
        if self.warps > 4 and 0 in self.barriers:
            return "no barrier keeps one warp group's refill from the other's products"
        return None

    def __str__(self) -> str:
        return (
            f"{self.kernel}: {self.warps} warps, at the first refill {list(self.pending)} groups "
            f"pending, {list(self.barriers)} barriers since the wait: {self.problem() or 'sound'}"
        )


def check(launches: Sequence[Launch]) -> list[Loops]:
    """Return what is in flight in every kernel that refills what products read."""
    found = []
    for launch in launches:
        code = sass.parse(sass.disassemble(launch.cubin))
        counted = [c for c in (in_flight(code, loop) for loop in code.loops) if c is not None]
        rings = unguarded(launch.assembly["ttgir"])
        if counted or rings:
            found.append(
                Loops(
                    launch.kernel, launch.warps, tuple(rings),
                    tuple(c[0] for c in counted), tuple(c[1] for c in counted),
                )
            )  # fmt: skip
    return found


def in_flight(code: Code, loop: Loop) -> tuple[int, int] | None:
    """Return the pending groups at a loop's first refill, and the barriers since the last wait.

    None where the loop has no products or no refill. Two turns are followed, for the products of
    one meet the refill of the next.
    """
    body = [code.instructions[n] for n in range(loop[0], loop[1] + 1)]
    refill = next((n for n, i in enumerate(body) if i.category == "LDGSTS"), None)
    if refill is None or not any(i.category == "HGMMA" for i in body):
        return None
    pending = barriers = 0
    for instruction in [*body, *body[:refill]]:
        if instruction.category == "HGMMA":
            pending += "gsb0" in instruction.text
        elif instruction.opcode.startswith("WARPGROUP.DEPBAR"):
            pending = min(pending, instruction.operand(r"gsb0, (0x\w+)"))
            barriers = 0
        elif instruction.opcode.startswith("BAR."):
            barriers += 1
    return pending, barriers


SLOT = re.compile(r"(%\w+) = ttg\.memdesc_(?:index|trans|subslice|reinterpret) (%\w+)")
RING = re.compile(r"(%\w+) = ttg\.local_alloc\s*:.*memdesc<(\d+)x\d+x\d+x\w+, [^>]*mutable>")
PRODUCT = re.compile(r"ttng\.warp_group_dot (%[\w#]+), (%[\w#]+),.*isAsync = true")
WAIT = re.compile(r"warp_group_dot_wait .*pendings = (\d+)")
COPY = re.compile(r"async_copy_global_to_local %[\w#]+, (%[\w#]+)")


def unguarded(ttgir: str) -> list[str]:
    """Return the rings, by name, that a pending product reads while their slot is refilled."""
    rings = {found[1]: int(found[2]) for found in RING.finditer(ttgir)}
    found: list[str] = []
    before: list[str] = []
    for inside, lines in _stretches(ttgir):
        if inside:
            found += _unguarded(before, lines, rings)
            before = []
        else:
            before = lines
    return sorted(set(found))


def _unguarded(before: list[str], loop: list[str], rings: dict[str, int]) -> Iterator[str]:
    parent = {f[1]: f[2] for line in [*before, *loop] if (f := SLOT.search(line))}

    def ring(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    ahead = {r: sum(ring(f[1]) == r for line in before if (f := COPY.search(line))) for r in rings}
    flying: list[tuple[int, set[str]]] = []
    for turn in range(2):
        for line in loop:
            if product := PRODUCT.search(line):
                flying.append((turn, {ring(product[1]), ring(product[2])}))
            elif wait := WAIT.search(line):
                flying = flying[max(0, len(flying) - int(wait[1])) :]
            elif (copy := COPY.search(line)) and ring(copy[1]) in rings:
                name = ring(copy[1])
                refilled = turn + ahead[name] - rings[name]
                if any(name in read and when <= refilled for when, read in flying):
                    yield name.lstrip("%")


def _stretches(ttgir: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield the lines outside of and inside the innermost loops, in their order."""
    lines: list[str] = []
    depth: list[int] = []
    level = 0
    for line in ttgir.splitlines():
        opens = "scf.for" in line
        if opens:
            yield False, lines
            lines = []
            depth.append(level)
        level += line.count("{") - line.count("}")
        lines.append(line)
        if depth and level <= depth[-1]:
            depth.pop()
            yield True, lines
            lines = []
    yield False, lines
