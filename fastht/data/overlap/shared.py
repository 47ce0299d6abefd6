"""What sources of images share: the same bytes, pixels or look, the same patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastht.data.cases import CaseSet
from fastht.data.overlap.aligned import SAME, similarities
from fastht.data.overlap.fingerprints import Fingerprints
from fastht.data.overlap.nearest import nearest

Kind = Literal["bytes", "pixels", "near"]
KINDS: dict[Kind, str] = {
    "bytes": "same bytes",
    "pixels": "same pixels",
    "near": "near duplicates",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are taken for the same, by their positions in their sources.

    kind: why, the strictest reason. similarity: 1 for the same pixels.
    """

    first: int
    second: int
    kind: Kind
    similarity: float


@dataclass(frozen=True)
class Pairs:
    """What two sources share. cut: images with more candidates than were looked at."""

    pairs: tuple[Pair, ...]
    cut: int = 0


def find_pairs(first: Fingerprints, second: Fingerprints | None = None) -> Pairs:
    """The images that two sources share, or, without a second, those that are twice in one.

    Both need their squares. A pair is told of once, by the strictest reason.
    """
    other = first if second is None else second
    found: dict[tuple[int, int], Pair] = {}
    kinds: tuple[tuple[Kind, np.ndarray, np.ndarray], ...] = (
        ("bytes", first.contents, other.contents),
        ("pixels", first.pixels, other.pixels),
    )
    for kind, a, b in kinds:
        for i, j in _equal(a, b):
            if second is not None or i < j:
                found.setdefault((i, j), Pair(i, j, kind, 1.0))
    assert first.squares is not None
    assert other.squares is not None
    cut = 0
    # The whole of one is a window of the other; within one source every pair comes up twice.
    turns = (
        ((first, other, False),)
        if second is None
        else ((first, other, False), (other, first, True))
    )
    for whole, part, swapped in turns:
        candidates = nearest(whole.hashes[:, 0], part.hashes, same=second is None)
        cut += candidates.cut
        told = ~(whole.plain[candidates.whole] | part.plain[candidates.part])
        i, j = candidates.whole[told], candidates.part[told]
        assert whole.squares is not None
        assert part.squares is not None
        alike = similarities(whole.squares, part.squares, i, j, candidates.window[told])
        for a, b, similarity in zip(i.tolist(), j.tolist(), alike.tolist(), strict=True):
            if similarity < SAME:
                continue
            key = (b, a) if swapped or (second is None and b < a) else (a, b)
            before = found.get(key)
            if before is None or (before.kind == "near" and before.similarity < similarity):
                found[key] = Pair(*key, "near", similarity)
    return Pairs(tuple(found[key] for key in sorted(found)), cut)


def _equal(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[int, int]]:
    """Positions of equal hashes; those of zeros are none."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for j, row in enumerate(b):
        places[row.tobytes()].append(j)
    places.pop(bytes(b.shape[1]), None)
    for i, row in enumerate(a):
        for j in places.get(row.tobytes(), ()):
            yield i, j


def same_patients(first: CaseSet, second: CaseSet | None = None) -> tuple[str, ...]:
    """Patients of both sets, or, without a second, those who are in several splits of one.

    Sets of two published layouts number their patients each by itself: of these, none are the same.
    """
    if second is None:
        sides: dict[str, set[str]] = defaultdict(set)
        for case in first:
            if case.patient is not None and case.split is not None:
                sides[case.patient].add(case.split)
        return tuple(sorted(patient for patient, found in sides.items() if len(found) > 1))
    if first.layout != second.layout:
        return ()
    both = {case.patient for case in first} & {case.patient for case in second}
    return tuple(sorted(patient for patient in both if patient is not None))
