"""Scores of one model before and after it was adapted: as a text table, JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from fastht.files import write_json
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.results.tables import WIDTH, interval_text, is_plain, write_table

TABLE_NAME = "results.csv"

Scores = Mapping[str, float]


def comparison_table(
    heading: str, columns: Mapping[str, Scores], intervals: Mapping[str, Any] | None = None
) -> str:
    """Return scores as a text table, shares in percent.

    Args:
        heading: of the names.
        columns: scores of the same names by the heading of their column.
        intervals: those of a ``results.json``: ``[low, high]`` of scores by the heading of their
            column, which are shown behind them; those of a paired ``difference`` get a column of
            their own, the last column less the first. A ``note`` is put under the table.
    """
    intervals = intervals or {}
    first, last = next(iter(columns.values())), list(columns.values())[-1]
    rows = [(heading, *columns)]
    paired = intervals.get("difference", {})
    if paired:
        rows[0] += ("difference",)
    for name in first:
        if "/" in name:  # of a single class: they have a table of their own
            continue
        label = name.removeprefix("val_").replace("_", " ")
        cells = [
            _shown(name, scores[name], intervals.get(column, {}).get(name))
            for column, scores in columns.items()
        ]
        if paired:
            ends = paired.get(name)
            cells.append(_shown(name, last[name] - first[name], ends, "+") if ends else "")
        rows.append((label, *cells))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    note = [fill(f"[low, high]: {intervals['note']}", WIDTH)] if "note" in intervals else []
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:], *note])


def write_comparison(out: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, and its ``before`` and ``after`` as ``results.csv``.

    Raises:
        OSError: a file cannot be written.
    """
    write_json(out / RESULTS_NAME, dict(results))
    before, after = results["before"], results["after"]
    versions: dict[str, Mapping[str, float]] = {"before": before, "after": after}
    intervals = results.get("intervals", {})
    if "difference" in intervals:
        versions["difference"] = {
            name: after[name] - before[name] for name in intervals["difference"]
        }
    rows = []
    for name in after:
        row: dict[str, Any] = {"score": name}
        for version, scores in versions.items():
            row[version] = scores.get(name)
            ends = intervals.get(version, {}).get(name, (None, None))
            row[f"{version}_low"], row[f"{version}_high"] = ends
        rows.append(row if intervals else {k: row[k] for k in ("score", *versions)})
    write_table(out / TABLE_NAME, rows)


def _shown(name: str, value: float, ends: Sequence[float] | None = None, sign: str = "") -> str:
    if math.isnan(value):
        return "undefined"
    factor, digits, unit = 100, 1, " %"
    if "loss" in name:
        factor, digits, unit = 1, 4, ""
    elif is_plain(name):
        factor, digits, unit = 1, 3, ""
    elif name.endswith("rank"):
        factor, digits, unit = 1, 1, ""
    text = f"{factor * value:{sign}.{digits}f}{unit}"
    return text if ends is None else text + interval_text(ends[0], ends[1], factor, digits, sign)
