"""Fields of a row that hold several values: tags, and keys that tie images together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastht.data.cases import Values
from fastht.data.images import DataError

JOIN = ";"  # between the values of one cell


def parse_values(given: Any, where: str) -> tuple[str, ...]:
    """The values that a field holds: a list of texts, one text with ";" between them, or nothing.

    One that is there twice stays twice. Raises DataError for anything else.
    """
    if given is None:
        return ()
    if isinstance(given, str):
        given = given.split(JOIN)
    if not isinstance(given, list) or not all(isinstance(v, str | None) for v in given):
        what = f"{given!r} is neither a text nor a list of texts"
        raise DataError(f"{where}: {what}; correct it")
    return tuple(text for value in given if value is not None and (text := value.strip()))


def parse_key(given: Any, where: str) -> tuple[str, ...]:
    """The key that a field holds, a text or a whole number; nothing where it is empty."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return ()
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise DataError(f"{where}: {given!r} is neither a text nor a number; correct it")
    return (str(given).strip(),)


def read_values(
    get: Callable[[str], Any],
    fields: Iterable[str],
    where: str,
    parse: Callable[[Any, str], tuple[str, ...]] = parse_values,
) -> Values:
    """The fields that hold something, with what they hold. Raises DataError as `parse` does."""
    found = ((field, parse(get(field), f"{where}, {field}")) for field in fields)
    return tuple((field, values) for field, values in found if values)


def require_columns(wanted: Sequence[str], there: Iterable[str], where: Path) -> None:
    """Raise DataError for a column of tags or keys that is named and not there."""
    columns = list(there)
    if missing := [name for name in wanted if name not in columns]:
        raise DataError(
            f"{where}: no column {', '.join(missing)}; the columns are {', '.join(columns)}"
        )
