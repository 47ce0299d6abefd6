"""TI-RADS levels that records state, held against the points of their tags."""

from __future__ import annotations

from typing import Any

from fastht.tasks.tags.findings import Finding, Records, finding
from fastht.taxonomy.tirads import NAME, STATED, points


def check_levels(records: Records) -> tuple[list[Finding], dict[str, Any] | None]:
    """Stated levels that the tags contradict; nothing where the taxonomy is another."""
    if NAME not in records.taxonomy.names:
        return [], None
    places = []
    stated_count = settled = agreed = 0
    for record in records:
        tags = records.tags(record)
        stated = tags.get(STATED) or record.found.present(STATED)
        if not stated:
            continue
        given = points(tags)
        stated_count += 1
        settled += len(given.levels) == 1
        if any(level not in given.levels for level in stated):
            told = f"{' and '.join(stated)} stated, tags give {given.describe()}"
            places.append(f"{record.case.name}: {told}")
        else:
            agreed += len(given.levels) == 1
    what = "stated TI-RADS levels that the tags contradict"
    remedy = "one of both is wrong, or the tags lack something"
    table = {"stated": stated_count, "settled_by_tags": settled, "agreed": agreed}
    return finding("tirads_levels", "warning", what, remedy, places), table
