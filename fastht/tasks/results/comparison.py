"""Scores of one model before and after it was adapted: as a text table, JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastht.files import write_json
from fastht.tasks.results.tables import RESULTS_NAME, is_plain, write_table

TABLE_NAME = "results.csv"

Scores = Mapping[str, float]


def comparison_table(heading: str, columns: Mapping[str, Scores]) -> str:
    """Return scores as a text table, shares in percent.

    Args:
        heading: of the names.
        columns: scores of the same names by the heading of their column.
    """
    rows = [(heading, *columns)]
    for name in next(iter(columns.values())):
        if "/" in name:  # of a single class: they have a table of their own
            continue
        label = name.removeprefix("val_").replace("_", " ")
        rows.append((label, *(_shown(name, scores[name]) for scores in columns.values())))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_comparison(out: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, and its ``before`` and ``after`` as ``results.csv``.

    Raises:
        OSError: a file cannot be written.
    """
    write_json(out / RESULTS_NAME, dict(results))
    before, after = results["before"], results["after"]
    rows = [{"score": name, "before": before[name], "after": after[name]} for name in after]
    write_table(out / TABLE_NAME, rows)


def _shown(name: str, value: float) -> str:
    if math.isnan(value):
        return "undefined"
    if "loss" in name:
        return f"{value:.4f}"
    if is_plain(name):
        return f"{value:.3f}"
    return f"{value:.1f}" if name.endswith("rank") else f"{100 * value:.1f} %"
