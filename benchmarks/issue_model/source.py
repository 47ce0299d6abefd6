"""What a line of a kernel's source means: the tensor that a load reads, the loop it stands in.

The debugger's tables give each machine instruction the line that it comes from, and the calls by
which that line was inlined. From there on Python's own syntax tree answers: a load's pointer goes
back, assignment by assignment and call by call, to an argument of the kernel.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.issue_model.sass import Frame

ACCESSES = ("load", "store")


@dataclass(frozen=True)
class Turn:
    """A ``for`` loop in the chain of calls that led to it."""

    frames: tuple[Frame, ...]  # of the calls around it
    file: str
    line: int
    variable: str
    bounds: str  # source of what it runs over


@functools.cache
def _tree(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text())


@functools.cache
def _functions(file: str) -> tuple[ast.FunctionDef, ...]:
    found = [node for node in ast.walk(_tree(file)) if isinstance(node, ast.FunctionDef)]
    return tuple(sorted(found, key=lambda node: node.lineno))


def function_at(frame: Frame) -> ast.FunctionDef | None:
    """Return the function that a line is in."""
    file, line = frame
    if not Path(file).exists():
        return None
    found = [f for f in _functions(file) if f.lineno <= line <= (f.end_lineno or f.lineno)]
    return found[-1] if found else None


def names(frames: Sequence[Frame]) -> tuple[str, ...]:
    """Return the functions of a chain of calls, innermost first."""
    return tuple(f.name for f in map(function_at, frames) if f is not None)


def tensors(frames: tuple[Frame, ...]) -> frozenset[str]:
    """Return the kernel's arguments that the access at ``frames`` may go to.

    Empty where the innermost line is no ``tl.load`` or ``tl.store``.
    """
    for depth, frame in enumerate(frames):
        function = function_at(frame)
        if function is None:
            continue
        call = _call(function, frame[1], ACCESSES)
        if call is not None and call.args:
            return _roots(frames[depth:], function, _identifiers(call.args[0]))
    return frozenset()


def _call(function: ast.FunctionDef, line: int, wanted: Sequence[str]) -> ast.Call | None:
    """Return the smallest call of one of some functions that has a line in it."""
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and node.lineno <= line <= (node.end_lineno or node.lineno)
        and _name(node.func) in wanted
    ]
    return min(found, key=lambda node: (node.end_lineno or 0) - node.lineno, default=None)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _identifiers(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [a.arg for a in function.args.args]


@functools.cache
def _origins(function: ast.FunctionDef) -> Mapping[str, frozenset[str]]:
    """Return, for every name of a function, the parameters that its value may come from."""
    parents: dict[str, set[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in _identifiers(target):
                    parents.setdefault(name, set()).update(_identifiers(node.value))
    parameters = set(_parameters(function))

    def climb(name: str, seen: frozenset[str]) -> frozenset[str]:
        above = parents.get(name, set()) - seen
        own = frozenset({name}) & parameters
        return own.union(*(climb(other, seen | above | {name}) for other in above))

    return {name: climb(name, frozenset()) for name in parameters | parents.keys()}


def _roots(
    frames: tuple[Frame, ...], function: ast.FunctionDef, wanted: set[str]
) -> frozenset[str]:
    origins = _origins(function)
    found = frozenset().union(*(origins.get(name, frozenset()) for name in wanted))
    for depth, frame in enumerate(frames[1:], start=1):
        caller = function_at(frame)
        if caller is None:
            continue
        call = _call(caller, frame[1], (function.name,))
        if call is None:
            return found
        given = dict(zip(_parameters(function), call.args, strict=False))
        given |= {k.arg: k.value for k in call.keywords if k.arg}
        outer = set().union(*(_identifiers(given[name]) for name in found if name in given))
        return _roots(frames[depth:], caller, outer)
    return found


def turns(frames: tuple[Frame, ...]) -> tuple[Turn, ...]:
    """Return the ``for`` loops over ``range`` around a line, outermost first, calls included."""
    found: list[Turn] = []
    for depth, (file, line) in enumerate(frames):
        function = function_at((file, line))
        if function is None:
            continue
        here = [
            Turn(frames[depth + 1 :], file, node.lineno, _name(node.target), ast.unparse(node.iter))
            for node in ast.walk(function)
            if isinstance(node, ast.For)
            and node.lineno <= line <= (node.end_lineno or node.lineno)
            and isinstance(node.iter, ast.Call)
            and _name(node.iter.func) == "range"
        ]
        found = sorted(here, key=lambda turn: turn.line) + found
    return tuple(found)


def count(turn: Turn, values: Mapping[str, Any]) -> int | None:
    """Return how often a loop turns in program 0, or None where that is not known before it runs.

    ``values`` has the kernel's scalar arguments and constants by name.
    """
    call = ast.parse(turn.bounds, mode="eval").body
    assert isinstance(call, ast.Call)
    frames = ((turn.file, turn.line), *turn.frames)
    try:
        return len(range(*(_evaluate(argument, frames, values) for argument in call.args)))
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """A value is not known before the kernel runs."""


OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
CALLS: Mapping[str, Callable[..., Any]] = {
    "program_id": lambda *_: 0,
    "minimum": min,
    "maximum": max,
    "cdiv": lambda a, b: -(-a // b),
    "cast": lambda a, *_: a,
    "to": lambda a, *_: a,
}


def _evaluate(node: ast.expr, frames: tuple[Frame, ...], values: Mapping[str, Any]) -> Any:
    def again(inner: ast.expr) -> Any:
        return _evaluate(inner, frames, values)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](again(node.left), again(node.right))
    if isinstance(node, ast.Call) and _name(node.func) in CALLS:
        receiver = [again(node.func.value)] if _name(node.func) == "to" else []  # type: ignore[attr-defined]
        return CALLS[_name(node.func)](*receiver, *(() if receiver else map(again, node.args)))
    if isinstance(node, ast.Name):
        return _value(node.id, frames, values)
    raise _UnknownError(ast.unparse(node))


def _value(name: str, frames: tuple[Frame, ...], values: Mapping[str, Any]) -> Any:
    """Return a name's value where it is a parameter or assigned only once."""
    function = function_at(frames[0])
    if function is None:
        raise _UnknownError(name)
    assigned = [
        n.value
        for n in ast.walk(function)
        if isinstance(n, ast.Assign) and any(_name(t) == name for t in n.targets)
    ]
    if len(assigned) == 1 and name not in _parameters(function):
        return _evaluate(assigned[0], frames, values)
    outer = [
        (depth, f) for depth, f in enumerate(map(function_at, frames)) if f not in (None, function)
    ]
    if not outer:
        if name in values:
            return values[name]
        raise _UnknownError(name)
    depth, caller = outer[0]
    call = _call(caller, frames[depth][1], (function.name,)) if caller else None
    given = dict(zip(_parameters(function), call.args, strict=False)) if call else {}
    if name not in given:
        raise _UnknownError(name)
    return _evaluate(given[name], frames[depth:], values)
