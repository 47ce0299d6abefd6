"""What a user should know of a data set, with its count: no reason to stop, and never unsaid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_EXAMPLES = 5
_LONGEST, _KEPT = 300, 100  # characters of a name, and of either end of a longer one


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that is worth knowing of a data set.

    kind: what results count it as, e.g. "columns_not_read".
    count: of what the text speaks of.
    text: what it is, where, and the remedy; empty where another note says it already.
    """

    kind: str
    count: int
    text: str


def examples(names: Iterable[str], count: int = _EXAMPLES) -> str:
    """The first few of some names."""
    listed = list(names)
    return ", ".join(map(shorten, listed[:count])) + (", ..." if len(listed) > count else "")


def shorten(name: str) -> str:
    """A name, without its middle if that would fill the screen."""
    return name if len(name) <= _LONGEST else f"{name[:_KEPT]} ... {name[-_KEPT:]}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 image, 2 images."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def count_notes(notes: Iterable[Note]) -> dict[str, int]:
    """The counts by kind, as results keep them."""
    counts: dict[str, int] = {}
    for note in notes:
        counts[note.kind] = counts.get(note.kind, 0) + note.count
    return counts


def account(paragraph: str, notes: Sequence[Note]) -> str:
    """A paragraph and, a line each, the notes: what a run says of its data first."""
    return "\n".join([paragraph, *(f"note: {note.text}" for note in notes if note.text)])
