"""Paired differences between rows of a report, as tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastht.tasks.results.tables import (
    Row,
    interval_text,
    score_digits,
    score_label,
    score_unit,
)


@dataclass(frozen=True)
class Difference:
    """By how much one row's score is above another's, or above its own before training.

    Attributes:
        row: the place of the row.
        other: the place of the row that is subtracted; that of ``row`` for before training.
        score: its name.
        value: the difference of the means over the seeds.
        low: lower end of its interval; NaN: there is none.
        high: upper end.
        images: how many test images both have.
        unit: what was resampled, "patient" or "image".
        units: how many of them there are.
    """

    row: int
    other: int
    score: str
    value: float
    low: float
    high: float
    images: int
    unit: str
    units: int


@dataclass
class Compared:
    """What comparing the rows of a report in pairs gave.

    Attributes:
        differences: between rows, and of rows to what they were before training.
        ends: of each row: the ends of its scores' intervals, ``{score}_low`` and ``{score}_high``.
        notes: by the place of a row what kept it, or a pair of it, from being compared.
        units: sentences that say what the intervals of a row are over.
    """

    differences: list[Difference] = field(default_factory=list)
    ends: list[Row] = field(default_factory=list)
    notes: dict[int, list[str]] = field(default_factory=dict)
    units: dict[int, str] = field(default_factory=dict)


def difference_rows(
    differences: Sequence[Difference], names: Sequence[str], rows: Sequence[Row]
) -> list[Row]:
    """Return differences as rows of a CSV or JSON, by the names of the rows of the report."""
    return [
        {
            "task": rows[d.row]["task"],
            "data": rows[d.row]["data"],
            "compared": _pair(d, names),
            "score": d.score,
            "difference": d.value,
            "low": d.low,
            "high": d.high,
            "seeds": _seeds(d, rows),
            "images": d.images,
            "unit": d.unit,
            "units": d.units,
        }
        for d in differences
    ]


def difference_columns(
    differences: Sequence[Difference],
    names: Sequence[str],
    rows: Sequence[Row],
    scores: Sequence[str],
) -> dict[str, list[str]]:
    """Return differences as columns of text by their headings: a line a pair, a column a score."""
    lines: dict[tuple[int, int], dict[str, Difference]] = {}
    for d in differences:
        if d.score in scores:
            lines.setdefault((d.row, d.other), {})[d.score] = d
    firsts = [next(iter(found.values())) for found in lines.values()]
    columns = {
        "difference": [_pair(d, names) for d in firsts],
        "seeds": [_seeds(d, rows) for d in firsts],
        "over": [f"{d.units:,} {d.unit}{'' if d.units == 1 else 's'}" for d in firsts],
    }
    for score in scores:
        columns[score_label(score)] = [_shown(found.get(score)) for found in lines.values()]
    return columns


def _pair(d: Difference, names: Sequence[str]) -> str:
    if d.row == d.other:
        return f"{names[d.row]}: after minus before"
    return f"{names[d.row]} minus {names[d.other]}"


def _seeds(d: Difference, rows: Sequence[Row]) -> str:
    counts: list[Any] = [rows[place]["seeds"] for place in dict.fromkeys((d.row, d.other))]
    return " and ".join(map(str, dict.fromkeys(counts)))


def _shown(d: Difference | None) -> str:
    if d is None:
        return "-"
    if math.isnan(d.value):
        return "undefined"
    factor, digits = score_unit(d.score)[0], score_digits(d.score)
    text = f"{factor * d.value:+.{digits}f}"
    return text + interval_text(d.low, d.high, factor, digits, "+")
