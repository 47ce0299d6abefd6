"""Where a patient or an image falls in a split: a number that only its name and a seed decide."""

from __future__ import annotations

import hashlib

Group = tuple[bool, str]
"""What no split cuts up: whether it is a patient, and the name of the patient or the image."""


def place(name: str, seed: int) -> float:
    """A number from 0 to 1 that looks random and is the same everywhere, whoever else there is."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def place_of(group: Group, seed: int) -> float:
    """The place of a patient or an image."""
    return place(f"{group[0]:d}:{group[1]}", seed)
