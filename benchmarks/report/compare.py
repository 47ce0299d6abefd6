"""Old results against new ones, entry by entry."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report.load import refuse_other_machine
from benchmarks.report.results import COLD, Entry, Results
from benchmarks.report.tables import MIB, UNKNOWN, number, times

BYTES = {"saved_bytes": "MiB kept", "held_bytes": "MiB held", "peak_bytes": "MiB peak"}


@dataclass(frozen=True)
class Change:
    """One number that both have: what it is called, and its values."""

    name: str
    unit: str
    old: float
    new: float

    @property
    def ratio(self) -> float:
        return self.new / self.old


def changes(old: Results, new: Results) -> list[Change]:
    """Return what both have, in the new one's order.

    Raises:
        ReportError: they are of different machines.
    """
    refuse_other_machine(old.runs[0], new.runs[0])
    before = {entry.key: quantities(entry) for entry in old.entries}
    return [
        Change(entry.name, unit, before[entry.key][unit], value)
        for entry in new.entries
        if entry.key in before
        for unit, value in quantities(entry).items()
        if unit in before[entry.key]
    ]


def quantities(entry: Entry) -> dict[str, float]:
    """Return an entry's time and its memory, by unit.

    The memory suites' time is that of a cold call, which no page shows; nothing kept is no ratio.
    """
    found = {} if entry.suite in COLD else {"ms": 1e3 * entry.median}
    found |= {unit: (entry.info.get(field) or 0) / MIB for field, unit in BYTES.items()}
    return {unit: value for unit, value in found.items() if value > 0}


def report(old: Results, new: Results, most: int | None = None) -> Iterator[str]:
    """Yield a table of all changes, or of the ``most`` largest, and a line that sums them up.

    Raises:
        ReportError: they are of different machines.
    """
    found = changes(old, new)
    shown = found
    if most is not None:
        shown = sorted(found, key=lambda change: abs(math.log(change.ratio)), reverse=True)[:most]
    if shown:
        yield f"{'new/old':>7}  {'old':>8}  {'new':>8}"
    for change in shown:
        a, b = number(change.old), number(change.new)
        yield f"{times(change.ratio):>7}  {a:>8}  {b:>8}  {change.unit:<8}  {change.name}"
    ratios = [change.ratio for change in found if change.unit == "ms"]
    middle = times(statistics.median(ratios)) if ratios else UNKNOWN
    one, other = ({entry.key for entry in results.entries} for results in (old, new))
    yield (
        f"{len(one & other)} entries in both, median of new/old in time {middle}; "
        f"{len(one - other)} in the old ones alone, {len(other - one)} in the new ones alone"
    )
