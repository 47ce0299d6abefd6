"""The record of a run's data in its folder: which image was on which side, and what it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastht.data.cases import Case, Split, parse_split, split_part
from fastht.data.signature import Entry, describe_changes, entries_table, read_entries_table
from fastht.files import write_atomically
from fastht.tasks.training.state import ResumeError

SPLIT_NAME = "split.csv"


def keep_data(run: Path, entries: Iterable[Entry]) -> None:
    """Write what the data of a run is into its folder."""
    write_atomically(run / SPLIT_NAME, entries_table(entries))


def check_data(run: Path, entries: Sequence[Entry]) -> None:
    """Refuse to go on with a run if its data is no longer what it was.

    Raises:
        DataError: the run's record of its data cannot be read.
        ResumeError: the data has changed; the message says what and where.
    """
    if changes := describe_changes(read_entries_table(run / SPLIT_NAME), entries):
        raise ResumeError(
            f"{run} was started with other data: {changes}; go on with the data as it was, or "
            "start anew in another --out"
        )


def kept_sides(runs: Iterable[Path], cases: Iterable[Case]) -> dict[str, Split]:
    """Return the sides of cases by their names, as the first of some runs that is there has them.

    Raises:
        DataError: the record of that run cannot be read.
    """
    record = next((path for run in runs if (path := run / SPLIT_NAME).exists()), None)
    if record is None:
        return {}
    sides: dict[str, Split | None] = {}
    for entry in read_entries_table(record):  # older versions kept no names
        sides[entry.name or entry.file] = parse_split(entry.split)
    found = ((case.name, sides.get(case.name, sides.get(_absolute(case)))) for case in cases)
    return {name: side for name, side in found if side is not None}


def _absolute(case: Case) -> str:
    return os.path.abspath(case.image)


def count_trained(run: Path, cases: Iterable[Case]) -> int | None:
    """Return how many cases are of files that a run trained on; ``None``: it kept no record.

    Files are known by their paths; links are followed.

    Raises:
        DataError: the record cannot be read.
    """
    if not (run / SPLIT_NAME).exists():
        return None
    entries = read_entries_table(run / SPLIT_NAME)
    trained = {_real(entry.file) for entry in entries if entry.split == "train"}
    return sum(_real(case.image) in trained for case in cases)


def _real(file: str) -> str:
    return os.path.realpath(split_part(file)[0])
