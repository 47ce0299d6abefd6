"""What sources of images share: the same bytes, pixels or look, the same patients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastht.data.cases import CaseSet
from fastht.data.overlap.aligned import SAME, similarities
from fastht.data.overlap.equal import Equal, Group, equal_images
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
    pixels were compared, [n, 2]. groups: of so many equal images that not each pair is in `pairs`.
    """

    pairs: tuple[Pair, ...]
    cut: int
    candidates: np.ndarray
    groups: tuple[Group, ...] = ()


def find_pairs(
    first: Fingerprints,
    second: Fingerprints | None = None,
    *,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Pairs:
    """The images that two sources share, or, without a second, those that are twice in one.

    A pair is told of once, by the strictest reason. Many equal images are told of as a group.

    read: gives the squares of the second, where it has kept none: [n, SIDE, SIDE] of which those at
        the positions that it is given are needed.
    """
    other = first if second is None else second
    found: dict[tuple[int, int], Pair] = {}
    groups: list[Group] = []
    kinds: tuple[Equal, ...] = ("bytes", "pixels")
    for kind in kinds:
        pairs, many = equal_images(kind, first, second)
        found |= {pair: Pair(*pair, kind, 1.0) for pair in pairs}
        groups += many
    # Plain images tell nothing by their looks, and would be the nearest ones of each other.
    told, their_told = (np.flatnonzero(~source.plain) for source in (first, other))
    ahead = nearest(first.hashes[told, 0], other.hashes[their_told], same=second is None)
    turns = [(told[ahead.whole], their_told[ahead.part], ahead.window, False)]
    cut = ahead.cut
    if second is not None:  # within one source every pair comes up in both orders anyway
        back = nearest(second.hashes[their_told, 0], first.hashes[told], same=False)
        turns.append((told[back.part], their_told[back.whole], back.window, True))
        cut += back.cut
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
            if similarity < SAME or (first.pixels[a] == other.pixels[b]).all():
                continue  # equal ones are told of already
            key = (a, b) if second is not None else (min(a, b), max(a, b))
            before = found.get(key)
            if before is None or (before.kind == "near" and before.similarity < similarity):
                found[key] = Pair(*key, "near", similarity)
    return Pairs(tuple(found[key] for key in sorted(found)), cut, candidates, tuple(groups))


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
