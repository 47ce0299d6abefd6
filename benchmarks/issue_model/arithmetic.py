"""What single instructions of machine code do to the integers of a warp's lanes.

Those that addresses of shared memory are made with are evaluated (:mod:`lanes`); of all others it
is known which registers they write, and that equal operands in all lanes give equal results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.issue_model import lanes
from benchmarks.issue_model.lanes import Lanes
from benchmarks.issue_model.sass import Instruction

State = dict[str, Lanes]  # registers and predicates of which something is known
_ZERO = {"RZ": lanes.ZERO, "URZ": lanes.ZERO, "SRZ": lanes.ZERO, "PT": lanes.ONE, "UPT": lanes.ONE}
_REGISTER = re.compile(r"([-~!]?)(\|?)(U?R\d+|U?P\d|U?RZ|SRZ|U?PT)\|?((?:\.\w+)*)$")
_PREDICATE = re.compile(r"U?P(\d|T)$")
_GENERAL = re.compile(r"U?R(\d+|Z)$")
# Kinds that write no register.
_SILENT = re.compile(
    r"ST|RED\b|RED\.|BAR|BRA|EXIT|RET|CALL|BRX|JMP|BSSY|BSYNC|BREAK|NOP|DEPBAR|LDGDEPBAR|LDGSTS"
    r"|MEMBAR|ERRBAR|CGAERRBAR|CCTL|FENCE|WARP|YIELD|NANOSLEEP|UTMA|SYNCS|END|ACQ|UCGA|KILL"
)
_TABLES = {"AND": 0xC0, "OR": 0xFC, "XOR": 0x3C}
# Kinds whose results differ from lane to lane though their operands do not.
_APART = re.compile(r"ATOM|LDSM|LDL|LDTM|P2R|R2P|ELECT|MATCH|B2R|TEX|SULD")


@dataclass(frozen=True)
class Decoded:
    """An instruction's parts."""

    name: str  # its opcode up to the first dot, without the uniform datapath's U
    suffixes: tuple[str, ...]
    writes: tuple[str, ...]  # registers; those of one result beside each other
    truths: tuple[str, ...]  # predicates that it writes
    reads: tuple[str, ...]
    guard: str


def decode(instruction: Instruction) -> Decoded:
    """Return an instruction's parts."""
    opcode, _, rest = instruction.text.partition(" ")
    name, *suffixes = opcode.split(".")
    operands = re.split(r",\s*", rest.strip()) if rest.strip() else []
    writes: list[str] = []
    truths: list[str] = []
    if not _SILENT.match(opcode):
        pairs = 2 if re.search(r"SETP|PLOP3", name) else 1
        while operands and _PREDICATE.match(operands[0]) and len(truths) < pairs:
            truths.append(operands.pop(0))
        if name == "R2P":
            truths = [f"P{n}" for n in range(7)]
        elif "SETP" not in name and operands and _GENERAL.match(operands[0]):
            writes = _range(operands.pop(0), _count(instruction, name, suffixes))
            while len(operands) > 1 and re.match(r"U?P\d$", operands[0]) and len(truths) < 2:
                truths.append(operands.pop(0))
    name = name[1:] if name[0] == "U" and len(name) > 2 else name
    kept = tuple(t for t in truths if not t.endswith("T"))
    # A place in front of a predicate that is not written keeps its own, as SETP has two.
    truths = truths if "SETP" in name or "PLOP3" in name else list(kept)
    return Decoded(
        name, tuple(suffixes), tuple(writes), tuple(truths), tuple(operands), instruction.predicate
    )


def _count(instruction: Instruction, name: str, suffixes: Sequence[str]) -> int:
    """Return how many registers a result takes, or more."""
    if name.endswith("HGMMA"):
        shape = re.search(r"64x(\d+)x", instruction.opcode)
        return int(shape[1]) // 2 if shape else 128
    if found := re.search(r"\.x(\d+)", instruction.opcode):
        return int(found[1])
    if instruction.matrices:
        return instruction.matrices
    if "MMA" in name:
        return 4
    if "128" in suffixes:
        return 4
    double = {"64", "WIDE", "F64", "U64", "S64"} & set(suffixes)
    high = "HI" in suffixes and "WIDE" not in suffixes
    if (double and not high) or name == "CS2R" or re.match(r"D(ADD|MUL|FMA|MNMX)", name):
        return 2
    return 1


def _range(first: str, count: int) -> list[str]:
    if first.endswith("Z"):
        return []
    kind, number = re.match(r"(U?R)(\d+)", first).groups()  # type: ignore[union-attr]
    return [f"{kind}{int(number) + n}" for n in range(count)]


def read(state: Mapping[str, Lanes], operand: str) -> Lanes | None:
    """Return what an operand has."""
    if found := _REGISTER.match(operand):
        sign, absolute, name, suffix = found.groups()
        value = _ZERO.get(name) or state.get(name)
        if absolute or suffix not in ("", ".reuse"):
            return lanes.anything(value)
        if sign == "!":
            return lanes.compared("EQ", value, lanes.ZERO, signed=False)
        return {"-": lanes.negative, "~": lanes.inverted}.get(sign, lambda v: v)(value)
    if re.match(r"-?0x[0-9a-f]+$", operand):
        return lanes.constant(int(operand, 16))
    # Constants, numbers with a point, descriptors and addresses: as uniform as their registers.
    inside = re.findall(r"\bU?R\d+", operand)
    return lanes.anything(*(state.get(name) for name in inside))


def address(state: Mapping[str, Lanes], operand: str) -> Lanes | None:
    """Return an address of shared memory, ``[R2.X4+UR6+0x40]``."""
    total: Lanes | None = lanes.ZERO
    for term in re.findall(r"[^+\[\]]+", operand):
        name, _, scale = term.partition(".X")
        value = read(state, name)
        total = lanes.add(total, lanes.multiply(value, lanes.constant(int(scale or 1))))
    return total


def special(name: str, warps: int) -> Lanes | None:
    """Return a special register of a block whose threads are counted along x alone."""
    thread = np.arange(32 * warps, dtype=np.uint32).reshape(warps, 32)
    if name == "SR_TID.X":
        return lanes.of(thread)
    if name == "SR_LANEID":
        return lanes.of(thread[:1])
    # No launch has clusters of blocks, by whose index shared memory is addressed.
    if name in ("SR_TID.Y", "SR_TID.Z", "SRZ", "SR_CgaCtaId"):
        return lanes.ZERO
    return lanes.SHARED if re.match(r"SR_(N?CTA|VIRT|NC|SMEM|NTID|CLOCK)", name) else None


def results(done: Decoded, state: State, warps: int) -> tuple[Lanes | None, Lanes | None]:
    """Return the lower register that an instruction writes, and its first predicate."""
    if done.name in ("S2R", "S2UR", "CS2R"):
        return special(done.reads[0] if done.reads else "", warps), None
    if _APART.match(done.name):
        return None, None
    values = [read(state, operand) for operand in done.reads]
    if "SETP" in done.name or "PLOP3" in done.name:
        return None, _truth(done, values)
    rule = _RULES.get(done.name)
    found = rule(done, values) if rule else lanes.anything(*values)
    if done.name == "R2UR" and found is not None and not found.uniform:
        found = Lanes(found.words[:, :1], found.known)
    if done.name == "LOP3":
        return found, lanes.compared("NE", found, lanes.ZERO, signed=False)
    return found, lanes.anything(*values)


def _truth(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    plain = done.name == "ISETP" and not {"EX", "U64", "S64"} & set(done.suffixes)
    if plain and done.suffixes[-1] in _TABLES and len(values) == 3:
        truth = lanes.compared(done.suffixes[0], *values[:2], signed="U32" not in done.suffixes)
        return _of_truths(_TABLES[done.suffixes[-1]], truth, values[2], lanes.ZERO)
    if done.name == "PLOP3" and len(values) >= 4:
        table = int(done.reads[3], 16)
        return _of_truths(table, *values[:3])
    return lanes.anything(*values)


def _of_truths(table: int, *truths: Lanes | None) -> Lanes | None:
    if all(t is not None and t.exact for t in truths):
        return lanes.logic(0xC0, lanes.logic(table, *truths), lanes.ONE, lanes.ZERO)
    # One of an `and` that is false, or of an `or` that is true, decides.
    for n, truth in enumerate(truths):
        number = None if truth is None else truth.number()
        if number is not None and n < 2:
            rest = {table >> case & 1 for case in range(8) if (case >> 2 - n & 1) == number}
            if len(rest) == 1:
                return lanes.constant(rest.pop())
    return lanes.anything(*truths)


def _sum(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    plain = not {"X", "16x2"} & set(done.suffixes)
    return lanes.add(*values) if plain else lanes.anything(*values)


def _multiplied(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    a, b, c = values[:3]
    if "X" in done.suffixes:
        return lanes.anything(*values)
    if "HI" in done.suffixes:
        if a is None or b is None or not (a.exact and b.exact):
            return lanes.anything(*values)
        kind = np.uint32 if "U32" in done.suffixes else np.int32
        wide = (v.words.view(kind).astype(np.int64) for v in (a, b))
        x, y = wide
        # What is added stands 32 bits higher, but for its lower word, which may carry.
        if c is None or c.number() != 0:
            return lanes.anything(*values)
        return lanes.of(((x * y) >> 32).astype(np.uint32))
    return lanes.add(lanes.multiply(a, b), c)


def _scaled(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    """Return LEA: a number shifted to the left, or what it has lost by that, and another."""
    if "X" in done.suffixes or len(values) < 3:
        return lanes.anything(*values)
    if "HI" not in done.suffixes:
        return lanes.add(lanes.shift_left(values[0], values[2]), values[1])
    signed = "SX32" in done.suffixes
    upper, by = (lanes.ZERO, values[2]) if signed else (values[2], values[-1])
    if upper is None or upper.number() != 0 or by is None:
        return lanes.anything(*values)
    rest = lanes.add(lanes.constant(32), lanes.negative(by))
    return lanes.add(lanes.shift_right(values[0], rest, signed), values[1])


def _shifted(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    low, by, high = values[:3]
    kind = ".".join(done.suffixes)
    empty = [v is not None and v.number() == 0 for v in (low, high)]
    if kind == "L.U32" and empty[1]:
        return lanes.shift_left(low, by)
    if kind in ("R.U32.HI", "R.S32.HI") and empty[0]:
        return lanes.shift_right(high, by, signed="S32" in kind)
    return lanes.anything(*values)


def _looked_up(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    return lanes.logic(int(done.reads[3], 16), *values[:3])


def _exchanged(done: Decoded, values: list[Lanes | None]) -> Lanes | None:
    source, lane = values[:2]
    if source is None or source.uniform:
        return source
    number = None if lane is None else lane.number()
    if done.suffixes != ("IDX",) or number is None or number > 31:
        return None
    return lanes.of(source.words[:, number : number + 1], source.known)


_RULES: Mapping[str, Callable[[Decoded, list[Lanes | None]], Lanes | None]] = {
    "MOV": lambda done, v: v[0],
    "IADD3": _sum,
    "VIADD": _sum,
    "IMAD": _multiplied,
    "LEA": _scaled,
    "SHF": _shifted,
    "LOP3": _looked_up,
    "PRMT": lambda done, v: lanes.permuted(*v[:3]),
    "SEL": lambda done, v: lanes.chosen(v[2], *v[:2]),
    "SGXT": lambda done, v: lanes.extended(*v[:2], signed="U32" not in done.suffixes),
    "SHFL": _exchanged,
    "R2UR": lambda done, v: v[0],
}


def execute(done: Decoded, state: State, warps: int) -> None:
    """Change a state as an instruction does."""
    guard = read(state, done.guard.lstrip("@")) if done.guard else lanes.ONE
    if guard is not None and guard.number() == 0:
        return
    register, truth = results(done, state, warps)
    written: list[tuple[str, Lanes | None]] = []
    for place, name in enumerate(done.writes):
        # Of a result's other registers no more is known than that it is the same in all lanes.
        uniform = register is not None and register.uniform
        zero = done.name == "CS2R" and register is lanes.ZERO
        written.append(
            (name, register if place == 0 or zero else lanes.SHARED if uniform else None)
        )
    for place, name in enumerate(done.truths):
        if not name.endswith("T"):
            both = truth if place == 0 else lanes.anything(truth)
            written.append((name, both))
    for name, value in written:
        kept = lanes.chosen(guard, value, state.get(name))
        if kept is None:
            state.pop(name, None)
        else:
            state[name] = kept
