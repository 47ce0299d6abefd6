"""Images whose bytes or pixels are equal: as pairs, and as groups where these are many."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastht.data.overlap.fingerprints import Fingerprints

Equal = Literal["bytes", "pixels"]

PAIRED = 16
"""Equal images up to which each pair is told; more are told as a group, which grows linearly."""


@dataclass(frozen=True)
class Group:
    """More than `PAIRED` images of two sources, or of one, that are equal to one another.

    kind: what is equal. first, second: their positions in their sources, which are the same for
    one. told: the hash of each one's bytes in groups of equal pixels, since pairs of equal bytes
    are told of elsewhere; an empty one is equal to none.
    """

    kind: Equal
    first: tuple[int, ...]
    second: tuple[int, ...]
    one_source: bool
    told: tuple[tuple[bytes, ...], tuple[bytes, ...]] | None = None

    @property
    def size(self) -> int:
        """How many images."""
        return len(self.first) + (0 if self.one_source else len(self.second))

    @property
    def pairs(self) -> int:
        """How many pairs they make."""
        return self.pairs_within([None] * len(self.first))

    def pairs_within(self, sides: Sequence[Hashable]) -> int:
        """How many pairs are of one side. sides: of each of `first`, in one source."""
        if not self.one_source:
            count = len(self.first) * len(self.second)
            mine, theirs = (Counter(filter(None, told)) for told in self.told or ((), ()))
            return count - sum(n * theirs[content] for content, n in mine.items())
        count = _pairs(sides)
        if self.told is not None:
            both = zip(sides, self.told[0], strict=True)
            count -= _pairs((side, content) for side, content in both if content)
        return count


def equal_images(
    kind: Equal, first: Fingerprints, second: Fingerprints | None
) -> tuple[list[tuple[int, int]], list[Group]]:
    """Pairs of few equal images, and groups of many; pairs of equal bytes are none of pixels.

    first, second: two sources, or, without a second, one whose images are compared among
        themselves.
    """
    pairs: list[tuple[int, int]] = []
    groups: list[Group] = []
    other = first if second is None else second
    bytes_of = [_keys(source.contents) for source in (first, other)]
    for mine, theirs in _classes(kind, first, other):
        told = None
        if kind == "pixels":
            told = tuple(bytes_of[0][i] for i in mine), tuple(bytes_of[1][j] for j in theirs)
        group = Group(kind, tuple(mine), tuple(theirs), second is None, told)
        if group.size > PAIRED:
            if group.pairs:
                groups.append(group)
            continue
        for i in mine:
            own = bytes_of[0][i] if kind == "pixels" else b""
            pairs += [
                (i, j)
                for j in theirs
                if (second is not None or i < j) and not (own and own == bytes_of[1][j])
            ]
    return pairs, groups


def _classes(
    kind: Equal, first: Fingerprints, other: Fingerprints
) -> Iterator[tuple[list[int], list[int]]]:
    """Positions in both of images of one hash, which either has."""
    places: tuple[dict[bytes, list[int]], ...] = (defaultdict(list), defaultdict(list))
    for found, source in zip(places, (first, other), strict=True):
        for i, key in enumerate(_keys(source.contents if kind == "bytes" else source.pixels)):
            if key:
                found[key].append(i)
    for key, mine in places[0].items():
        if theirs := places[1].get(key):
            yield mine, theirs


def _keys(hashes: np.ndarray) -> list[bytes]:
    """Each hash; empty where it is of zeros, which says nothing."""
    none = bytes(hashes.shape[1])
    return [b"" if (key := row.tobytes()) == none else key for row in hashes]


def _pairs(labels: Iterable[Hashable]) -> int:
    """Pairs of equal labels."""
    return sum(n * (n - 1) // 2 for n in Counter(labels).values())
