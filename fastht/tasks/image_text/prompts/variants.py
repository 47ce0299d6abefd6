"""The same classes by other prompts: each alone, each left out, another organ's word."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal

from fastht.tasks.image_text.prompts import Prompts, PromptSet

Kind = Literal["ensemble", "alone", "left out", "unseen", "organ swapped"]
ORGANS = ("breast", "thyroid", "liver", "lung")


@dataclass(frozen=True)
class Variant:
    """Prompts of all classes.

    Attributes:
        kind: how they came about.
        name: what tells the variant from others of its kind: a number from 1, or an organ.
        prompts: by label.
        seen: labels of which a prompt is worded as a caption that trained.
    """

    kind: Kind
    name: str
    prompts: Prompts
    seen: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The kind and the name."""
        return f"{self.kind} {self.name}".strip()


def prompt_variants(prompts: PromptSet, trained: Container[str] = ()) -> Iterator[Variant]:
    """Yield the ensemble of all prompts first, and then what becomes of it.

    The i-th prompts of all classes are taken, or left out, together. A class that has fewer keeps
    all of its own meanwhile. With one prompt a class there is but the ensemble, and other organs.

    Args:
        prompts: of all classes.
        trained: wordings that trained; ``unseen`` is the ensemble without these, where every class
            has another one.
    """

    def make(kind: Kind, name: str, changed: Prompts) -> Variant:
        seen = tuple(label for label, own in changed.items() if any(p in trained for p in own))
        return Variant(kind, name, changed, seen)

    yield (whole := make("ensemble", "", dict(prompts)))
    count = max(map(len, prompts.values()))
    for i in range(count if count > 1 else 0):
        alone = {label: own[i : i + 1] or own for label, own in prompts.items()}
        yield make("alone", str(i + 1), alone)
    for i in range(count if count > 2 else 0):
        without = {label: own[:i] + own[i + 1 :] or own for label, own in prompts.items()}
        yield make("left out", str(i + 1), without)
    if whole.seen:
        unseen = {
            label: tuple(p for p in own if p not in trained) for label, own in whole.prompts.items()
        }
        if all(unseen.values()):
            yield make("unseen", "", unseen)
    for organ in ORGANS if prompts.organ else ():
        swapped = {
            label: tuple(swap_word(prompt, str(prompts.organ), organ) for prompt in own)
            for label, own in prompts.items()
        }
        if organ.casefold() != str(prompts.organ).casefold() and swapped != dict(prompts):
            yield make("organ swapped", organ, swapped)


def swap_word(text: str, word: str, other: str) -> str:
    """Put another word where a text has a word as a whole, with a capital where that has one."""

    def put(found: re.Match[str]) -> str:
        return other.capitalize() if found[0][0].isupper() else other

    return re.sub(rf"\b{re.escape(word)}\b", put, text, flags=re.IGNORECASE)


def naming(prompts: PromptSet) -> tuple[int, int]:
    """Return how many prompts name the organ by its word, and how many there are."""
    every = [prompt for own in prompts.values() for prompt in own]
    if prompts.organ is None:
        return 0, len(every)
    return sum(swap_word(prompt, prompts.organ, "") != prompt for prompt in every), len(every)
