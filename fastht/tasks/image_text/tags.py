"""Tags of records: given in columns of a table, or found in captions; as numbers of a taxonomy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fastht.data import DataError, Record
from fastht.data.notes import plural
from fastht.taxonomy import Tagger, Taxonomy
from fastht.taxonomy.similarity import tag_numbers

TagSource = Literal["columns", "captions"]
JOIN = ";"
_SHOWN = 5  # unknown values that are named


@dataclass(frozen=True)
class RecordTags:
    """The tags of n records.

    Attributes:
        taxonomy: of the tags.
        values: those of each record by dimension, in the order of the taxonomy; dimensions that a
            record lacks are left out.
        unknown: values that the taxonomy has not, with how often they occur; they are left out.
    """

    taxonomy: Taxonomy
    values: tuple[Mapping[str, tuple[str, ...]], ...]
    unknown: Mapping[str, int]

    @property
    def numbers(self) -> Tensor:
        """The tags' numbers, ``[n, L]`` int64, ascending, filled up with -1."""
        return torch.from_numpy(tag_numbers(self.taxonomy, self.values))

    @property
    def without(self) -> int:
        """How many records have no tag at all."""
        return sum(not tags for tags in self.values)

    def coverage(self) -> dict[str, int]:
        """Return how many records have a tag of each dimension."""
        return {d: sum(d in tags for tags in self.values) for d in self.taxonomy.dimensions}

    def digest(self) -> str:
        """Return what tells other tags apart, 16 hex digits."""
        content = repr([sorted(tags.items()) for tags in self.values])
        return hashlib.sha256(f"{self.taxonomy.digest} {content}".encode()).hexdigest()[:16]

    def describe(self) -> str:
        """Say how many records have which tags, and what is left out."""
        n, mean = len(self.values), sum(map(len, self.values)) / len(self.values)
        dimensions = ", ".join(f"{name} {count}" for name, count in self.coverage().items())
        lines = [
            f"Tags of {self.taxonomy.label}: {n - self.without} of {n} training samples have some, "
            f"of {mean:.2f} of {len(self.taxonomy.dimensions)} dimensions on average "
            f"({dimensions}); {self.without} have none."
        ]
        if self.unknown:
            common = sorted(self.unknown, key=lambda value: -self.unknown[value])[:_SHOWN]
            shown = ", ".join(f"{value!r} ({self.unknown[value]})" for value in common)
            count = sum(self.unknown.values())
            lines.append(
                f"{plural(count, 'tag')} left out, of {plural(len(self.unknown), 'value')} that "
                f"the taxonomy has not: {shown}"
            )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Return the same for a ``results.json``, as plain JSON types."""
        return {
            "taxonomy": self.taxonomy.label,
            "taxonomy_sha256": self.taxonomy.digest,
            "samples": len(self.values),
            "without_tags": self.without,
            "tagged": self.coverage(),
            "unknown_tags": dict(self.unknown),
        }


def fields_of(taxonomy: Taxonomy) -> tuple[str, ...]:
    """Return the columns that hold a taxonomy's tags."""
    return tuple(dimension.field for dimension in taxonomy.dimensions.values())


def given_tags(records: Sequence[Record], taxonomy: Taxonomy) -> RecordTags:
    """Read tags from the columns of a table, several in a cell joined by ";".

    Raises:
        DataError: the records have none of the columns.
    """
    fields = fields_of(taxonomy)
    if not any(field in record.attributes for record in records for field in fields):
        raise DataError(
            f"tags are needed, and the data has none of the columns {', '.join(fields)} of "
            f"{taxonomy.label}: write them by `fastht taxonomy tag TABLE --out TAGGED` and give "
            "that table, or take them from the captions by --tags captions"
        )
    unknown: Counter[str] = Counter()
    rows = []
    for record in records:
        row = {}
        for name, dimension in taxonomy.dimensions.items():
            cells = record.attributes.get(dimension.field, "").split(JOIN)
            given = {cell.strip() for cell in cells} - {""}
            unknown.update(given - dimension.values.keys())
            if held := tuple(value for value in dimension.values if value in given):
                row[name] = held
        rows.append(row)
    return RecordTags(taxonomy, tuple(rows), dict(unknown))


_TAGGERS: dict[str, Tagger] = {}  # by digest of the taxonomy: to make one takes a tenth of a second


def found_tags(texts: Sequence[str], taxonomy: Taxonomy) -> RecordTags:
    """Find tags in texts, each different one once."""
    if (tagger := _TAGGERS.get(taxonomy.digest)) is None:
        tagger = _TAGGERS[taxonomy.digest] = Tagger(taxonomy)
    known: dict[str, dict[str, tuple[str, ...]]] = {}
    for text in dict.fromkeys(texts):
        tags = tagger.tag(text)
        known[text] = {d: held for d in taxonomy.dimensions if (held := tags.present(d))}
    return RecordTags(taxonomy, tuple(known[text] for text in texts), {})


def tags_of_images(
    records: Sequence[Record], tags: RecordTags
) -> tuple[tuple[Record, ...], RecordTags]:
    """Return a record of each image, the first, with the tags of all records of that image."""
    places: dict[tuple[str, int | None], list[int]] = {}
    for i, record in enumerate(records):
        places.setdefault((record.image, record.frame), []).append(i)
    values = []
    for rows in places.values():
        merged = {}
        for name, dimension in tags.taxonomy.dimensions.items():
            held = {value for i in rows for value in tags.values[i].get(name, ())}
            if held:
                merged[name] = tuple(value for value in dimension.values if value in held)
        values.append(merged)
    first = tuple(records[rows[0]] for rows in places.values())
    return first, replace(tags, values=tuple(values))


def tags_of(records: Sequence[Record], taxonomy: Taxonomy, source: TagSource) -> RecordTags:
    """Return the tags of records from where they are to come.

    Raises:
        DataError: they are to come from columns, and there are none.
    """
    if source == "columns":
        return given_tags(records, taxonomy)
    return found_tags([record.caption for record in records], taxonomy)
