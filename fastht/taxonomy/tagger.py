"""Tags from free text: the longest phrases of each dimension, negated and uncertain ones told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fastht.taxonomy.lexicon import NEAR, Meaning, Word, lexicons, words
from fastht.taxonomy.schema import Dimension, Taxonomy
from fastht.taxonomy.scopes import scopes, sentences


@dataclass(frozen=True)
class Hit:
    """A tag and where the text says it.

    Attributes:
        dimension: of the tag.
        value: of the tag.
        start: offset of the first character.
        end: offset after the last one.
        negated: the text says that it is not there.
        uncertain: the text is not sure of it.
        cues: the words that negate it or make it uncertain.
        implied_by: the value that the text names, where this one follows as its parent or as
            broader than it.
    """

    dimension: str
    value: str
    start: int
    end: int
    negated: bool = False
    uncertain: bool = False
    cues: tuple[str, ...] = ()
    implied_by: str | None = None


@dataclass(frozen=True)
class Tags:
    """The tags of a text, from hit to hit."""

    taxonomy: Taxonomy
    hits: tuple[Hit, ...]

    def present(self, dimension: str) -> tuple[str, ...]:
        """Name the values that the text affirms, uncertain ones among them, in file order."""
        return self._ordered(dimension, {hit.value for hit in self._of(dimension, False)})

    def absent(self, dimension: str) -> tuple[str, ...]:
        """Name the values that the text negates and nowhere affirms."""
        return self._ordered(
            dimension,
            {hit.value for hit in self._of(dimension, True)} - {*self.present(dimension)},
        )

    def uncertain(self, dimension: str) -> tuple[str, ...]:
        """Name the values that the text affirms but is nowhere sure of."""
        hits = self._of(dimension, False)
        sure = {hit.value for hit in hits if not hit.uncertain}
        return self._ordered(dimension, {hit.value for hit in hits} - sure)

    def contradictions(self, dimension: str) -> tuple[str, ...]:
        """Name the values that the text affirms in one place and negates in another."""
        negated = {hit.value for hit in self._of(dimension, True)}
        return self._ordered(dimension, negated & {*self.present(dimension)})

    def _of(self, dimension: str, negated: bool) -> list[Hit]:
        return [h for h in self.hits if h.dimension == dimension and h.negated == negated]

    def _ordered(self, dimension: str, values: set[str]) -> tuple[str, ...]:
        return tuple(v for v in self.taxonomy.dimensions[dimension].values if v in values)


class Tagger:
    """Finds the tags of texts by the phrases of a taxonomy; the same text has the same tags."""

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._lexicons = lexicons(taxonomy)

    def tag(self, text: str) -> Tags:
        """Return the tags of a text, by place and then by dimension."""
        cut = words(text)
        governing = scopes(cut)
        bounds = sentences(cut)
        hits: list[Hit] = []
        for name, dimension in self.taxonomy.dimensions.items():
            for start, end, meaning in self._lexicons[name].find(cut):
                if meaning.value is None or not _is_near(meaning, cut, bounds, start, end):
                    continue
                over = [scope for scope in governing if scope.governs(start, end)]
                negated = any(scope.negates for scope in over) and not dimension.location
                value = meaning.value
                if meaning.when_negated and negated:
                    negated = False
                elif meaning.when_negated:
                    if meaning.otherwise is None:
                        continue
                    value = meaning.otherwise
                hit = Hit(
                    name,
                    value,
                    cut[start].start,
                    cut[end - 1].end,
                    negated,
                    any(not scope.negates for scope in over) and not dimension.location,
                    tuple(text[cut[s.cue[0]].start : cut[s.cue[1] - 1].end] for s in over),
                )
                hits += [hit, *self._implied(dimension, hit)]
        return Tags(self.taxonomy, tuple(sorted(hits, key=lambda hit: (hit.start, hit.end))))

    def _implied(self, dimension: Dimension, hit: Hit) -> list[Hit]:
        """Return what follows of a hit: an organ's system, broader values, what it denies."""
        if hit.negated:
            return []  # no spiculated margin may still be an ill-defined one
        value = dimension.values[hit.value]
        above = [(dimension.name, name) for name in (*dimension.broader(hit.value), *value.implies)]
        if dimension.parent is not None and value.parent is not None:
            above.append((dimension.parent, value.parent))
        found = [replace(hit, dimension=d, value=v, implied_by=hit.value) for d, v in above]
        return found + [
            replace(hit, value=name, negated=True, implied_by=hit.value) for name in value.denies
        ]


def _is_near(
    meaning: Meaning,
    text: Sequence[Word],
    bounds: Sequence[tuple[int, int]],
    start: int,
    end: int,
) -> bool:
    """Whether one of the words that a phrase needs stands close by, in its sentence."""
    if not meaning.near:
        return True
    first, last = next((a, b) for a, b in bounds if a <= start < b)
    around = (*text[max(first, start - NEAR) : start], *text[end : min(last, end + NEAR)])
    return any(word.text in meaning.near for word in around)
