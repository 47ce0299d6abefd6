"""Results of runs as tables: summed up over seeds, as CSV and as aligned text."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastht.files import write_atomically

Run = Mapping[str, Any]
Row = dict[str, Any]

PREDICTIONS_NAME = "predictions.csv"  # a row an image
BEFORE_NAME = "predictions-before.csv"  # the same before training
COUNTS = (
    "images",
    "empty_predictions",
    "empty_truths",
    "without_distance",
    "empty_predictions_native",
    "empty_truths_native",
    "without_distance_native",
    "with_spacing",
    "spacing_refused",
)
# What some runs have and others do not.
EXTRAS = ("trained_on", "prompts", "split", "resize", "from_run")
# Runs that differ in one of these are not of one row.
KEYS = ("task", "data", "model", "method", "percent", "shots", *EXTRAS)
_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd95": "HD95",
    "asd": "ASD",
    "nsd": "NSD",
    "f1": "F1",
    "auc": "AUC",
    "ece": "ECE",
    "brier": "Brier",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
}
_PERCENT = ("dice", "iou", "nsd", "accuracy", "recall", "precision", "f1", "auc", "rsum")
_OF_CLASSES = ("sensitivity", "specificity", "ppv", "auc")  # "{score}/{class}"
_DISTANCES = ("hd95", "asd")
_PLAIN = ("paired", "unmatched", "gap", "percentile", "alignment", "uniformity", "ece", "brier")
# Told by the others, where there are those: of no column of a table.
_DETAILS = ("recall", "precision", "f1", "brier")
WIDTH = 120  # characters of a table on a terminal
# Columns of names, which are aligned at their left.
NAME_COLUMNS = ("method", "model", *(name.replace("_", " ") for name in EXTRAS))


def summarise(runs: Sequence[Run]) -> list[Row]:
    """Sum up runs that differ in their seeds alone: one row each, in order of first appearance.

    Args:
        runs: contents of ``results.json``; scores may be NaN.

    Returns:
        Rows with what is of ``KEYS`` in their runs; ``seeds``, how many runs there are;
        ``trainable_parameters``; the means of ``train_images`` and ``test_images``. For each score
        its mean over the seeds, ``{score}_sd``, their sample standard deviation (``None`` if fewer
        than two have a value), ``{score}_before``, the mean before training, and, if there are
        any, ``{score}_undefined``, the number of runs that the mean leaves out, as theirs is NaN;
        where there is one run and it has intervals, their ends ``{score}_low``, ``{score}_high``,
        ``{score}_before_low`` and ``{score}_before_high``.
        Of ``{score}_std``, a spread over images, the mean alone; of counts of images the sums.

    Raises:
        ValueError: two runs of a row differ in something else than their seeds.
    """
    return [_row(group) for group in group_runs(runs)]


def group_runs(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of each row of :func:`summarise`."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(run.get(name) for name in KEYS), []).append(run)
    return list(groups.values())


def find_stranger(runs: Sequence[Run]) -> str | None:
    """Return why runs of one method are no repeats with other seeds, or nothing if they are."""
    first: dict[tuple[float, int], Run] = {}
    for run in runs:
        other = first.setdefault((run["percent"], run["seed"]), run)
        if other is not run:
            why = f"have the same seed, {run['seed']}"
        elif run.get("trainable_parameters") != runs[0].get("trainable_parameters"):
            other, why = runs[0], "do not train as many parameters"
        else:
            continue
        names = " and ".join(str(r.get("folder", "a run")) for r in (other, run))
        return (
            f"{names} {why}: they are no repeats of {run['method']}; leave one out, or give fastht "
            "report each folder by itself"
        )
    return None


def _row(runs: Sequence[Run]) -> Row:
    if why := find_stranger(runs):
        raise ValueError(why)
    row: Row = {name: value for name in KEYS if (value := runs[0].get(name)) is not None}
    row["seeds"] = len(runs)
    row["trainable_parameters"] = runs[0].get("trainable_parameters")
    for name in ("train_images", "test_images"):
        known = [run[name] for run in runs if run.get(name) is not None]
        row[name] = round(statistics.fmean(known)) if known else None
    for score in dict.fromkeys(score for run in runs for score in run["after"]):
        values = [run["after"][score] for run in runs if score in run["after"]]
        if score in COUNTS:
            row[score] = sum(values)
            continue
        row[score] = _mean(values)
        if score.endswith("_std"):
            continue
        defined = [value for value in values if not math.isnan(value)]
        row[f"{score}_sd"] = statistics.stdev(defined) if len(defined) > 1 else None
        if before := [run["before"][score] for run in runs if score in run["before"]]:
            row[f"{score}_before"] = _mean(before)
        if len(runs) == 1:
            row |= _ends(runs[0].get("intervals", {}), score)
        if len(defined) < len(runs):
            row[f"{score}_undefined"] = len(runs) - len(defined)
    return row


def _ends(intervals: Mapping[str, Any], score: str) -> Row:
    """Return the ends of a score's intervals, after and before, where there are any."""
    names = {"after": score, "before": f"{score}_before"}
    return {
        f"{name}_{end}": value
        for version, name in names.items()
        if score in intervals.get(version, {})
        for end, value in zip(("low", "high"), intervals[version][score], strict=True)
    }


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return statistics.fmean(defined) if defined else math.nan


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; a cell is empty where a row has ``None`` or no such column.

    Raises:
        ValueError: there is no row.
        OSError: the file cannot be written.
    """
    if not rows:
        raise ValueError(f"{path}: no rows to write; give at least one")
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def scores_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of the scores that tables show.

    Without spreads over images, counts and scores of single classes, and without those that the
    balanced accuracy and macro F1 stand for where there are these.
    """
    columns = dict.fromkeys(column for row in rows for column in row)
    left_out = _DETAILS if "balanced_accuracy" in columns else ()
    return [
        column
        for column in columns
        if f"{column}_sd" in columns and "/" not in column and column not in left_out
    ]


def text_table(rows: Sequence[Row], scores: Sequence[str] | None = None) -> str:
    """Return rows of one task and data set as an aligned table; see :func:`table_columns`."""
    return text_columns(table_columns(rows, scores))


def text_columns(columns: Mapping[str, Sequence[str]]) -> str:
    """Return columns of text by their headings as an aligned table.

    One that is too wide for a terminal is turned on its side, if that makes it narrower.
    """
    cells = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    table = _aligned(cells, sum(name in (*NAME_COLUMNS, "difference") for name in columns))
    turned = _aligned([list(column) for column in zip(*cells, strict=True)], 1)
    fits = len(table[0]) <= max(WIDTH, len(turned[0]))
    head, *body = table if fits else turned
    return "\n".join([head, "-" * len(head), *body])


def _aligned(cells: Sequence[Sequence[str]], names: int) -> list[str]:
    """Return lines of cells, the first columns aligned at their left and others at their right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "   ".join(
            cell.ljust(width) if place < names else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def table_columns(rows: Sequence[Row], scores: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return rows of one task and data set as columns of text by their headings.

    Scores are means, "± their standard deviation over seeds" where there is one. The model, the
    number of test images and ``EXTRAS`` have columns where rows differ in them, the share of the
    training data where it is not all of it. Images in which nothing was predicted, and those that
    distances leave out, are counted in columns of their own where there are any.

    Args:
        rows: as :func:`summarise` gives them.
        scores: which of their scores, also ``{score}_before``; default: all.

    Raises:
        ValueError: there is no row, rows are of several tasks or data sets, or no row has a score.
    """
    if len({(row["task"], row["data"]) for row in rows}) != 1:
        raise ValueError("a table is of one task and data set; divide the rows by them")
    if scores is None:
        scores = scores_of(rows)
    if unknown := [score for score in scores if not any(score in row for row in rows)]:
        raise ValueError(f"no row has {unknown[0]!r}; choose of {', '.join(scores_of(rows))}")
    columns = {"method": [row["method"] for row in rows]}
    for name in ("model", *EXTRAS, "test_images"):
        found = [str(row.get(name) or "-") for row in rows]
        if len(set(found)) > 1:
            columns[name.replace("_", " ")] = found
    if any(row["percent"] != 100 for row in rows):
        columns["share"] = [share_text(row) for row in rows]
    columns["seeds"] = [str(row["seeds"]) for row in rows]
    if any(row["trainable_parameters"] is not None for row in rows):
        counts = [row["trainable_parameters"] for row in rows]
        columns["trainable"] = ["-" if count is None else f"{count:,}" for count in counts]
    for score in scores:
        columns[score_label(score)] = [score_text(row, score) for row in rows]
    for name, heading in (
        ("empty_predictions", "nothing predicted"),
        ("without_distance", "without distance"),
    ):
        if any(row.get(name) for row in rows):
            columns[heading] = [
                f"{row[name]:,} of {row['images']:,}" if name in row else "-" for row in rows
            ]
    return columns


def share_text(row: Row) -> str:
    """Return how much of the training data a row is of: a share, or images of each class."""
    if (shots := row.get("shots")) is not None:
        return f"{shots} shot{'' if shots == 1 else 's'}"
    return f"{row['percent']:g} %"


def score_label(score: str) -> str:
    """Return a score's name for people, with its unit in brackets if it has one."""
    base, before = score.removesuffix("_before"), score.endswith("_before")
    unit = score_unit(score)[1]
    whole, at, place = base.partition("@")
    words = whole.split("_")
    if words[-1] == unit:  # it is in brackets anyway
        words.pop()
    name = _NAMES.get(whole, " ".join([_NAMES.get(words[0], words[0]), *words[1:]])) + at + place
    return f"{name}{' before' if before else ''}{f' ({unit})' if unit else ''}"


def score_unit(score: str) -> tuple[float, str]:
    """Return what a score is to be multiplied with to be in its unit, and the unit."""
    name = score.split("/")[0].split("@")[0].removesuffix("_before").removesuffix("_native")
    words = name.split("_")
    if words[-1] in (*_PERCENT, *_OF_CLASSES):
        return 100, "%"
    if words[0] in _DISTANCES:
        return 1, "mm" if words[-1] == "mm" else "px"
    return 1, ""


def is_plain(score: str) -> bool:
    """Return whether a score is a cosine, a distance or the like, which has no unit."""
    return score.removesuffix("_before").split("_")[-1] in _PLAIN


def score_digits(score: str) -> int:
    """Return how many digits after the point a score is shown with, in its unit."""
    if score_unit(score)[1] in ("px", "mm"):
        return 2
    return 4 if "loss" in score else 3 if is_plain(score) else 1


def score_text(row: Row, score: str) -> str:
    """Return a row's score in its unit, "mean ± standard deviation over the seeds [low, high]"."""
    factor, _ = score_unit(score)
    value = row.get(score)
    if value is None:
        return "-"
    if math.isnan(value):
        return "undefined"
    digits = score_digits(score)
    text = f"{factor * value:.{digits}f}"
    if (spread := row.get(f"{score}_sd")) is not None:
        text += f" ± {factor * spread:.{digits}f}"
    if f"{score}_low" in row:
        text += interval_text(row[f"{score}_low"], row[f"{score}_high"], factor, digits)
    if undefined := row.get(f"{score}_undefined"):
        text += f" ({row['seeds'] - undefined} of {row['seeds']} seeds)"
    return text


def interval_text(low: float, high: float, factor: float, digits: int, sign: str = "") -> str:
    """Return " [low, high]" for the end of a score's text; nothing where there is no interval.

    Args:
        low: its lower end; NaN: none.
        high: its upper end.
        factor: what both are multiplied with.
        digits: after the point.
        sign: "+" shows it for what is above 0.
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    return f" [{factor * low:{sign}.{digits}f}, {factor * high:{sign}.{digits}f}]"
