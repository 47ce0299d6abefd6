"""Draws that follow from a name and a seed alone: the same in every process and order of rows."""

from __future__ import annotations

import hashlib


def draw(seed: int, path: str, turn_of: str, count: int, choices: int) -> list[int]:
    """Draw ``count`` of so many choices without replacement, by BLAKE2b keyed with the seed.

    path: of the image that is drawn for. turn_of: what tells its draws apart.
    """
    left = list(range(choices))
    drawn = []
    for turn in range(min(count, choices)):
        text = "\0".join((path, turn_of, str(turn)))
        key = seed.to_bytes(8, "big", signed=True)
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=key).digest()
        drawn.append(left.pop(int.from_bytes(digest, "big") % len(left)))
    return drawn
