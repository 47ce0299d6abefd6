"""What a check of tags and captions finds, and the records that it looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from tqdm import tqdm

from fastht.data.captions import clean_caption
from fastht.data.cases import SPLITS, Case
from fastht.data.notes import examples
from fastht.taxonomy import Tagger, Tags, Taxonomy

Level = Literal["error", "warning"]
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong.

    Attributes:
        kind: its name, for programs.
        level: an error makes the exit status 1.
        text: what it is, in words.
        remedy: what to do about it, in words.
        places: where, all of them; JSON has all, text the first.
    """

    kind: str
    level: Level
    text: str
    remedy: str
    places: tuple[str, ...]

    @property
    def count(self) -> int:
        """How often it was found."""
        return len(self.places)

    def line(self) -> str:
        """Words, count, remedy, and the first places."""
        shown = examples((cut(place) for place in self.places), _SHOWN)
        return f"{self.text}: {self.count:,} ({self.remedy}): {shown}"


def finding(
    kind: str, level: Level, what: str, remedy: str, places: Sequence[str]
) -> list[Finding]:
    """The finding, in a list; an empty one where there is no place."""
    return [Finding(kind, level, what, remedy, tuple(places))] if places else []


def cut(text: str, longest: int = 120) -> str:
    """A text of at most so many characters, cut at its end."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@dataclass(frozen=True)
class Tagged:
    """An image with its caption and its tags.

    Attributes:
        case: as it was read.
        caption: cleaned.
        given: the values of each dimension that the data gives and the taxonomy has, each once.
        unknown: values that the taxonomy has not, with their dimensions.
        found: the tags of the caption.
    """

    case: Case
    caption: str
    given: dict[str, tuple[str, ...]]
    unknown: tuple[tuple[str, str], ...]
    found: Tags

    @property
    def side(self) -> str:
        """The split, or "all" where there is none."""
        return self.case.split or "all"

    @property
    def patient(self) -> str:
        """The patient, or the image where none is known."""
        return self.case.patient or f"image {self.case.image}"


@dataclass(frozen=True)
class Records:
    """The records of a data set, in its order."""

    taxonomy: Taxonomy
    records: tuple[Tagged, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Tagged]:
        return iter(self.records)

    @cached_property
    def sides(self) -> tuple[str, ...]:
        """The splits that there are, in their order."""
        there = {record.side for record in self}
        return tuple(side for side in (*SPLITS, "all") if side in there)

    @cached_property
    def _present(self) -> dict[int, dict[str, tuple[str, ...]]]:
        return {}

    @cached_property
    def has_tags(self) -> bool:
        """Whether the data gives any tag."""
        return any(record.given or record.unknown for record in self)

    def tags(self, record: Tagged) -> dict[str, tuple[str, ...]]:
        """The tags of a record by dimension: those given, or the caption's where none are."""
        if self.has_tags:
            return record.given
        key = id(record.found)  # shared by images of one caption
        if key not in self._present:
            found = {name: record.found.present(name) for name in self.taxonomy.dimensions}
            self._present[key] = {name: values for name, values in found.items() if values}
        return self._present[key]


@dataclass
class Report:
    """All that a check has to say.

    Attributes:
        data: what was checked.
        taxonomy: its label and digest.
        summary: paragraphs on the data.
        findings: what is wrong.
        tables: numbers by name, as JSON has them.
    """

    data: str
    taxonomy: tuple[str, str]
    summary: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)

    def of(self, level: Level) -> list[Finding]:
        """The findings of a level."""
        return [found for found in self.findings if found.level == level]


def read_tags(taxonomy: Taxonomy, cases: Sequence[Case]) -> Records:
    """Sort the given tags and find those of the captions; shows its progress."""
    tagger = Tagger(taxonomy)
    fields = {dimension.field: name for name, dimension in taxonomy.dimensions.items()}
    known: dict[str, Tags] = {}  # several images share a caption
    records = []
    for case in tqdm(cases, desc="tagging captions", unit="caption", leave=False):
        caption = clean_caption(case.caption)
        if caption not in known:
            known[caption] = tagger.tag(caption)
        given: dict[str, tuple[str, ...]] = {}
        unknown = []
        for column, values in case.tags:
            name = fields[column]
            there = taxonomy.dimensions[name].values
            unknown += [(name, value) for value in dict.fromkeys(values) if value not in there]
            if right := tuple(v for v in dict.fromkeys(values) if v in there):
                given[name] = right
        records.append(Tagged(case, caption, given, tuple(unknown), known[caption]))
    return Records(taxonomy, tuple(records))
