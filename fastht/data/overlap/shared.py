"""What sources of images share: the same bytes, pixels or look, the same patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
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
    """What two sources share.

    cut: images with more candidates than were looked at. candidates: positions of all pairs whose
    pixels were compared, [n, 2].
    """

    pairs: tuple[Pair, ...]
    cut: int
    candidates: np.ndarray


def find_pairs(
    first: Fingerprints,
    second: Fingerprints | None = None,
    *,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """The images that two sources share, or, without a second, those that are twice in one.

    A pair is told of once, by the strictest reason.

    read: gives the squares of the second, where it has kept none: [n, SIDE, SIDE] of which those at
        the positions that it is given are needed.
    """
    other = first if second is None else second
    found: dict[tuple[int, int], Pair] = {}
    kinds: tuple[tuple[Kind, np.ndarray, np.ndarray], ...] = (
        ("bytes", first.contents, other.contents),
        ("pixels", first.pixels, other.pixels),
    )
    for kind, hashes, their_hashes in kinds:
        for i, j in _equal(hashes, their_hashes):
            if second is not None or i < j:
                found.setdefault((i, j), Pair(i, j, kind, 1.0))
    ahead = nearest(first.hashes[:, 0], other.hashes, same=second is None)
    turns = [(ahead.whole, ahead.part, ahead.window, False)]
    cut = ahead.cut
    if second is not None:  # within one source every pair comes up in both orders anyway
        back = nearest(second.hashes[:, 0], first.hashes, same=False)
        turns.append((back.part, back.whole, back.window, True))
        cut += back.cut
    told = [~(first.plain[turn[0]] | other.plain[turn[1]]) for turn in turns]
    turns = [(i[t], j[t], w[t], s) for (i, j, w, s), t in zip(turns, told, strict=True)]
    candidates = np.concatenate([np.stack(turn[:2], axis=1) for turn in turns])
    mine = first.squares
    theirs = other.squares if read is None else read(np.unique(candidates[:, 1]))
    assert mine is not None
    assert theirs is not None
    for own, others, window, swapped in turns:
        # The whole of one is a window of the other.
        if swapped:
            alike = similarities(theirs, mine, others, own, window)
        else:
            alike = similarities(mine, theirs, own, others, window)
        for a, b, similarity in zip(own.tolist(), others.tolist(), alike.tolist(), strict=True):
            if similarity < SAME:
                continue
            key = (a, b) if second is not None else (min(a, b), max(a, b))
            before = found.get(key)
            if before is None or (before.kind == "near" and before.similarity < similarity):
                found[key] = Pair(*key, "near", similarity)
    return Pairs(tuple(found[key] for key in sorted(found)), cut, candidates)


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
