"""What the folders of finished runs hold: their results, and what they were set to."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fastht.data.images import DataError
from fastht.data.layouts.files import natural
from fastht.data.tables import read_text

RESULTS_NAME = "results.json"
_SETTINGS = ("run.json", "arguments.json")  # of fastht segment and classify, of fastht train
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "method": str,
    "percent": (int, float),
    "seed": int,
    "model": str,
    "data": str,
    "before": dict,
    "after": dict,
}


def read_run(folder: Path) -> dict[str, Any]:
    """Return the results of one run, as its ``results.json`` has them.

    Scores that are null there are NaN; ``folder`` is added.

    Raises:
        DataError: the folder holds no results, damaged ones, or those of something else.
    """
    if not (folder / RESULTS_NAME).is_file():
        raise DataError(f"{folder}: no {RESULTS_NAME}; give the folder of a run that has finished")
    run = _load(folder)
    if run is None:
        raise DataError(
            f"{folder}: its {RESULTS_NAME} names no task and method; give the folder of a run"
        )
    return run


def find_runs(path: Path) -> list[dict[str, Any]]:
    """Return the runs in a folder and everywhere below it, by path; see :func:`read_run`.

    Raises:
        DataError: there is no such folder or no run, or results are damaged.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; give that of a run, or one above runs")
    files = sorted(path.rglob(RESULTS_NAME), key=lambda file: [*map(natural, file.parts)])
    runs = [run for file in files if (run := _load(file.parent)) is not None]
    if not runs:
        raise DataError(
            f"{path}: no {RESULTS_NAME} that names a task and a method, in it or below; give the "
            "folder that --out of fastht segment, classify or another task named"
        )
    return runs


def _load(folder: Path) -> dict[str, Any] | None:
    """Return a run, or nothing if the results are those of something else."""
    file = folder / RESULTS_NAME
    try:
        run = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise _damaged(file, str(error)) from None
    if not (isinstance(run, dict) and {"task", "method"} <= run.keys()):
        return None
    for name, kind in _FIELDS.items():
        if not isinstance(run.get(name), kind):
            raise _damaged(file, f"{name} is {run.get(name)!r}")
    for side in ("before", "after"):
        for score, value in run[side].items():
            if not isinstance(value, int | float | None):
                raise _damaged(file, f"{side}, {score} is {value!r}")
        run[side] = {name: math.nan if v is None else v for name, v in run[side].items()}
    _check_intervals(file, run.get("intervals", {}))
    if not run["after"]:
        raise _damaged(file, "it holds no scores")
    return run | {"folder": folder}


def _check_intervals(file: Path, intervals: Any) -> None:
    """Make the nulls of a run's intervals NaN; runs of old versions have none."""
    if not isinstance(intervals, dict):
        raise _damaged(file, f"intervals is {intervals!r}")
    for version in {"before", "after", "difference"} & intervals.keys():
        found = intervals[version]
        if not isinstance(found, dict):
            raise _damaged(file, f"intervals, {version} is {found!r}")
        for score, ends in found.items():
            if not (
                isinstance(ends, list)
                and len(ends) == 2
                and all(isinstance(end, int | float | None) for end in ends)
            ):
                raise _damaged(file, f"intervals, {version}, {score} is {ends!r}")
            found[score] = [math.nan if end is None else end for end in ends]


def _damaged(file: Path, what: str) -> DataError:
    return DataError(f"{file}: damaged ({what}); do the run again or remove it")


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return what a run wrote of its options, as it lies there; ``None`` if nothing can be read.

    Those of segment and classify are nested under ``options``, beside what came of them.
    """
    for name in _SETTINGS:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return None


def read_options(folder: Path) -> dict[str, Any]:
    """Return the options alone of a run, groups of them nested; empty if nothing can be read."""
    content = read_settings(folder) or {}
    options = content.get("options", content)
    return options if isinstance(options, dict) else {}
