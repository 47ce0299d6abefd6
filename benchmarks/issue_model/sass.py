"""Machine code as nvdisasm prints it: instructions, what the assembler says of each, loops.

An instruction of 128 bits carries its own scheduling (bits 105 to 125): cycles to wait before the
next one, the scoreboard that its result frees, the one that its operands free, and those that it
waits for. Volta to Blackwell agree in this (Jia et al., arXiv 1804.06826, section 2).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field

NO_BARRIER = 7
# The first that matches counts.
CATEGORIES = (
    ("HGMMA", r"HGMMA|QGMMA|UTCHMMA"),
    ("HMMA", r"HMMA|IMMA"),
    ("FMA", r"FFMA|FADD|FMUL"),
    ("HFMA2", r"HFMA2|HADD2|HMUL2"),
    ("IMAD", r"IMAD"),
    ("MUFU", r"MUFU"),
    ("CVT", r"I2F|F2I|F2F|I2I|FRND"),
    ("PREFETCH", r"CCTL\S*\.PF"),
    ("LDGSTS", r"LDGSTS"),
    ("LDG", r"LDG\b"),
    ("STG", r"STG"),
    ("LDS", r"LDS|LDSM"),
    ("STS", r"STS|STSM|STAS"),
    ("LDL", r"LDL|STL"),
    ("LDC", r"LDC|ULDC|LDCU"),
    ("SHFL", r"SHFL"),
    ("REDUX", r"REDUX|VOTE|MATCH"),
    ("UNI", r"U[A-Z]|R2UR|S2UR"),
    (
        "CTRL",
        r"BRA|BSSY|BSYNC|EXIT|BAR|DEPBAR|LDGDEPBAR|WARP|MEMBAR|NOP|CALL|RET|ERRBAR|CCTL|BREAK|YIELD"
        r"|FENCE",
    ),
    ("ALU", r""),
)
Frame = tuple[str, int]  # file and line


@dataclass
class Instruction:
    """One instruction, and what the assembler and the debugger's tables say of it."""

    opcode: str
    text: str  # without predicate
    predicate: str = ""
    stall: int = 1
    write_barrier: int = NO_BARRIER
    read_barrier: int = NO_BARRIER
    waits: int = 0  # a bit for each of the six scoreboards
    frames: tuple[Frame, ...] = ()  # innermost first: a line, and where its function is inlined
    category: str = field(init=False)

    def __post_init__(self) -> None:
        # What no lane ever executes takes its turn and no unit.
        never = self.predicate in ("@!PT", "@!UPT")
        kinds = (n for n, p in CATEGORIES if re.match(p, self.opcode))
        self.category = "CTRL" if never else next(kinds)

    @property
    def matrices(self) -> int:
        """8 by 8 matrices that LDSM or STSM moves; 0 of other instructions."""
        found = re.search(r"\.MT?88\.?(\d?)", self.opcode)
        return int(found[1] or 1) if found else 0

    @property
    def width(self) -> int:
        """Bytes that one lane moves."""
        if ".128" in self.opcode or self.matrices == 4:
            return 16
        if ".64" in self.opcode or self.matrices == 2:
            return 8
        if ".U16" in self.opcode or ".S16" in self.opcode:
            return 2
        return 1 if ".U8" in self.opcode else 4

    def operand(self, pattern: str) -> int:
        """Return the number that ``pattern`` finds in the text, written in hexadecimal."""
        found = re.search(pattern, self.text)
        if found is None:
            raise ValueError(f"no {pattern!r} in {self.text!r}")
        return int(found[1], 16)


@dataclass
class Code:
    """A kernel's instructions, and its loops as the numbers of their first and last ones."""

    instructions: list[Instruction]
    loops: list[tuple[int, int]]
    labels: dict[str, int] = field(default_factory=dict)  # the instructions that jumps go to

    def inside(self, loop: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the loops within another."""
        return [(a, b) for a, b in self.loops if loop[0] <= a and b <= loop[1] and (a, b) != loop]

    @property
    def end(self) -> int:
        """The number of the last instruction that leaves the kernel, and one."""
        return 1 + max(n for n, i in enumerate(self.instructions) if i.opcode == "EXIT")


def disassemble(cubin: bytes) -> str:
    """Return what nvdisasm prints of a cubin, with encodings and source lines."""
    import triton

    bundled = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/nvdisasm")
    tool = bundled if os.path.exists(bundled) else "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-c", "-gi", "-hex", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(text: str) -> Code:
    """Read a listing of nvdisasm ``-c -gi -hex``; the two other options may be missing."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    frames: list[Frame] = []
    fresh = True  # the next comment on lines begins a new stack of frames
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+|\$[\w$]+):", line):
            labels[label[1]] = len(instructions)
        elif frame := re.match(r'\s*//## File "([^"]*)", line (\d+)', line):
            if fresh:
                frames, fresh = [], False
            frames.append((frame[1], int(frame[2])))
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);(?:\s*/\* 0x[0-9a-f]+ \*/)?", line):
            predicate, text_ = re.match(r"(@!?U?P\w+\s+)?(.*)", found[1].strip()).groups()  # type: ignore[union-attr]
            instructions.append(
                Instruction(
                    text_.split()[0], text_.strip(), (predicate or "").strip(), frames=tuple(frames)
                )
            )
            fresh = True
        elif instructions and (upper := re.match(r"\s*/\* 0x([0-9a-f]{16}) \*/", line)):
            _schedule(instructions[-1], int(upper[1], 16) >> 41)
    return Code(instructions, _loops(instructions, labels), labels)


def _schedule(instruction: Instruction, bits: int) -> None:
    instruction.stall = bits & 15
    instruction.write_barrier = bits >> 5 & 7
    instruction.read_barrier = bits >> 8 & 7
    instruction.waits = bits >> 11 & 63


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    found = set()
    for number, instruction in enumerate(instructions):
        target = re.search(r"`\((\.L_x_\d+)\)", instruction.text)
        if instruction.opcode.startswith("BRA") and target:
            start = labels.get(target[1], number)
            if start < number:
                found.add((start, number))
    return sorted(found)
