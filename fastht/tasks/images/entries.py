"""What finished runs say of each test image: read from their folders, to be scored again."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.data.images import DataError
from fastht.data.tables import read_table
from fastht.tasks.results.tables import BEFORE_NAME, PREDICTIONS_NAME
from fastht.tasks.scores import classification
from fastht.tasks.scores.intervals import weighted_means

Key = tuple[str, str]  # an image's file and, where an image has several, its caption
Scores = Callable[[Tensor], Mapping[str, Tensor]]
_CLASS = re.compile(r"p\((.*)\)")
# Float32 has seven digits; more than rounding is another measure or another image.
_TOLERANCE = 1e-5


class NoEntriesError(ValueError):
    """A run has no entries of its images, or none that give its scores; the message says why."""


@dataclass(frozen=True)
class Entries:
    """What one version of a model makes of each test image.

    Attributes:
        keys: the images, sorted.
        patients: of each image; ``None`` where it is not known.
        truth: of each image, its class; empty where the truth is a mask or a caption.
        scores: weights ``[r, n]`` of the images in this order to scores ``[r]`` by name.
        names: the scores that come out as the run's results have them.
    """

    keys: tuple[Key, ...]
    patients: tuple[str | None, ...]
    truth: tuple[str, ...]
    scores: Scores
    names: frozenset[str]


def read_entries(run: Mapping[str, Any], version: str) -> Entries:
    """Read a run's entries of its test images.

    Args:
        run: its ``results.json`` with its ``folder``.
        version: "before" or "after" its training.

    Raises:
        NoEntriesError: there are none, or they are damaged, or do not give the run's scores.
    """
    rows, path = _read(Path(run["folder"]), version)
    keyed: dict[Key, dict[str, str]] = {}
    for row in rows:
        if keyed.setdefault((row.get("file", ""), row.get("caption", "")), row) is not row:
            raise NoEntriesError(f"{path} names an image twice")
    keys = sorted(keyed)
    ordered = [keyed[key] for key in keys]
    try:
        classes = [match[1] for name in ordered[0] if (match := _CLASS.fullmatch(name))]
        if classes:
            scores, truth = _of_classes(ordered, classes)
        else:
            scores, truth = _of_values(ordered, run[version]), ()
    except (KeyError, ValueError) as error:
        raise NoEntriesError(f"{path} is damaged ({error})") from error
    found = scores(torch.ones(1, len(keys), dtype=torch.float64))
    names = {
        name
        for name, values in found.items()
        if name in run[version] and _equal(values.item(), run[version][name])
    }
    if not names:
        raise NoEntriesError(f"{path} does not give the scores of its run")
    patients = tuple(row.get("patient") or None for row in ordered)
    return Entries(tuple(keys), patients, truth, scores, frozenset(names))


def _read(folder: Path, version: str) -> tuple[list[dict[str, str]], Path]:
    """Return the rows of a version, its columns without the version in their names."""
    path = folder / (BEFORE_NAME if version == "before" else PREDICTIONS_NAME)
    together = folder / PREDICTIONS_NAME
    try:
        if version == "before" and not path.exists():
            columns, found = read_table(together)
            if not any(column.endswith(" before") for column in columns):
                raise NoEntriesError(f"{folder} has no predictions before training")
            path = together
        else:
            columns, found = read_table(path)
    except DataError as error:
        why = "cannot be read" if path.exists() else "does not exist"
        raise NoEntriesError(f"{path} {why}") from error
    # Where nothing adapts the model, it is the same before and after.
    several = [v for v in ("before", "after") if any(c.endswith(f" {v}") for c in columns)]
    suffix = f" {version if version in several else several[0]}" if several else ""
    rows = [{name.removesuffix(suffix): cell for name, cell in row.items()} for _, row in found]
    if not rows:
        raise NoEntriesError(f"{path} has no rows")
    return rows, path


def _of_classes(
    rows: Sequence[Mapping[str, str]], classes: Sequence[str]
) -> tuple[Scores, tuple[str, ...]]:
    probabilities = torch.tensor(
        [[float(row[f"p({name})"]) for name in classes] for row in rows], dtype=torch.float64
    )
    truth = tuple(row["label"] for row in rows)
    labels = torch.tensor([classes.index(label) for label in truth])

    def scores(weights: Tensor) -> dict[str, Tensor]:
        return classification.resampled(probabilities, labels, weights, classes)

    return scores, truth


def _of_values(rows: Sequence[Mapping[str, str]], known: Mapping[str, float]) -> Scores:
    """Return scores that are means over the images: those of columns of the same name."""
    names = [name for name in rows[0] if name in known]
    values = torch.tensor(
        [[float(row[name] or math.nan) for name in names] for row in rows], dtype=torch.float64
    )

    def scores(weights: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, weighted_means(values, weights).T, strict=True)) if names else {}

    return scores


def _equal(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(
        a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
    )
