"""Scores of single classes as a table of their own, and what accuracy needs no image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Scores = Mapping[str, float]

# Scores of a class, which are named "{score}/{class}", and their headings.
CLASS_SCORES = {
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "auc": "AUC",
    "sensitivity_at_90_specificity": "sens. at 90 % spec.",
    "sensitivity_at_95_specificity": "at 95 %",
}


def class_columns(
    versions: Mapping[str, Scores],
    classes: Sequence[str],
    intervals: Mapping[str, Any] | None = None,
    heading: str = "version",
) -> dict[str, list[str]]:
    """Return the scores of each class as columns of text by their headings, in percent.

    Args:
        versions: scores by what they are of, such as "before" or a method; a row for each of them
            and each class. Others may be among the scores.
        classes: their names.
        intervals: ``[low, high]`` of scores by the same names, shown behind them.
        heading: of what the scores are of, which has a column where there are several.

    Returns:
        No column where no score is of a class.
    """
    classes = [c for c in classes if any(f"sensitivity/{c}" in s for s in versions.values())]
    if not classes:
        return {}
    rows = [(label, version) for label in classes for version in versions]
    columns = {"class": [label for label, _ in rows]}
    if len(versions) > 1:
        columns[heading] = [version for _, version in rows]
    for score, name in CLASS_SCORES.items():
        columns[f"{name} (%)"] = [
            _cell(
                versions[version].get(f"{score}/{label}"),
                (intervals or {}).get(version, {}).get(f"{score}/{label}"),
            )
            for label, version in rows
        ]
    return columns


def class_text(columns: Mapping[str, Sequence[str]]) -> str:
    """Return what :func:`class_columns` does as an aligned table; empty where it is."""
    if not columns:
        return ""
    cells = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = len(columns) - len(CLASS_SCORES)
    lines = [
        "   ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def chance_sentence(chance: Mapping[str, Any]) -> str:
    """Return what accuracy needs no image, as :func:`chance_accuracy` of the scores gives it."""
    return (
        f"Accuracy without looking: {100 * chance['majority']:.1f} % by always "
        f"{chance['majority_class']!r}, {100 * chance['prior_matched']:.1f} % by guessing each "
        "class as often as it occurs."
    )


def calibration_lines(calibration: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line on the calibration of each version, as its record in ``results.json`` says."""
    lines = []
    for version, found in calibration.items():
        heading = "calibration" if len(calibration) == 1 else f"calibration {version}"
        raw, mended = found["uncalibrated"], found["calibrated"]
        if mended is None:
            lines.append(f"{heading}: {_measures(raw)}; {found['note']}")
            continue
        bound = ", AT ITS BOUND" if found["at_bound"] else ""
        lines.append(
            f"{heading}: {_measures(raw)}; at temperature {found['temperature']:.3g}{bound}: "
            f"{_measures(mended)} ({found['note']})"
        )
    return lines


def class_report(results: Mapping[str, Any]) -> str:
    """Return all that is told of classes beside the table of scores; empty for other tasks.

    Args:
        results: content of a ``results.json``: ``before`` and ``after``, and where a version of
            fastht wrote them, ``intervals``, ``chance``, ``calibration`` and ``warnings``.
    """
    versions = {
        version: results[version]
        for version in results.get("calibration", ("before", "after"))
        if results.get(version)
    }
    lines = [
        class_text(class_columns(versions, results.get("classes", ()), results.get("intervals")))
    ]
    if chance := results.get("chance"):
        lines.append(chance_sentence(chance))
    lines += calibration_lines(results.get("calibration", {}))
    lines += warning_lines(results)
    return "\n".join(line for line in lines if line)


def warning_lines(results: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a ``results.json``, each once."""
    return [f"WARNING: {warning}" for warning in dict.fromkeys(results.get("warnings", ()))]


def _measures(scores: Mapping[str, float]) -> str:
    return f"ECE {scores['ece']:.3f}, Brier {scores['brier']:.3f}, NLL {scores['nll']:.3f}"


def _cell(value: float | None, ends: Sequence[float | None] | None) -> str:
    if value is None:
        return "-"
    if math.isnan(value):
        return "undefined"
    text = f"{100 * value:.1f}"
    if ends is None or any(end is None or math.isnan(end) for end in ends):
        return text
    low, high = (f"{100 * float(end or 0):.1f}" for end in ends)
    return f"{text} [{low}, {high}]"
