"""What a taxonomy consists of."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

from fastht.taxonomy.settings import Missing, Similarity

SCHEMA = 1
SLOT = re.compile(r"\{(.*?)\}")  # in a phrase: a dimension of which any phrase may stand there


class TaxonomyError(ValueError):
    """A taxonomy cannot be read or breaks its rules; the message lists every problem."""


@dataclass(frozen=True)
class Phrase:
    """Words that name a value.

    Attributes:
        text: the words; ``{Dimension}`` stands for any phrase of that dimension.
        near: words of which one has to stand close by, or the phrase counts for nothing.
    """

    text: str
    near: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """A value of a dimension.

    Attributes:
        name: as records hold it.
        id: its number in the taxonomy, which never changes.
        parent: the value of the parent dimension that it belongs to.
        broader: a value of its own dimension that holds wherever it does.
        synonyms: phrases that mean it, beside its name.
        when_negated: phrases that mean it where they are negated, and otherwise nothing.
        implies: values of its dimension that are there wherever it is, beside broader ones.
        denies: values of its dimension that a text negates by it.
    """

    name: str
    id: int
    parent: str | None = None
    broader: str | None = None
    synonyms: tuple[Phrase, ...] = ()
    when_negated: tuple[Phrase, ...] = ()
    implies: tuple[str, ...] = ()
    denies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """One of the ways in which findings are described.

    Attributes:
        name: of the dimension.
        field: of records, and of columns.
        values: by name, in the order of the file.
        parent: the dimension of which each value has a parent, such as systems for organs.
        location: its values say where something is, so negation does not reach them.
        exclusive: a record has one of its values at most.
        order: values that have an order, from the least.
        ignore: phrases that name none of its values though they contain the words of one.
    """

    name: str
    field: str
    values: Mapping[str, Value]
    parent: str | None = None
    location: bool = False
    exclusive: bool = False
    order: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def broader(self, value: str) -> Iterator[str]:
        """Name the broader values of a value, the nearest first."""
        while (above := self.values[value].broader) is not None:
            yield above
            value = above


@dataclass(frozen=True)
class Taxonomy:
    """Dimensions and their values, under a name and a version.

    Attributes:
        name: of the taxonomy.
        version: of its file.
        dimensions: by name, in the order of the file.
        spelling: British fragments of words and the American ones.
        extends: label of the taxonomy that it adds to, if any.
        similarity: how alike the values of each dimension are.
        weights: of dimensions in soft labels; those without count 1.
        missing: what a dimension counts there that one of two records lacks: nothing, or 0.
        names: of this taxonomy and all that it stands on, its own last.
    """

    name: str
    version: int
    dimensions: Mapping[str, Dimension]
    spelling: Mapping[str, str] = field(default_factory=dict)
    extends: str | None = None
    similarity: Similarity = field(default_factory=Similarity)
    weights: Mapping[str, float] = field(default_factory=dict)
    missing: Missing = "ignore"
    names: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Name and version, as ``extends`` gives them: ``us365k@1``."""
        return f"{self.name}@{self.version}"

    @cached_property
    def tags(self) -> tuple[tuple[str, str], ...]:
        """Dimension and value of every id, from 0."""
        numbered = {
            value.id: (dimension.name, value.name)
            for dimension in self.dimensions.values()
            for value in dimension.values.values()
        }
        return tuple(numbered[number] for number in range(len(numbered)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the content, 64 hex digits; comments and layout of the file do not matter."""
        known = asdict(replace(self, similarity=Similarity()))
        del known["names"], known["similarity"]
        for dimension in known["dimensions"].values():
            for value in dimension["values"].values():
                for key in ("implies", "denies"):
                    value[key] or value.pop(key)
        # What a file does not say has no part in it, so that a digest outlives new keys.
        for key, default in (("weights", {}), ("missing", "ignore")):
            if known[key] == default:
                del known[key]
        if self.similarity != Similarity():
            known["similarity"] = self.similarity.content()
        content = json.dumps(known, sort_keys=False, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def require_ids_of(self, older: Taxonomy) -> None:
        """Check that every id of an older taxonomy still means the same.

        Raises:
            TaxonomyError: an id is gone or names another value, so rows of old checkpoints would
                be read as something else.
        """
        problems = [
            f"id {number} was {'/'.join(tag)} and is "
            + ("/".join(self.tags[number]) if number < len(self.tags) else "gone")
            for number, tag in enumerate(older.tags)
            if self.tags[number : number + 1] != (tag,)
        ]
        if problems:
            raise refusal(f"{self.label} does not keep the ids of {older.label}", problems)


def refusal(where: str, problems: list[str]) -> TaxonomyError:
    """Return the error that lists all problems of a file."""
    return TaxonomyError("\n  ".join([f"{where}:", *problems]))
