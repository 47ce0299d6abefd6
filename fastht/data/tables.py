"""Tables and other text files: read whole, or refused with the name of the file and the remedy."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from fastht.data.images import DataError

_STATED = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)
Rows = list[tuple[int, dict[str, str]]]  # line number, cells by column


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without BOM, its line ends unchanged. Raises DataError otherwise."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_table(path: Path, separator: str | None = None) -> tuple[list[str], Rows]:
    """Column names and rows, stripped of surrounding whitespace.

    separator: default that of a first line "sep=;" as spreadsheets write it, else a tab for .tsv,
        else a tab, comma or semicolon, whichever the header has most of.

    Raises DataError for a table that cannot be read, is malformed or has no row.
    """
    text = read_text(path)
    skipped, stated = _stated_separator(text)
    lines = io.StringIO(text, newline="")
    for _ in range(skipped):
        lines.readline()
    if separator is None:
        separator = stated or guess_separator(path, text)
    if len(separator) != 1:
        raise DataError(f"{path}: separator {separator!r} is not one character; pass one")
    # Strict, since otherwise an unclosed quote swallows the rest of the table without a word.
    reader = csv.reader(lines, delimiter=separator, strict=True)
    rows = []
    columns: list[str] = []
    try:
        columns = [name.strip() for name in next(reader, [])]
        for cells in reader:
            if not any(map(str.strip, cells)):
                continue  # spreadsheets leave rows of separators alone
            if len(cells) > len(columns):
                raise csv.Error(f"{len(cells)} cells under {len(columns)} columns")
            pairs = zip_longest(columns, map(str.strip, cells), fillvalue="")
            rows.append((skipped + reader.line_num, dict(pairs)))
    except csv.Error as error:
        remedy = 'quote cells that contain the separator or quotes, and double these ("")'
        if len(columns) == 1:
            remedy = f"name what separates the columns by --separator (read by {separator!r})"
        raise DataError(f"{path}, line {skipped + reader.line_num}: {error}; {remedy}") from None
    if repeated := [name for name, count in Counter(columns).items() if name and count > 1]:
        raise DataError(f"{path}: repeated column {', '.join(repeated)}; rename or drop one")
    if not rows:
        raise DataError(f"{path}: the table is empty; it needs a header and at least one row")
    return columns, rows


def guess_separator(path: Path, text: str) -> str:
    """A tab for .tsv, else the tab, comma or semicolon that the first line has most of."""
    header = text.partition("\n")[0]
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max((",", "\t", ";"), key=header.count)  # of equals the first


def _stated_separator(text: str) -> tuple[int, str | None]:
    """How many lines a statement such as "sep=;" takes, 0 or 1, and what it states."""
    match = _STATED.match(text)
    return (1, match[1]) if match else (0, None)


def spellings(path: str) -> tuple[str, ...]:
    """How a path of a table may be written on this system, as it is first.

    Tables from Windows have its separators, which are letters of a name elsewhere; file systems
    keep letters with accents composed or not, whatever the program that wrote the table does.
    """
    slashed = (path, path.replace("\\", "/"))
    forms = (unicodedata.normalize(form, one) for form in ("NFC", "NFD") for one in slashed)
    return tuple(dict.fromkeys((*slashed, *forms)))


def parse_frame(cell: str, where: str) -> int | None:
    """A frame index; "3.0" is what pandas writes for 3 in a column with empty cells."""
    if not cell:
        return None
    digits = cell.removesuffix(".0")
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(f"{where}: frame {cell!r} is not an index from 0; correct the cell")
    return int(digits)
