"""``fastht data overlap``: what data sets share, and what one shares across its splits."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated

import tyro

from fastht.data.cases import Case, CaseSet
from fastht.data.images import DataError
from fastht.data.layouts import LAYOUTS, load_cases
from fastht.data.layouts.files import is_image_name, natural
from fastht.data.overlap.fingerprints import fingerprint
from fastht.data.overlap.picture import draw_pairs
from fastht.data.overlap.shared import KINDS, Kind
from fastht.data.overlap.sides import Shared, between, cases_once, within
from fastht.data.shards import load_shards
from fastht.files import make_directory, write_atomically

PAIRS_NAME, GROUPS_NAME, PICTURE_NAME = "pairs.csv", "groups.csv", "pairs.png"
_IMAGES = "images"  # instead of a layout: every image below a folder
_SHOWN = 10  # pairs and patients that are printed
_DRAWN = 12


@dataclass(frozen=True)
class OverlapArguments:
    """Find images and patients that data sets share, and that one has in several splits or twice.

    Exit status 1 if there are any.

    Attributes:
        data: two or more data sets, or one: "sample", folders, tables, shards. LAYOUT:PATH names a
            layout; images:PATH takes every image below a folder. A part of a set, or one that needs
            options, is first written as a table by `fastht data export`.
        out: folder of pairs.csv, which has all pairs, of groups.csv, where many images are equal
            and not each pair is written, and of a picture of the pairs most in doubt.
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Path = Path("runs/overlap")


def overlap(arguments: OverlapArguments) -> int:
    """Print what is shared, leave all pairs and a picture; return the exit status.

    Raises DataError if a set cannot be read, or is named twice.
    """
    if not arguments.data:
        raise DataError("no data set; name one or more")
    if len({os.path.realpath(name) for name in arguments.data}) < len(arguments.data):
        raise DataError("a data set is named twice; name each once")
    sets = [load_any(name) for name in arguments.data]
    prints = []
    for found in sets:
        print(found.describe(), flush=True)
        prints.append(fingerprint(found.cases, title=f"hashing {Path(found.source).name}"))
        for what in prints[-1].unreadable:
            print(f"  cannot be compared: {what}")
    results = [within(a, p) for a, p in zip(sets, prints, strict=True)]
    numbered = list(zip(sets, prints, strict=True))
    for (a, p), (b, q) in combinations(numbered, 2):
        results.append(between(a, b, p, q))
    make_directory(arguments.out)
    write_atomically(arguments.out / PAIRS_NAME, _table(results).encode())
    grouped = any(result.groups for result in results)
    if grouped:
        write_atomically(arguments.out / GROUPS_NAME, _group_table(results).encode())
    else:
        (arguments.out / GROUPS_NAME).unlink(missing_ok=True)  # of an earlier look
    _draw(results, arguments.out)
    print()
    for result in results:
        _tell(result)
    count = sum(result.counts().total() + len(result.patients) for result in results)
    groups = f"; groups of equal images: {arguments.out / GROUPS_NAME}" if grouped else ""
    what = "all other pairs" if grouped else "all pairs"
    print(
        f"\n{f'{count:,}' if count else 'nothing'} shared; {what}: "
        f"{arguments.out / PAIRS_NAME}{groups}"
    )
    unread = sum(len(p.unreadable) for p in prints)
    if unread:
        print(f"{unread:,} images could not be read and were compared with nothing.")
    return 1 if count else 0


def load_any(name: str) -> CaseSet:
    """A data set by PATH or LAYOUT:PATH, whatever its images come with.

    Raises DataError if it cannot be read.
    """
    prefix, colon, rest = name.partition(":")
    layout = prefix if colon and prefix in (*LAYOUTS, _IMAGES) else None
    path = name if layout is None else rest
    if layout == _IMAGES:
        return _every_image(Path(path))
    if path.endswith(".tar"):
        records = load_shards(path)
        cases = (
            Case(r.image, r.image, label=r.label, patient=r.patient, caption=r.caption)
            for r in records
        )
        return CaseSet(tuple(cases), path, "shards", records.dropped)
    # Images are compared whatever their captions say.
    return load_cases(path, task="image", layout=layout, leave_out=True, refusals="keep")


def _every_image(root: Path) -> CaseSet:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; check the path")
    found = [
        Path(parent, name)
        for parent, _, files in os.walk(root)
        for name in files
        if is_image_name(name)
    ]
    found.sort(key=lambda path: natural(str(path)))
    if not found:
        raise DataError(f"{root}: no image below it; check the path")
    cases = tuple(Case(str(path.relative_to(root)), str(path)) for path in found)
    return CaseSet(cases, str(root), _IMAGES)


def _tell(result: Shared) -> None:
    """Print what two sets share."""
    one = result.first is result.second
    name = result.first.source if one else f"{result.first.source} | {result.second.source}"
    kinds = result.counts()
    parts = [f"{kinds[kind]:,} {text}" for kind, text in KINDS.items() if kinds[kind]]
    if result.patients:
        where = "in several splits" if one else "in both"
        parts.append(f"{len(result.patients):,} patients {where}")
    across = " across its splits" if one and any(case.split for case in result.first) else ""
    print(f"{name}{across}: {', '.join(parts) or 'nothing shared'}")
    for group in result.leaking[:_SHOWN]:
        print(f"  group of {group.describe()}")
    if len(result.leaking) > _SHOWN:
        print(f"  and {len(result.leaking) - _SHOWN:,} groups more")
    first, second = cases_once(result.first), cases_once(result.second)
    for pair in result.pairs[:_SHOWN]:
        a, b = first[pair.first], second[pair.second]
        sides = f" ({a.split} | {b.split})" if a.split or b.split else ""
        print(f"  {KINDS[pair.kind]}, {pair.similarity:.2f}: {a.image} | {b.image}{sides}")
    if len(result.pairs) > _SHOWN:
        print(f"  and {len(result.pairs) - _SHOWN:,} more")
    if result.patients:
        more = ", ..." if len(result.patients) > _SHOWN else ""
        print(f"  patients: {', '.join(result.patients[:_SHOWN])}{more}")
    if inside := result.counts_inside().total():
        print(f"  note: {inside:,} copies on one side, which leak nothing")
    if result.cut:
        print(f"  note: {result.cut:,} images look like many others, of which the nearest counted")


def _table(results: Sequence[Shared]) -> str:
    """All pairs as CSV, those of one side too."""
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ("set", "image", "split", "patient", "label")
    writer.writerow(
        [
            "kind",
            "similarity",
            "counts",
            *(f"{n}_{c}" for n in ("first", "second") for c in columns),
        ]
    )
    for result in results:
        first, second = cases_once(result.first), cases_once(result.second)
        for pairs, counts in ((result.pairs, "yes"), (result.inside, "no, one side")):
            for pair in pairs:
                row = [pair.kind, f"{pair.similarity:.3f}", counts]
                chosen = (result.first, first[pair.first]), (result.second, second[pair.second])
                for cases, case in chosen:
                    row += [cases.source, case.image, case.split, case.patient, case.label]  # type: ignore[list-item]
                writer.writerow(row)
    return text.getvalue()


def _group_table(results: Sequence[Shared]) -> str:
    """The images of all groups as CSV, those of one side too: a row for each image."""
    text = io.StringIO()
    writer = csv.writer(text)
    numbers = ("group", "kind", "images", "pairs_that_count", "pairs_of_one_side")
    writer.writerow([*numbers, "set", "image", "split", "patient", "label"])
    groups = [(result, group) for result in results for group in result.groups]
    for number, (result, group) in enumerate(groups, 1):
        row = [number, group.group.kind, group.group.size, group.apart, group.inside]
        sides = [(result.first, group.first)]
        if not group.group.one_source:
            sides.append((result.second, group.second))
        for cases, members in sides:
            for case in members:
                columns = (cases.source, case.image, case.split, case.patient, case.label)
                writer.writerow([*row, *columns])
    return text.getvalue()


def _draw(results: Sequence[Shared], out: Path) -> None:
    """Draw the pairs that are least alike, which a person should look at; nothing if none.

    Of a group, one pair.
    """
    every: list[tuple[float, Kind, Case, Case]] = []
    for result in results:
        first, second = cases_once(result.first), cases_once(result.second)
        every += [(p.similarity, p.kind, first[p.first], second[p.second]) for p in result.pairs]
        every += [(1.0, group.group.kind, *group.example) for group in result.leaking]
    if not every:
        (out / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier look
        return
    every.sort(key=lambda pair: pair[0])
    drawn = [(a, b, f"{KINDS[kind]}, {alike:.2f}") for alike, kind, a, b in every[:_DRAWN]]
    draw_pairs(out / PICTURE_NAME, drawn)
