"""``fastht data overlap``: what data sets share, and what one shares across its splits."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
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
from fastht.data.overlap.fingerprints import Fingerprints, fingerprint
from fastht.data.overlap.picture import draw_pairs
from fastht.data.overlap.shared import KINDS, Pair, find_pairs, same_patients
from fastht.data.shards import load_shards
from fastht.files import make_directory, write_atomically

PAIRS_NAME, PICTURE_NAME = "pairs.csv", "pairs.png"
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
        out: folder of pairs.csv, which has all pairs, and of a picture of those most in doubt.
    """

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Path = Path("runs/overlap")


@dataclass(frozen=True)
class Shared:
    """Pairs of two sets, or of one. inside: of one side, where copies leak nothing."""

    first: CaseSet
    second: CaseSet
    pairs: tuple[Pair, ...]
    inside: tuple[Pair, ...] = ()
    patients: tuple[str, ...] = ()
    cut: int = 0


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
        both = find_pairs(p, q)
        results.append(Shared(a, b, both.pairs, (), same_patients(a, b), both.cut))
    make_directory(arguments.out)
    write_atomically(arguments.out / PAIRS_NAME, _table(results).encode())
    _draw(results, dict(zip((s.source for s in sets), prints, strict=True)), arguments.out)
    print()
    for result in results:
        _tell(result)
    count = sum(len(result.pairs) + len(result.patients) for result in results)
    print(
        f"\n{f'{count:,}' if count else 'nothing'} shared; all pairs: {arguments.out / PAIRS_NAME}"
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


def within(cases: CaseSet, prints: Fingerprints) -> Shared:
    """What one set shares with itself, apart from what is on one side anyway."""
    of_image = _cases_by_image(cases)
    found = find_pairs(prints)
    apart: list[Pair] = []
    inside: list[Pair] = []
    for pair in found.pairs:
        a, b = (of_image[prints.images[i]] for i in (pair.first, pair.second))
        same_patient = a.patient is not None and a.patient == b.patient
        # Without splits, a command makes some, and parts what is not of one patient.
        one_side = a.split == b.split and (a.split is not None or same_patient)
        (inside if one_side else apart).append(pair)
    patients = same_patients(cases)
    return Shared(cases, cases, tuple(apart), tuple(inside), patients, found.cut)


def _cases_by_image(cases: CaseSet) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for case in cases:
        found.setdefault(case.image, case)
    return found


def _images(cases: CaseSet) -> list[Case]:
    """The cases in the order of their fingerprints: an image that has several counts once."""
    return list(_cases_by_image(cases).values())


def _tell(result: Shared) -> None:
    """Print what two sets share."""
    one = result.first is result.second
    name = result.first.source if one else f"{result.first.source} | {result.second.source}"
    kinds = Counter(pair.kind for pair in result.pairs)
    parts = [f"{kinds[kind]:,} {text}" for kind, text in KINDS.items() if kinds[kind]]
    if result.patients:
        where = "in several splits" if one else "in both"
        parts.append(f"{len(result.patients):,} patients {where}")
    across = " across its splits" if one and any(case.split for case in result.first) else ""
    print(f"{name}{across}: {', '.join(parts) or 'nothing shared'}")
    first, second = _images(result.first), _images(result.second)
    for pair in result.pairs[:_SHOWN]:
        a, b = first[pair.first], second[pair.second]
        sides = f" ({a.split} | {b.split})" if a.split or b.split else ""
        print(f"  {KINDS[pair.kind]}, {pair.similarity:.2f}: {a.image} | {b.image}{sides}")
    if len(result.pairs) > _SHOWN:
        print(f"  and {len(result.pairs) - _SHOWN:,} more")
    if result.patients:
        more = ", ..." if len(result.patients) > _SHOWN else ""
        print(f"  patients: {', '.join(result.patients[:_SHOWN])}{more}")
    if result.inside:
        print(f"  note: {len(result.inside):,} copies on one side, which leak nothing")
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
        first, second = _images(result.first), _images(result.second)
        for pairs, counts in ((result.pairs, "yes"), (result.inside, "no, one side")):
            for pair in pairs:
                row = [pair.kind, f"{pair.similarity:.3f}", counts]
                chosen = (result.first, first[pair.first]), (result.second, second[pair.second])
                for cases, case in chosen:
                    row += [cases.source, case.image, case.split, case.patient, case.label]  # type: ignore[list-item]
                writer.writerow(row)
    return text.getvalue()


def _draw(results: Sequence[Shared], prints: dict[str, Fingerprints], out: Path) -> None:
    """Draw the pairs that are least alike, which a person should look at; nothing if none."""
    every = [(pair, result) for result in results for pair in result.pairs]
    if not every:
        (out / PICTURE_NAME).unlink(missing_ok=True)  # of an earlier look
        return
    every.sort(key=lambda found: found[0].similarity)
    drawn = []
    for pair, result in every[:_DRAWN]:
        a = _images(result.first)[pair.first]
        b = _images(result.second)[pair.second]
        drawn.append((a, b, f"{KINDS[pair.kind]}, {pair.similarity:.2f}"))
    draw_pairs(out / PICTURE_NAME, drawn)
