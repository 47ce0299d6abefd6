"""The table of a dual encoder's ablation: scores of each variant, and what sets them apart."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastht.tasks.image_text.compared import Scores, in_percent, seeds_said, table_of
from fastht.tasks.scores.intervals import Resampling

IMAGES = "images"  # in scores: by name, what each held-out image has: its name, patient and score
STATE = "at the end"
_COSINES = ("gap", "paired", "unmatched")
_SURE = ("rank_percentile", "zero_shot_accuracy")  # means over images, which are compared in pairs
_FIRST = "heads"  # what the others are compared with
_CAPTIONS = ("HT three tiers", "HT one template")  # of which the first is compared with the second
_OTHERS = (
    "image_to_text_recall@5",
    "image_to_text_recall@10",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
    "image_effective_rank",
    STATE,
)


def ablation_table(scores: Mapping[str, Mapping[str, Scores]]) -> str:
    """Return a Markdown table: cosines and ranks as they are, all else in percent.

    Intervals are of 95 %, of means over the held-out images of all seeds, and of paired differences
    of these. Patients are drawn with all their images of all seeds. How trainings of one variant
    differ is the standard deviation over seeds, and no part of the intervals.

    Args:
        scores: by variant, seed, ``before`` or ``after``, and name.
    """
    first = next(iter(scores.values()))
    columns: dict[str, list[dict[str, Any]]] = {"base": [{**r["before"]} for r in first.values()]}
    for name, runs in scores.items():
        columns[name] = [{**run["after"]} for run in runs.values()]
    shown = [*_COSINES]
    for score in _SURE:
        rows = {"95 %": None, f"less {_FIRST}, 95 %": _FIRST}
        rows[f"less {_CAPTIONS[1]}, 95 %"] = _CAPTIONS[1]
        shown.append(score)
        for row, other in rows.items():
            name = f"{score}, {row}"
            shown.append(name)
            for column, found in columns.items():
                if other is None:
                    found[0][name] = _interval(found, None, score)
                elif _compared(column, other) and other in columns:
                    found[0][name] = _interval(found, columns[other], score)
    return table_of(columns, [*shown, *_OTHERS], _cell, seeds_said(len(first)))


def _compared(column: str, other: str) -> bool:
    return column == _CAPTIONS[0] if other == _CAPTIONS[1] else column not in ("base", other)


def _interval(
    runs: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]] | None, score: str
) -> str | None:
    """Return the ends of the interval of a score, or of how much it is over another variant's.

    Raises:
        KeyError: an image of a run is not among those of the other variant with the same seed.
    """
    values: list[float] = []
    patients: list[str | None] = []
    for i, run in enumerate(runs):
        less: Mapping[Any, float] = {}
        if others is not None:
            less = {name: value for name, _, value in others[i].get(IMAGES, {}).get(score, ())}
        for name, patient, value in run.get(IMAGES, {}).get(score, ()):
            values.append(value if others is None else value - less[name])
            # Nobody else is an image without patient, in whichever seeds it is held out.
            patients.append(f"patient {patient}" if patient is not None else f"image {name}")
    if not values:
        return None
    low, high = Resampling(patients).mean(torch.tensor(values, dtype=torch.float64))
    sign = "" if others is None else "+"
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _cell(name: str, values: Sequence[Any]) -> str:
    if not values:
        return ""
    if name == STATE:
        counts = Counter(values)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    if isinstance(values[0], str):
        return values[0]
    if name in _COSINES or name.endswith("rank"):
        digits = 1 if name.endswith("rank") else 3
        mean = f"{statistics.fmean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
    return in_percent(values)
