"""Runs compared image by image: paired differences on the same resamples of patients.

Rows of a report are compared where their runs were scored on the same test images. A difference
of two scores is computed in every resample of these images' patients, the same ones for both, so
that what makes an image hard for both of them is not in its interval. Over several seeds, the
scores are averaged in every resample: the interval is of other patients, not of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from fastht.tasks.images.entries import Entries, Key, NoEntriesError, read_entries
from fastht.tasks.results.differences import Compared, Difference
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.results.report import report as write_report
from fastht.tasks.results.tables import Row, Run
from fastht.tasks.scores.intervals import Interval, Resampling

_VERSIONS = ("before", "after")


def report(arguments: ReportArguments) -> int:
    """Print and write a report with paired differences; see :func:`results.report.report`."""
    return write_report(arguments, compare)


def compare(groups: Sequence[Sequence[Run]], rows: Sequence[Row]) -> Compared:
    """Compare the rows of a report with each other, and with what they were before training.

    Args:
        groups: the runs of each row, with their folders.
        rows: as ``summarise`` gives them, several tasks and data sets among them.
    """
    made = Compared(ends=[{} for _ in rows])
    sections: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        sections.setdefault((row["task"], row["data"], row["percent"]), []).append(place)
    for places in sections.values():
        read = {place: _Read.of(groups[place]) for place in places}
        patients = _Patients(found for one in read.values() for found in one.all())
        for place, one in read.items():
            _compare_alone(made, place, one, patients, rows[place])
        for first, second in combinations(places, 2):
            _compare_two(made, (second, first), read, patients, rows)
    return made


class _Read:
    """The entries of a row's runs: of each run, or why there are none."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self.entries: dict[str, list[Entries]] = {}
        self.why: dict[str, str] = {}
        self._statistics: dict[tuple[str, int], dict[str, Tensor]] = {}

    @classmethod
    def of(cls, runs: Sequence[Run]) -> _Read:
        """Read the entries of all runs, before and after training."""
        made = cls(runs)
        for version in _VERSIONS:
            if not any(run[version] for run in runs):
                made.why[version] = "it has no scores before training"
                continue
            try:
                found = [read_entries(run, version) for run in runs]
                if any(one.keys != found[0].keys for one in found):
                    raise NoEntriesError("its seeds were not scored on the same images")
                made.entries[version] = found
            except NoEntriesError as error:
                made.why[version] = str(error)
        return made

    def all(self) -> list[Entries]:
        """Return all entries that there are."""
        return [one for found in self.entries.values() for one in found]

    def statistics(self, version: str, made: Resampling) -> dict[str, Tensor]:
        """Return the scores in each resample, means over the seeds that have a value."""
        key = (version, id(made))
        if key not in self._statistics:
            found = self.entries[version]
            names = frozenset[str].intersection(*(one.names for one in found))
            each = [made.statistics(one.scores) for one in found]
            self._statistics[key] = {}
            for name in each[0]:
                if name in names:
                    defined = [
                        statistics[name]
                        for statistics, run in zip(each, self.runs, strict=True)
                        if not math.isnan(run[version][name])
                    ]
                    if defined:
                        self._statistics[key][name] = torch.stack(defined).mean(dim=0)
        return self._statistics[key]


class _Patients:
    """Who is on which image, as far as any of some runs names it; and the resamples of them."""

    def __init__(self, entries: Any) -> None:
        self._known: dict[Key, str] = {}
        self.contradicted: set[Key] = set()
        self._made: dict[tuple[Key, ...], Resampling] = {}
        for one in entries:
            for key, patient in zip(one.keys, one.patients, strict=True):
                if patient is not None and self._known.setdefault(key, patient) != patient:
                    self.contradicted.add(key)

    def resampling(self, keys: tuple[Key, ...]) -> Resampling:
        """Return the resamples of a set of images, the same ones for all that ask.

        Raises:
            NoEntriesError: two runs name different patients of an image.
        """
        if wrong := self.contradicted.intersection(keys):
            raise NoEntriesError(f"runs name different patients of {min(wrong)[0]}")
        if keys not in self._made:
            files = [file.rpartition("::")[0] or file for file, _ in keys]
            self._made[keys] = Resampling([self._known.get(key) for key in keys], files)
        return self._made[keys]


def _compare_alone(made: Compared, place: int, read: _Read, patients: _Patients, row: Row) -> None:
    """Add the intervals of a row where it has none yet, and its differences to before."""
    resampling = None
    try:
        if "after" not in read.entries:
            raise NoEntriesError(read.why["after"])
        resampling = patients.resampling(read.entries["after"][0].keys)
        after = read.statistics("after", resampling)
        made.units[place] = resampling.describe()
        ends = made.ends[place]
        for name, statistics in after.items():
            if f"{name}_low" not in row:
                low, high = resampling.percentile(statistics)
                ends |= {f"{name}_low": low, f"{name}_high": high}
        if "before" not in read.entries:
            raise NoEntriesError(read.why["before"])
        if read.entries["before"][0].keys != read.entries["after"][0].keys:
            raise NoEntriesError("it was scored on other images before training")
        before = read.statistics("before", resampling)
        for name, statistics in before.items():
            if f"{name}_before" in row and f"{name}_before_low" not in row:
                low, high = resampling.percentile(statistics)
                ends |= {f"{name}_before_low": low, f"{name}_before_high": high}
        for name in after:
            if name in before and not _same(read.runs):
                value = row[name] - row[f"{name}_before"]
                interval = resampling.difference(after[name], before[name])
                _add(made, (place, place), name, value, interval, resampling)
    except NoEntriesError as error:
        made.notes.setdefault(place, []).append(f"not from its images, for {error}")
    _add_recorded(made, place, read.runs, row)


def _same(runs: Sequence[Run]) -> bool:
    """Return whether nothing was adapted, so that before and after are the same."""
    return all(run["method"].partition(" (")[0] == "base" for run in runs)


def _add_recorded(made: Compared, place: int, runs: Sequence[Run], row: Row) -> None:
    """Add what a single run's results say of differences that its entries do not give."""
    intervals = runs[0].get("intervals", {}) if len(runs) == 1 else {}
    done = {d.score for d in made.differences if d.row == d.other == place}
    if "note" in intervals:
        made.units.setdefault(place, intervals["note"])
    for name, ends in intervals.get("difference", {}).items():
        if name not in done and f"{name}_before" in row:
            value = row[name] - row[f"{name}_before"]
            unit, units = intervals["unit"], intervals["units"]
            count = row.get("test_images") or runs[0].get("held_out_samples") or units
            made.differences.append(
                Difference(place, place, name, value, ends[0], ends[1], count, unit, units)
            )


def _compare_two(
    made: Compared,
    pair: tuple[int, int],
    read: Mapping[int, _Read],
    patients: _Patients,
    rows: Sequence[Row],
) -> None:
    """Add the differences between two rows, or why there are none."""
    one, other = (read[place].entries.get("after") for place in pair)
    if one is None or other is None:
        return  # said of the row that has no entries
    mine, others = one[0], other[0]
    try:
        if mine.keys != others.keys:
            common = len(set(mine.keys) & set(others.keys))
            raise NoEntriesError(
                f"not the same test images: {len(mine.keys)} and {len(others.keys)}, {common} of "
                "them in common"
            )
        if mine.truth != others.truth:
            raise NoEntriesError("the same test images, but other labels of some of them")
        resampling = patients.resampling(mine.keys)
    except NoEntriesError as error:
        name = rows[pair[1]]["method"]
        made.notes.setdefault(pair[0], []).append(f"not to {name}, for {error}")
        return
    first, second = (read[place].statistics("after", resampling) for place in pair)
    for name in first:
        if name in second:
            value = rows[pair[0]][name] - rows[pair[1]][name]
            interval = resampling.difference(first[name], second[name])
            _add(made, pair, name, value, interval, resampling)


def _add(
    made: Compared,
    pair: tuple[int, int],
    score: str,
    value: float,
    interval: Interval,
    resampling: Resampling,
) -> None:
    made.differences.append(
        Difference(
            *pair, score, value, *interval, resampling.images, resampling.unit, resampling.units
        )
    )
