"""JSON and JSON Lines files: read whole, or refused with the name of the file and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastht.data.images import DataError
from fastht.data.tables import read_text

_MARK = "split"  # what a list's name becomes where a file has one list a side


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises DataError if it is not JSON, or repeats a key."""
    try:
        return json.loads(read_text(path), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}); copy it again or correct it") from None
    except _RepeatedKeyError as error:
        raise DataError(f"{path}: key {error} is there twice; remove one of the two") from None


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with where it is, e.g. "rows.jsonl, line 3".

    .jsonl has an object a line. .json has a list of objects, an object of objects by their names,
    or an object of lists by their splits, of which the objects get a field "split" where they have
    none.

    Raises DataError if the file is not of one of these forms, or empty.
    """
    if path.suffix.lower() == ".jsonl":
        found = _lines(path)
    else:
        content = read_json(path)
        found = _parts(path, content)
    empty = True
    for where, row in found:
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object; correct it")
        empty = False
        yield where, row
    if empty:
        raise DataError(f"{path}: no objects; it needs at least one")


def value_at(row: Any, key: str) -> Any:
    """What a dotted key leads to, "a.b.0" to the first of b in a; None where it leads nowhere.

    A field whose own name has dots goes before.
    """
    if isinstance(row, dict) and key in row:
        return row[key]
    first, dot, rest = key.partition(".")
    if isinstance(row, dict):
        inner = row.get(first)
    elif isinstance(row, list) and first.isdecimal() and int(first) < len(row):
        inner = row[int(first)]
    else:
        return None
    return value_at(inner, rest) if dot else inner


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON ({error}); correct the line") from None
        except _RepeatedKeyError as error:
            raise DataError(f"{where}: key {error} is there twice; remove one of the two") from None


def _parts(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, list):
        yield from ((f"{path}, entry {number}", row) for number, row in enumerate(content))
    elif isinstance(content, dict) and all(isinstance(v, list) for v in content.values()):
        for side, rows in content.items():
            for number, row in enumerate(rows):
                extra = {_MARK: side} if isinstance(row, dict) and _MARK not in row else {}
                yield f"{path}, {side} {number}", row | extra if extra else row
    elif isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
        yield from ((f"{path}, {name}", row) for name, row in content.items())
    else:
        raise DataError(
            f"{path}: neither a list of objects, nor objects by name, nor lists by split; "
            "write it as JSON Lines, an object a line"
        )


class _RepeatedKeyError(ValueError):
    """A key is twice in an object, of which JSON readers keep the last without a word."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return row
