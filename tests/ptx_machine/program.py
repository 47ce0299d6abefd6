"""PTX text to a list of instructions."""

import functools
import re
from dataclasses import dataclass, field

_WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "f16": 16, "f32": 32, "f64": 64}
_WIDTHS |= {f"{sign}{bits}": bits for sign in "us" for bits in (8, 16, 32, 64)}
_STATEMENT = re.compile(
    r"""\s*(?:
    (?P<label>[$\w]+):(?!:)
  | (?P<directive>\.file\b[^\n]*\n)
  | \.loc\s+(?P<place>\d+\s+\d+\s+\d+)[^\n]*?(?:inlined_at\s+(?P<caller>\d+\s+\d+\s+\d+))?\s*\n
  | (?P<scope>[{}])
  | (?P<statement>(?:[^;"]|"[^"]*")*?);
  )""",
    re.VERBOSE,
)
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``@[!]predicate opcode operands``, with its text for messages.

    ``frames``, where the compiler was asked for lines (``-lineinfo``): file and line, innermost
    first, then where that function is inlined.
    """

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool
    text: str
    frames: tuple = ()

    @functools.cached_property
    def parts(self):
        return self.opcode.split(".")


@dataclass
class Program:
    """One kernel."""

    name: str
    instructions: list = field(default_factory=list)
    labels: dict = field(default_factory=dict)
    registers: dict = field(default_factory=dict)  # bits by name, or by prefix as "%r<"
    parameters: dict = field(default_factory=dict)  # offset by name
    parameter_bytes: int = 0
    shared: dict = field(default_factory=dict)  # offset by name
    static_shared: int = 0
    threads: int | None = None  # what the kernel was compiled for

    def bits(self, register):
        """Return how many bits a register has."""
        if register not in self.registers:
            self.registers[register] = self.registers[re.sub(r"\d+$", "<", register)]
        return self.registers[register]


def parse(text, name=None):
    """Return the kernel ``name`` of a PTX text, or its only one.

    Raises:
        ValueError: there is none, or it has local memory or calls a function.
    """
    text = re.sub(r"//[^\n]*", "", text)
    entries = list(re.finditer(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{", text))
    found = [entry for entry in entries if name in (None, entry[1])]
    if len(found) != 1:
        raise ValueError(f"kernels {[entry[1] for entry in entries]}; wanted {name or 'one'}")
    (entry,) = found
    program = Program(entry[1])
    for bits, parameter, count in re.findall(
        r"\.param(?:\s+\.align\s+\d+)?\s+\.(\w+)\s+(\w+)(?:\[(\d+)\])?", entry[2]
    ):
        each = _WIDTHS[bits] // 8
        size = each * int(count or 1)
        align = 8 if count else each
        program.parameter_bytes = -(-program.parameter_bytes // align) * align
        program.parameters[parameter] = program.parameter_bytes
        program.parameter_bytes += size
    if limit := re.search(r"\.maxntid\s+(\d+)", entry[3]):
        program.threads = int(limit[1])
    body = text[entry.end() : _closing(text, entry.end())]
    _shared(program, text[: entry.start()] + body)
    _statements(program, body, dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)))
    return program


def _closing(text, start):
    depth = 1
    for match in re.finditer(r"[{}]", text[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError("the kernel's text has no end")


def _shared(program, text):
    extern = []
    for kind, align, bits, name, count in re.findall(
        r"(\.extern\s+)?\.shared\s+\.align\s+(\d+)\s+\.(\w+)\s+(\w+)(?:\[(\d*)\])?", text
    ):
        if kind:
            extern.append((name, int(align)))
            continue
        program.static_shared = -(-program.static_shared // int(align)) * int(align)
        program.shared[name] = program.static_shared
        program.static_shared += _WIDTHS[bits] // 8 * int(count or 1)
    for name, align in extern:
        program.shared[name] = -(-program.static_shared // align) * align


def _statements(program, body, files):
    position, frames, known = 0, (), {}
    while body[position:].strip():
        match = _STATEMENT.match(body, position)
        if match is None:
            raise ValueError(f"cannot be read: {body[position : position + 80].strip()!r}")
        position = match.end()
        if match["label"]:
            program.labels[match["label"]] = len(program.instructions)
        elif match["place"]:
            file, line, _ = match["place"].split()
            # A caller's own line is the last that was given for it.
            frames = ((files.get(file, file), int(line)), *known.get(match["caller"], ()))
            known[match["place"]] = frames
        elif match["statement"] and match["statement"].strip():
            _statement(program, " ".join(match["statement"].split()), frames)


def _statement(program, text, frames):
    if text.startswith(".reg"):
        _, kind, names = text.split(maxsplit=2)
        for name in names.split(","):
            stem, many, _ = name.strip().partition("<")
            program.registers[stem + many] = _WIDTHS[kind[1:]]
    elif text.startswith(".local") or re.match(r"(@!?%\w+ )?call\b", text):
        raise ValueError(f"local memory and calls are not expected: {text}")
    elif not text.startswith((".pragma", ".shared")):
        match = _INSTRUCTION.fullmatch(text)
        if match is None:
            raise ValueError(f"cannot be read: {text!r}")
        operands = tuple(re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match[4]))
        program.instructions.append(
            Instruction(match[3], operands, match[2], match[1] == "!", text, frames)
        )
