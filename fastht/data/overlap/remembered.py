"""What a run remembers of the images it trained on, and which of others are among them."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastht.data.cases import Case
from fastht.data.images import DataError
from fastht.data.overlap.fingerprints import (
    SIDE,
    Fingerprints,
    fingerprint,
    item_name,
    read_item,
    square_of,
)
from fastht.data.overlap.shared import KINDS, Kind, find_pairs
from fastht.data.records import Record

REMEMBERED_NAME = "trained_on.npz"
_EXAMPLES = 3


@dataclass(frozen=True)
class Known:
    """Images that a run trained on, whatever their files are called now.

    kinds: of each, by its name, how it is known: the strictest way. perhaps: images whose hash is
    near that of a training image which is no longer where it was, so that pixels cannot tell.
    """

    kinds: dict[str, Kind]
    perhaps: tuple[str, ...] = ()

    def describe(self) -> str:
        """Counts by kind and the first few names."""
        counts = Counter(self.kinds.values())
        parts = [f"{counts[kind]:,} {text}" for kind, text in KINDS.items() if counts[kind]]
        names = list(self.kinds)
        more = ", ..." if len(names) > _EXAMPLES else ""
        return f"{', '.join(parts)}: {', '.join(names[:_EXAMPLES])}{more}"

    def plain(self) -> dict[str, Any]:
        """The counts as plain JSON types."""
        counts = Counter(self.kinds.values())
        return {kind: counts[kind] for kind in KINDS} | {"perhaps": len(self.perhaps)}


def remember(
    run: Path, items: Sequence[Case | Record], among: Sequence[Case | Record] | None = None
) -> None:
    """Leave in a run's folder the hashes of the images that it trains on, but no picture.

    among: a larger side that the items are a share of: runs on shares of it read it once.
    """
    every = _fingerprints(tuple(items if among is None else among))
    places = {name: i for i, name in enumerate(every.images)}
    chosen = np.array([places[name] for name in dict.fromkeys(map(item_name, items))], np.int64)
    Fingerprints(
        tuple(os.path.abspath(every.images[i]) for i in chosen),
        every.contents[chosen],
        every.pixels[chosen],
        every.hashes[chosen],
        every.plain[chosen],
    ).save(run / REMEMBERED_NAME)


@functools.lru_cache(maxsize=1)
def _fingerprints(items: tuple[Case | Record, ...]) -> Fingerprints:
    return fingerprint(items, squares=False, title="remembering what trained")


def find_known(run: Path, items: Sequence[Case | Record]) -> Known | None:
    """Which images a run trained on; None if it remembers nothing, as of older versions.

    Raises DataError if what it remembers cannot be read.
    """
    if not (run / REMEMBERED_NAME).exists():
        return None
    trained = Fingerprints.load(run / REMEMBERED_NAME)
    scored = _scored(tuple(items))
    gone: set[int] = set()

    def read(places: np.ndarray) -> np.ndarray:
        """Read training images where they were, since runs keep no pictures."""
        squares = np.zeros((len(trained), SIDE, SIDE), np.uint8)
        for place in places.tolist():
            name = trained.images[place]
            try:
                squares[place] = square_of(read_item(Case(name, name))[1])
            except DataError:
                gone.add(place)
        return squares

    found = find_pairs(scored, trained, read=read)
    kinds: dict[str, Kind] = {}
    strictest = list(KINDS)
    ways: list[tuple[Kind, tuple[int, ...]]] = [(p.kind, (p.first,)) for p in found.pairs]
    ways += [(group.kind, group.first) for group in found.groups]
    for kind, places in sorted(ways, key=lambda way: strictest.index(way[0])):
        for place in places:
            kinds.setdefault(scored.images[place], kind)
    lost = {scored.images[i] for i, j in found.candidates.tolist() if j in gone} - kinds.keys()
    return Known(kinds, tuple(sorted(lost)))


@functools.lru_cache(maxsize=1)
def _scored(items: tuple[Case | Record, ...]) -> Fingerprints:
    return fingerprint(items, title="comparing with what trained")
