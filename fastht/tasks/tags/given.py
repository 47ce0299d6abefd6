"""The tags that data gives: known ones, in their tree, exclusive, and what the captions say."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from fastht.data.refusals import refusal
from fastht.tasks.tags.findings import Finding, Records, finding
from fastht.taxonomy import Dimension


def check_tags(records: Records) -> list[Finding]:
    """What is wrong with the given tags by themselves, and beside the captions."""
    return [
        *_unknown(records),
        *_outside(records),
        *_exclusive(records),
        *_unsupported(records),
    ]


def coverage(records: Records) -> dict[str, dict[str, float]]:
    """The share of records with a tag, by dimension and split."""
    counts: Counter[tuple[str, str]] = Counter()
    sizes = Counter(record.side for record in records)
    for record in records:
        counts.update((name, record.side) for name in records.tags(record))
    return {
        name: {side: counts[name, side] / sizes[side] for side in records.sides}
        for name in records.taxonomy.dimensions
    }


def agreement(records: Records) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of the captions' tags, the given ones taken for right.

    Over all pairs of a record and a value of a dimension; None where nothing is divided. Records
    without caption, and those whose caption is a refusal, are left out.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        if not record.caption or refusal(record.caption):
            continue
        for name in records.taxonomy.dimensions:
            right, said = {*record.given.get(name, ())}, {*record.found.present(name)}
            counts[name, "both"] += len(right & said)
            counts[name, "given"] += len(right)
            counts[name, "found"] += len(said)
    result = {}
    for name in records.taxonomy.dimensions:
        both, given, found = (counts[name, what] for what in ("both", "given", "found"))
        result[name] = {
            "given": given,
            "found": found,
            "both": both,
            "precision": both / found if found else None,
            "recall": both / given if given else None,
            "f1": 2 * both / (given + found) if given + found else None,
        }
    return result


def nearest(dimension: Dimension, value: str, elsewhere: dict[str, str]) -> str:
    """What an unknown value may have been meant as, in words."""
    names = {name.casefold(): name for name in dimension.values}
    phrases = {p.text.casefold(): v.name for v in dimension.values.values() for p in v.synonyms}
    low = value.casefold()
    if low in elsewhere:
        return f"it is of {elsewhere[low]}"
    if close := get_close_matches(low, [*names, *phrases], n=1, cutoff=0.6):
        return (
            f"nearest: {(names | phrases)[close[0]] if close[0] not in names else names[close[0]]}"
        )
    return "nothing is near"


def _unknown(records: Records) -> list[Finding]:
    found = Counter(tag for record in records for tag in record.unknown)
    elsewhere = {value.casefold(): name for name, value in records.taxonomy.tags}
    dimensions = records.taxonomy.dimensions
    places = [
        f"{name}/{value} ({count:,} times; {nearest(dimensions[name], value, elsewhere)})"
        for (name, value), count in found.most_common()
    ]
    remedy = "correct them, or add them in a taxonomy that extends this one"
    return finding("unknown_tags", "error", "unknown tags", remedy, places)


def _outside(records: Records) -> list[Finding]:
    wrong: list[str] = []
    lacking: list[str] = []
    for record in records:
        for name, values in record.given.items():
            dimension = records.taxonomy.dimensions[name]
            if dimension.parent is None:
                continue
            above = record.given.get(dimension.parent, ())
            for value in values:
                parent = dimension.values[value].parent
                if parent in above:
                    continue
                place = f"{record.case.name}: {value} without {parent}"
                (wrong if above else lacking).append(place)
    remedy = "correct one of both; which system an organ is of is the taxonomy's tree"
    return [
        *finding("outside_parent", "error", "organ tags not under their system", remedy, wrong),
        *finding("without_parent", "warning", "organ tags without any system", remedy, lacking),
    ]


def _exclusive(records: Records) -> list[Finding]:
    places = []
    for record in records:
        for name, values in record.given.items():
            dimension = records.taxonomy.dimensions[name]
            if not dimension.exclusive:
                continue
            for a, b in combinations(values, 2):
                above = [{value, *dimension.broader(value)} for value in (a, b)]
                if not above[0] & above[1]:  # kinds of one thing may be there together
                    places.append(f"{record.case.name}: {a} and {b}")
    what = "pairs of tags that exclude each other"
    return finding("exclusive_tags", "error", what, "keep one of both", places)


def _unsupported(records: Records) -> list[Finding]:
    without, negated = [], []
    for record in records:
        if not record.caption:
            continue
        for name, values in record.given.items():
            there, absent = record.found.present(name), record.found.absent(name)
            for value in values:
                if value in absent:
                    negated.append(f"{record.case.name}: {value}")
                elif value not in there:
                    without.append(f"{record.case.name}: {value}")
    look = "by the extractor, which errs too: look at some"
    return [
        *finding("negated_tags", "warning", "tags that the caption negates", look, negated),
        *finding(
            "unsupported_tags", "warning", "tags that the caption does not have", look, without
        ),
    ]
