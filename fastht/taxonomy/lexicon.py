"""Phrases in texts: words, the forms they are written in, and the longest match."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from fastht.taxonomy.schema import SLOT, Dimension, Phrase, Taxonomy

# A number is one word, and so is one with an apostrophe (Baker's); marks are words of their own,
# apart from hyphens and slashes, which part words only ("ill-defined" is "ill defined").
_WORDS = re.compile(r"\d+(?:[.,]\d+)+|[^\W_]+(?:['\u2019][^\W_]+)?|[^\s\w\-/\u2010-\u2013]")
NEAR = 5  # words before or after a phrase within which its `near` words count


@dataclass(frozen=True)
class Word:
    """A word of a text, in lower case, and where it stands (offsets of characters)."""

    text: str
    start: int
    end: int


def words(text: str) -> list[Word]:
    """Cut a text into words and marks."""
    return [
        Word(match[0].lower().replace("\u2019", "'"), *match.span())
        for match in _WORDS.finditer(text)
    ]


class Lexicon:
    """Phrases by their words, each with what it stands for; finds the longest at every place."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    def add(self, phrase: Sequence[str], meaning: object) -> None:
        """Enter a phrase; what was entered first stays."""
        node = self._root
        for word in phrase:
            node = node.setdefault(word, {})
        node.setdefault("", meaning)  # no word is empty

    def find(self, text: Sequence[Word]) -> Iterator[tuple[int, int, Any]]:
        """Yield first word, end and meaning of the phrases, from the left, the longest of each."""
        position = 0
        while position < len(text):
            node, end, meaning = self._root, 0, None
            for index in range(position, len(text)):
                if (following := node.get(text[index].text)) is None:
                    break
                node = following
                if "" in node:
                    end, meaning = index + 1, node[""]
            if end:
                yield position, end, meaning
            position = end or position + 1


@dataclass(frozen=True)
class Meaning:
    """What a phrase of a dimension stands for.

    Attributes:
        value: name of the value; None for a phrase that is to be ignored.
        near: words of which one has to stand close by.
        when_negated: the phrase means the value only where it is negated.
        otherwise: of such a phrase, the value that it means where it is not.
    """

    value: str | None
    near: frozenset[str] = field(default_factory=frozenset)
    when_negated: bool = False
    otherwise: str | None = None


def lexicons(taxonomy: Taxonomy) -> dict[str, Lexicon]:
    """Return the lexicon of each dimension by its name."""
    forms = _Forms(taxonomy)
    result = {}
    for name, dimension in taxonomy.dimensions.items():
        result[name] = lexicon = Lexicon()
        found: dict[tuple[str, ...], Meaning] = {}
        for phrase in dimension.ignore:
            for form in forms.of(phrase):
                found[form] = Meaning(None)
        for text, meaning in _meanings(dimension):
            for form in forms.of(text):
                found[form] = _both(found.get(form), meaning)
        for form, meaning in found.items():
            lexicon.add(form, meaning)
    return result


def _both(first: Meaning | None, second: Meaning) -> Meaning:
    """What a phrase means that has two meanings: the first, but for what negation tells apart."""
    if first is None:
        return second
    if first.value is None or first.when_negated == second.when_negated or first.otherwise:
        return first
    negated, affirmed = (first, second) if first.when_negated else (second, first)
    return replace(negated, otherwise=affirmed.value)


def _meanings(dimension: Dimension) -> Iterator[tuple[str, Meaning]]:
    """Yield the phrases of a dimension, names before synonyms, so that a name is never lost.

    A name that stands among its synonyms too means its value under the condition given there.
    Phrases of a value go before those of its broader one.
    """
    for name, value in dimension.values.items():
        if name not in {phrase.text for phrase in value.synonyms}:
            yield name, Meaning(name)
    for value in sorted(dimension.values.values(), key=lambda value: value.broader is None):
        name = value.name
        for phrase in value.synonyms:
            yield phrase.text, Meaning(name, frozenset(phrase.near))
        for phrase in value.when_negated:
            yield phrase.text, Meaning(name, frozenset(phrase.near), when_negated=True)


class _Forms:
    """The forms in which a phrase is written: spelling, plural, hyphens, slots filled."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self._taxonomy = taxonomy
        self._slots: dict[str, set[tuple[str, ...]]] = {}

    def of(self, phrase: str) -> set[tuple[str, ...]]:
        """Return the forms of a phrase, each as its words."""
        parts = SLOT.split(phrase)  # text, slot, text, …
        choices: list[Iterable[tuple[str, ...]]] = [
            self._slot(part) if index % 2 else self._plain(part, last=index == len(parts) - 1)
            for index, part in enumerate(parts)
        ]
        return {sum(chosen, ()) for chosen in product(*choices)}

    def _plain(self, text: str, last: bool) -> set[tuple[str, ...]]:
        if not text.strip():
            return {()}
        result = set()
        for spelt in spellings(text.lower(), self._taxonomy.spelling):
            for joined in {spelt, re.sub(r"(?<=\w)-(?=\w)", "", spelt)}:
                form = tuple(word.text for word in words(joined))
                result |= {(*form[:-1], end) for end in numbers(form[-1])} if last else {form}
        return result

    def _slot(self, name: str) -> set[tuple[str, ...]]:
        if name not in self._slots:
            dimension = self._taxonomy.dimensions[name]
            phrases: list[str | Phrase] = [*dimension.values]
            for value in dimension.values.values():
                phrases += [phrase.text for phrase in value.synonyms if "{" not in phrase.text]
            self._slots[name] = {
                form for phrase in phrases for form in self._plain(str(phrase), last=True)
            }
        return self._slots[name]


def spellings(text: str, pairs: Mapping[str, str]) -> set[str]:
    """Return a text in British and American spelling, whichever it is given in.

    pairs: British fragments of words and their American forms.
    """
    result = {text}
    for british, american in pairs.items():
        result |= {spelt.replace(british, american) for spelt in result}
        result |= {
            spelt.replace(american, british)
            for spelt in result
            if american in spelt and british not in spelt
        }
    return result


def numbers(word: str) -> set[str]:
    """Return a word with its plural and its singular, by the regular rules of English."""
    if not word.isalpha() or len(word) < 3:
        return {word}
    result = {word}
    if word.endswith(("s", "x", "ch", "sh")):
        result.add(f"{word}es")
    elif word.endswith("y") and word[-2] not in "aeiou":
        result.add(f"{word[:-1]}ies")
    else:
        result.add(f"{word}s")
    if word.endswith("ies"):
        result.add(f"{word[:-3]}y")
    elif word.endswith(("sses", "xes", "ches", "shes")):
        result.add(word[:-2])
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        result.add(word[:-1])
    return result
