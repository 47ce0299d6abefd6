"""What splits share, by `fastht data overlap`'s comparison: patients, groups, images."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from fastht.data.cases import CaseSet
from fastht.data.overlap.fingerprints import fingerprint
from fastht.data.overlap.shared import KINDS
from fastht.data.overlap.sides import within
from fastht.tasks.tags.findings import Finding, Level, finding


def check_groups(cases: CaseSet) -> list[Finding]:
    """Patients and other groups that are in several splits."""
    sides: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        if case.split is None:
            continue
        keys = [("patient", (case.patient,))] if case.patient is not None else []
        for name, values in (*keys, *case.groups):
            for value in values:
                sides[f"{name} {value}"].add(case.split)
    places = [
        f"{key} in {' and '.join(sorted(there))}" for key, there in sides.items() if len(there) > 1
    ]
    remedy = "split anew by `fastht data split`, which keeps groups together"
    return finding("group_leaks", "error", "groups in several splits", remedy, places)


def check_images(cases: CaseSet) -> tuple[list[Finding], dict[str, Any]]:
    """Images that cannot be read, and those that are the same on two sides; reads all images.

    Without splits, images that are the same and of different patients.
    """
    prints = fingerprint(cases.cases, title="reading images")
    shared = within(cases, prints)
    cases_of = {case.image: case for case in reversed(cases.cases)}
    places: dict[str, list[str]] = defaultdict(list)
    for pair in shared.pairs:
        a, b = (cases_of[prints.images[i]] for i in (pair.first, pair.second))
        where = f" ({a.split} | {b.split})" if a.split or b.split else ""
        alike = f", {pair.similarity:.2f}" if pair.kind == "near" else ""
        places[pair.kind].append(f"{a.name} | {b.name}{where}{alike}")
    remedy = "keep one of both, or both on one side; `fastht data overlap` draws them"
    found = finding(
        "unreadable_images",
        "error",
        "unreadable images",
        "copy them again or take them out",
        [what.removesuffix(";") for what in prints.unreadable],
    )
    across = " across splits" if any(case.split for case in cases) else " of several patients"
    for kind, what in KINDS.items():
        level: Level = "warning" if kind == "near" else "error"
        text = f"pairs of images, {what},{across}"
        found += finding(f"{kind}_leaks", level, text, remedy, places[kind])
        groups = [group.describe() for group in shared.leaking if group.group.kind == kind]
        text = f"groups of many images, {what},{across}"
        found += finding(f"{kind}_group_leaks", level, text, remedy, groups)
    table = {
        "images": len(prints),
        "unreadable": len(prints.unreadable),
        "on_one_side": dict(shared.counts_inside()),
        "not_compared_with_all": shared.cut,
    }
    return found, table
