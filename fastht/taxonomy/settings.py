"""What a taxonomy's file says of its soft labels: similarities, weights, missing dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

Missing = Literal["ignore", "zero"]
MethodName = Literal["identity", "tree", "ordinal", "cooccurrence", "text", "file"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
PAIR = "~"  # between the two values of an override

_OF_METHOD: dict[str, set[str]] = {"tree": {"sibling", "broader"}, "file": {"path"}}
_Say = Callable[[str], None]


@dataclass(frozen=True)
class Method:
    """How alike the values of a dimension are.

    Attributes:
        name: of the method; see :mod:`fastht.taxonomy.similarity`.
        sibling: of method tree, as :func:`~fastht.taxonomy.similarity.tree` takes it.
        broader: likewise.
        path: of method file, as it is written; ``{dimension}`` and ``{number}`` (from 1) in it
            stand for the dimension.
        folder: that the path is taken from.
    """

    name: MethodName = "tree"
    sibling: float = 0.5
    broader: float = 0.8
    path: str | None = None
    folder: Path = field(default=Path(), compare=False)


@dataclass(frozen=True)
class Similarity:
    """The methods of a taxonomy.

    Attributes:
        method: of every dimension.
        dimensions: of those that have another.
        overrides: by dimension, pairs of values and how alike they are; stronger than any method.
    """

    method: Method = field(default_factory=Method)
    dimensions: Mapping[str, Method] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[tuple[str, str], float]] = field(default_factory=dict)

    def of(self, dimension: str) -> Method:
        """The method of a dimension."""
        return self.dimensions.get(dimension, self.method)

    def content(self) -> dict[str, Any]:
        """What a digest is made of; no folders."""

        def named(method: Method) -> list[Any]:
            return [method.name, method.sibling, method.broader, method.path]

        return {
            "method": named(self.method),
            "dimensions": {name: named(method) for name, method in self.dimensions.items()},
            "overrides": {
                name: [[*pair, value] for pair, value in pairs.items()]
                for name, pairs in self.overrides.items()
            },
        }


def read_similarity(given: Any, base: Similarity, folder: Path, say: _Say) -> Similarity:
    """Read the key ``similarity``; what a file does not give is its base's.

    say: told of each problem.
    """
    if given is None:
        return base
    if not isinstance(given, dict):
        say("similarity: `method: …` lines are needed, such as {method: tree, sibling: 0.5}")
        return base
    own = {key: value for key, value in given.items() if key not in ("dimensions", "overrides")}
    method = _method(own, base.method, folder, "similarity", say) if own else base.method
    methods = dict(base.dimensions)
    for name, described in _table(given.get("dimensions"), "similarity: dimensions", say).items():
        where = f"similarity: dimensions: {name}"
        described = {"method": described} if isinstance(described, str) else described
        methods[name] = _method(described, method, folder, where, say)
    overrides = {name: dict(pairs) for name, pairs in base.overrides.items()}
    for name, pairs in _table(given.get("overrides"), "similarity: overrides", say).items():
        where = f"similarity: overrides: {name}"
        for pair, value in _table(pairs, where, say).items():
            values = [part.strip() for part in str(pair).split(PAIR)]
            if len(values) != 2 or not all(values):
                say(f"{where}: {pair}: is no pair; write two values as one{PAIR}other")
            elif _share(value, f"{where}: {pair}", say):
                first, second = sorted(values)
                overrides.setdefault(name, {})[first, second] = float(value)
    return Similarity(method, methods, overrides)


def read_weights(given: Any, base: Mapping[str, float], say: _Say) -> dict[str, float]:
    """Read the key ``weights``, a number from 0 for each dimension that is named."""
    result = dict(base)
    for name, value in _table(given, "weights", say).items():
        if not _number(value) or value < 0:
            say(f"weights: {name}: {value!r} is not a number from 0; 1 is the usual one")
        else:
            result[name] = float(value)
    return result


def read_missing(given: Any, base: Missing, say: _Say) -> Missing:
    """Read the key ``missing``."""
    if given is None:
        return base
    if given not in get_args(Missing):
        say(f"missing: {given!r} is neither ignore nor zero; choose one")
        return base
    return given  # type: ignore[no-any-return]


def check_settings(
    similarity: Similarity, weights: Mapping[str, float], dimensions: Mapping[str, Any], say: _Say
) -> None:
    """Check the names in the settings against the dimensions and their values."""
    known = ", ".join(dimensions)
    for where, names in (
        ("weights", weights),
        ("similarity: dimensions", similarity.dimensions),
        ("similarity: overrides", similarity.overrides),
    ):
        for name in names:
            if name not in dimensions:
                say(f"{where}: {name} is no dimension; there are {known}")
    if weights and not any(weights.get(name, 1) for name in dimensions):
        say("weights: all are 0; give one dimension at least a weight")
    for name, dimension in dimensions.items():
        if similarity.of(name).name == "ordinal" and len(dimension.order) < 2:
            own = name in similarity.dimensions
            where = f"similarity: dimensions: {name}" if own else "similarity: method"
            say(f"{where}: {name} has no `order:`; give another method under `dimensions:`")
        for pair in similarity.overrides.get(name, {}):
            where = f"similarity: overrides: {name}: {PAIR.join(pair)}"
            for value in pair:
                if value not in dimension.values:
                    say(f"{where}: {name} has no {value!r}; correct it")
            if pair[0] == pair[1]:
                say(f"{where}: a value is like itself; take it out")


def _method(given: Any, base: Method, folder: Path, where: str, say: _Say) -> Method:
    if not isinstance(given, dict):
        say(f"{where}: `method: …` is needed, one of {', '.join(METHODS)}")
        return base
    name = given.get("method", base.name)
    if name not in METHODS:
        say(f"{where}: method {name!r} is not known; choose one of {', '.join(METHODS)}")
        return base
    allowed = {"method"} | _OF_METHOD.get(name, set())
    for key in given:
        if key not in allowed:
            say(f"{where}: {key}: means nothing for method {name}; known: {_listed(allowed)}")
    result = replace(base, name=name, folder=folder if "path" in given else base.folder)
    for key in ("sibling", "broader"):
        if key in given and _share(given[key], f"{where}: {key}", say):
            value = float(given[key])
            if key == "sibling":
                result = replace(result, sibling=value)
            else:
                result = replace(result, broader=value)
    if "path" in given and not isinstance(given["path"], str):
        say(f"{where}: path: {given['path']!r} is not a text; give that of an .npz file")
    elif "path" in given:
        result = replace(result, path=given["path"])
    if name == "file" and result.path is None:
        say(f"{where}: method file needs `path:`, such as matrices/{{dimension}}.npz")
    return result


def _share(value: Any, where: str, say: _Say) -> bool:
    if not _number(value) or not 0 <= value <= 1:
        say(f"{where}: {value!r} is not a number from 0 to 1; a similarity is")
        return False
    return True


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _table(given: Any, where: str, say: _Say) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        say(f"{where}: `name: …` lines are needed, not {type(given).__name__}")
        return {}
    return given


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names))
