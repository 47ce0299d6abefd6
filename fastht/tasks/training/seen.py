"""The record of a run's data in its folder: which image was on which side, and what it was."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from fastht.data.cases import Case, split_part
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
