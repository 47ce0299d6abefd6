"""The messages of fastht's errors and warnings, read from its sources, with their remedies.

A message of fastht names the thing and says what to do about it: "…; give a folder". Where the
remedy is no part of the message, ``remedies.yaml`` has it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from website.repository import ROOT

PLACE = "<!-- the messages -->"
REMEDIES = Path(__file__).parent / "remedies.yaml"
_GAP = "…"
# What a remedy begins with, or else the words of a sentence that says what would be right.
_VERBS = (
    "add|ask|build|call|check|choose|compare|compile|convert|copy|correct|crop|decompress|delete|"
    "describe|divide|do|download|drop|end|export|extend|fill|free|give|go|install|keep|leave|list|"
    "load|look|lower|make|mark|mend|move|name|omit|pass|patch|pip|point|put|raise|read|reinstall|"
    "remove|rename|reorder|repair|replace|resample|resize|restore|resume|run|save|score|select|set|"
    "shorten|show|split|start|state|swap|switch|take|trace|train|try|turn|unpatch|unwrap|update|"
    "upgrade|use|wait|wrap|write"
)
_RIGHT = r"must|has to|have to|needs|need|takes|there are|the \w+ are|are kept in|this fastht ships"
_REMEDY = re.compile(
    r"(?:^|[;:.?] |, (?:and |then |or ))"
    rf"((?:do not |(?:then|or|to) )?(?:{_VERBS})\b(?!\.\w).*)$"
    rf"|[;:] ((?:[^;:]|:\S)*\b(?:{_RIGHT})\b[^;]*)$",
    re.IGNORECASE,
)
_BUILT_IN = {
    "ValueError": "An argument or an option has a value that it cannot have.",
    "TypeError": "An argument is of another kind than it has to be.",
    "AttributeError": "A name is asked for that does not exist.",
    "RuntimeError": "Something cannot be done in the state that the model or the machine is in.",
    "LookupError": "Something that is needed is not installed, or has no entry.",
    "ImportError": "A package is not installed.",
    "ModuleNotFoundError": "A package is not installed.",
    "FileExistsError": "A file would be overwritten.",
    "FileNotFoundError": "A file or a folder is not there.",
    "SystemExit": "A command ends.",
    "UserWarning": "No error: the result may not be the one that is meant.",
    "TracerWarning": "No error: a traced model may be narrower than it is meant.",
}


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        kind: the class of the error or warning.
        text: its constant words, with ``…`` for what is filled in.
        module: where it is made, as ``fastht.saved``.
    """

    kind: str
    text: str
    module: str

    def remedy(self) -> str | None:
        """What to do: the message's own words, or those of ``remedies.yaml``."""
        for words, remedy in remedies().get(self.module, {}).items():
            if words in self.text:
                return remedy
        found = _REMEDY.search(self.text)
        return (found[1] or found[2]) if found else None


@cache
def remedies() -> dict[str, dict[str, str]]:
    """Return the remedies that are no part of their messages: by module and a piece of each."""
    return yaml.safe_load(REMEDIES.read_text(encoding="utf-8"))


@cache
def messages(root: Path = ROOT / "fastht") -> list[Message]:
    """Return the messages of all errors and warnings that a package makes, in order."""
    found: dict[Message, None] = {}
    for file in sorted(root.rglob("*.py")):
        module = ".".join(file.relative_to(root.parent).with_suffix("").parts)
        tree = _tree(file)
        for kind, argument, scope in _made(tree):
            for text in _texts(argument, scope, tree):
                text = re.sub(r"\s+", " ", text).strip()
                if re.sub(r"[\W_]+", "", text):
                    found[Message(kind, text, module)] = None
    return list(found)


def tables() -> str:
    """Return the tables of all messages, a section a class of errors, a table a part of fastht."""
    found = messages()
    by_kind: dict[str, list[Message]] = {}
    for message in found:
        by_kind.setdefault(message.kind, []).append(message)
    about = _descriptions()
    parts = []
    for kind in sorted(by_kind, key=lambda k: (-len(by_kind[k]), k)):
        parts.append(f"## {kind}\n\n{about.get(kind, '')}\n")
        by_part: dict[str, list[Message]] = {}
        for message in by_kind[kind]:
            by_part.setdefault(_part(message.module), []).append(message)
        for part, those in by_part.items():
            rows = {f"| {_code(m.text)} | {_sentence(m.remedy() or '')} |": None for m in those}
            parts.append("\n".join([f"| `{part}` says | what to do |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _part(module: str) -> str:
    """Name the part of fastht that a module belongs to: two names, three below ``tasks``."""
    return ".".join(module.split(".")[: 3 if module.startswith("fastht.tasks") else 2])


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    inner = f" {text} " if "`" in text else text
    return f"{fence}{inner}{fence}".replace("|", "\\|")


def _sentence(text: str) -> str:
    text = text.replace("|", "\\|").strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _descriptions() -> dict[str, str]:
    """Return what each class of errors stands for: the first line of its docstring."""
    about = dict(_BUILT_IN)
    for file in (ROOT / "fastht").rglob("*.py"):
        for node in _tree(file).body:
            if isinstance(node, ast.ClassDef) and node.name.lstrip("_") not in about:
                about[node.name.lstrip("_")] = (ast.get_docstring(node) or "").partition("\n\n")[0]
    return about


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _made(tree: ast.Module) -> Iterator[tuple[str, ast.expr, list[ast.AST]]]:
    """Yield class, first argument and enclosing functions of each error and warning."""

    def walk(node: ast.AST, scope: list[ast.AST]) -> Iterator[tuple[str, ast.expr, list[ast.AST]]]:
        inner = [*scope, node] if isinstance(node, ast.FunctionDef) else scope
        if isinstance(node, ast.Call) and node.args:
            name = _name(node.func)
            if name == "warn":
                kind = next((_name(a) for a in node.args[1:] if _name(a)), "UserWarning")
                yield kind, node.args[0], inner
            elif re.fullmatch(r"_?[A-Z]\w*Error|SystemExit", name):
                yield name.lstrip("_"), node.args[0], inner
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inner)

    return walk(tree, [])


def _name(node: ast.AST) -> str:
    return getattr(node, "id", getattr(node, "attr", "")) or ""


def _texts(node: ast.expr, scope: list[ast.AST], tree: ast.Module) -> list[str]:
    """Return the texts that an expression can stand for."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.JoinedStr):
        return _joined([_texts(part, scope, tree) for part in node.values])
    if isinstance(node, ast.FormattedValue):
        return _constant(node.value, tree) or [_GAP]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _joined([_texts(node.left, scope, tree), _texts(node.right, scope, tree)])
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, scope, tree), *_texts(node.orelse, scope, tree)]
    if isinstance(node, ast.Name) and scope:
        values = [
            n.value
            for n in ast.walk(scope[-1])
            if isinstance(n, ast.Assign) and any(_name(t) == node.id for t in n.targets)
        ]
        named = [text for v in values if _name(v) != node.id for text in _texts(v, scope, tree)]
        return named or _constant(node, tree) or [_GAP]
    return [_GAP]


def _constant(node: ast.expr, tree: ast.Module) -> list[str]:
    """Return the text of a constant of the module."""
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            _name(target) == _name(node) != "" for target in statement.targets
        ):
            return _texts(statement.value, [], tree)
    return []


def _joined(parts: list[list[str]]) -> list[str]:
    """Return all ways to join one text of each part, the first 16 of them."""
    texts = [""]
    for part in parts:
        texts = [before + text for before in texts for text in part][:16]
    return texts


def problems(root: Path = ROOT / "fastht") -> list[str]:
    """Tell the messages that have no remedy, and the remedies of messages that are no more."""
    found = messages(root)
    lacking = [
        f"{m.module}: {m.kind} says {m.text!r} and not what to do about it; end it with the remedy "
        f"(“; give …”), or put that into website/{REMEDIES.name}"
        for m in found
        if m.remedy() is None
    ]
    stale = [
        f"website/{REMEDIES.name}: no message of {module} says {words!r}; remove or mend the line"
        for module, pieces in remedies().items()
        for words in pieces
        if not any(module == m.module and words in m.text for m in found)
    ]
    about = _descriptions()
    unknown = sorted({m.kind for m in found if not about.get(m.kind)})
    return (
        lacking
        + stale
        + [f"{kind} has no docstring that says what it stands for" for kind in unknown]
    )


if __name__ == "__main__":
    told = problems()
    print("\n".join(told) or f"{len(messages())} messages, each with a remedy")
    raise SystemExit(bool(told))
