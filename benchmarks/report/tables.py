"""Numbers and tables in Markdown. What is not known is a dash."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from benchmarks.report.results import Entry

MIB = 2**20
UNKNOWN = "-"


def number(value: float | None) -> str:
    """Return three significant digits, or all those before the point."""
    return UNKNOWN if value is None else f"{value:.{_decimals(value)}f}"


def flop_rate(flop_per_s: float) -> str:
    """Return a rate with its unit."""
    if flop_per_s >= 1e13:
        return f"{number(flop_per_s / 1e12)} TFLOP/s"
    return f"{number(flop_per_s / 1e9)} GFLOP/s"


def times(value: float | None) -> str:
    """Return a ratio."""
    return UNKNOWN if value is None else f"{value:.2f}"


def percent(share: float | None) -> str:
    """Return a share of one in percent, with a decimal where it is below ten."""
    return UNKNOWN if share is None else f"{100 * share:.{int(abs(share) < 0.1)}f} %"


def mebibytes(size: int | None) -> str:
    """Return bytes in MiB, without the unit."""
    return UNKNOWN if size is None else f"{size / MIB:.1f}"


def milliseconds(entry: Entry | None) -> str:
    """Return the median and, in brackets, the interquartile range, to the same decimal."""
    if entry is None:
        return UNKNOWN
    median, iqr = 1e3 * entry.median, 1e3 * entry.iqr
    decimals = _decimals(median)
    return f"{median:.{decimals}f} ({iqr:.{decimals}f})"


def sizes(values: Iterable[int]) -> str:
    """Return a shape."""
    return ", ".join(map(str, values))


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> Iterator[str]:
    """Yield the lines of a table and an empty one; a bar in a cell would end it."""
    header = list(header)
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |"
    yield ""


def _decimals(value: float) -> int:
    """Return how many decimals three significant digits have, once rounded: 9.996 is 10.0."""
    return max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}"))))) if value else 0
