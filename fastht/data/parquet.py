"""Parquet tables with images inside, as hubs of data sets distribute them; needs pyarrow."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from fastht.data.images import DataError

_NAME = re.compile(r"(.+\.parquet)::(.+)/(\d+)")
# Groups of rows that a process keeps. Hubs write images in groups of about a hundred rows.
_KEPT = 4


def read_rows(path: Path, leave: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """All rows of a table without the columns `leave`, which hold images.

    Raises DataError if pyarrow is not installed or the table cannot be read.
    """
    table = _open(str(path))
    columns = [name for name in table.schema_arrow.names if name not in leave]
    with _telling(path):
        rows: list[dict[str, Any]] = table.read(columns=columns).to_pylist()
    return rows


def image_columns(path: Path) -> tuple[str, ...]:
    """The columns that hold the bytes of images: structs with a field `bytes`, or bytes alone."""
    schema = _open(str(path)).schema_arrow  # first, as it tells where pyarrow is missing
    import pyarrow

    def holds_bytes(kind: Any) -> bool:
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = []
    for column in schema:
        kind = column.type
        if pyarrow.types.is_struct(kind):
            index = kind.get_field_index("bytes")
            kind = kind.field(index).type if index >= 0 else kind
        if holds_bytes(kind):
            found.append(column.name)
    return tuple(found)


def cell_name(path: Path, column: str, row: int) -> str:
    """How cases and records name the image in a cell."""
    return f"{path}::{column}/{row}"


def is_cell(image: str) -> bool:
    """Whether a name is of an image in a cell."""
    return ".parquet::" in image


def read_cell(image: str) -> bytes:
    """The bytes of an image, "table.parquet::COLUMN/ROW".

    A process keeps the last groups of rows that it read: to read images in any order from groups
    of many rows is slow; `fastht data export` writes them into files once.

    Raises DataError if the table, the column or the row is not there, or the cell is empty.
    """
    match = _NAME.fullmatch(image)
    if match is None:
        raise DataError(f"{image}: not of the form table.parquet::column/row")
    path, column, row = match[1], match[2], int(match[3])
    table = _open(path)
    first = 0
    for group in range(table.metadata.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        if row < first + count:
            cell = _group(path, os.stat(path).st_mtime_ns, group, column)[row - first]
            content = cell.get("bytes") if isinstance(cell, dict) else cell
            if not content:
                raise DataError(f"{image}: the cell holds no image; take the row out")
            return bytes(content)
        first += count
    raise DataError(f"{image}: the table has {first:,} rows; was it replaced?")


@functools.lru_cache(maxsize=_KEPT)
def _group(path: str, mtime_ns: int, group: int, column: str) -> list[Any]:
    """The cells of a column in a group of rows; mtime_ns only tells versions of the file apart."""
    with _telling(Path(path)):
        if column not in _open(path).schema_arrow.names:
            raise DataError(f"{path}: no column {column!r}; was the table replaced?")
        read = _open(path).read_row_group(group, columns=[column])
        cells: list[Any] = read.column(0).to_pylist()
    return cells


def _open(path: str) -> Any:
    """A table, its images not yet read."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f'{path}: Parquet needs pyarrow: pip install "fastht[parquet]"') from None
    with _telling(Path(path)):
        return parquet.ParquetFile(path)


class _telling:  # noqa: N801 (reads as a statement)
    """Turn what pyarrow raises into DataError with the name of the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, DataError) or not isinstance(error, Exception):
            return
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise DataError(f"{self.path}: not a sound Parquet file ({what}); copy it again") from None
