"""What a taxonomy consists of, and the check of a file's content against it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fastht.taxonomy.settings import (
    Missing,
    Similarity,
    check_settings,
    read_missing,
    read_similarity,
    read_weights,
)

SCHEMA = 1
SLOT = re.compile(r"\{(.*?)\}")  # in a phrase: a dimension of which any phrase may stand there
_DIMENSION_KEYS = {"field", "parent", "location", "exclusive", "order", "ignore", "values", "add"}
_VALUE_KEYS = {"id", "parent", "broader", "implies", "denies", "synonyms", "when_negated"}
_FILE_KEYS = {"schema", "name", "version", "extends", "spelling", "dimensions"} | {
    "similarity",
    "weights",
    "missing",
}


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


class Builder:
    """Reads the content of a file into a taxonomy and gathers what is wrong with it."""

    def __init__(
        self,
        content: Mapping[str, Any],
        base: Taxonomy | None,
        folder: Path = Path(),
        lines: Mapping[str, int] | None = None,
    ) -> None:
        """Take what is read.

        folder: that paths in it are taken from. lines: where in the file things stand, by what
            problems call them.
        """
        self.content = content
        self.base = base
        self.folder = folder
        self.lines = lines or {}
        self.problems: list[str] = []

    def build(self) -> Taxonomy | None:
        """Return the taxonomy, or None if there are problems."""
        self._only(self.content, _FILE_KEYS, "the file")
        if self.content.get("schema", SCHEMA) != SCHEMA:
            self._say(f"schema {self.content['schema']!r} is not {SCHEMA}; update fastht")
        name, version = self.content.get("name"), self.content.get("version", 1)
        if not isinstance(name, str) or not name or "@" in name:
            self._say(f"name {name!r} is not a text without @; give one")
        if type(version) is not int or version < 1:
            self._say(f"version {version!r} is not a whole number from 1")
        spelling = self._table(self.content.get("spelling"), "spelling")
        for british, american in spelling.items():
            if not (isinstance(british, str) and isinstance(american, str)):
                self._say(f"spelling {british!r}: {american!r} is not a pair of texts")
        dimensions = dict(self.base.dimensions) if self.base else {}
        for key, given in self._table(self.content.get("dimensions"), "dimensions").items():
            if (made := self._dimension(key, given, dimensions.get(key))) is not None:
                dimensions[made.name] = made
        if not dimensions:
            self._say("there is no dimension; give some under `dimensions:`")
        dimensions = self._numbered(dimensions)
        self._check_links(dimensions)
        base = self.base or Taxonomy("", 1, {})
        given = self.content.get
        similarity = read_similarity(given("similarity"), base.similarity, self.folder, self._say)
        weights = read_weights(given("weights"), base.weights, self._say)
        missing = read_missing(given("missing"), base.missing, self._say)
        check_settings(similarity, weights, dimensions, self._say)
        if self.problems:
            return None
        spelling = {**(self.base.spelling if self.base else {}), **spelling}
        extends = self.base.label if self.base else None
        names = (*base.names, str(name))
        return Taxonomy(
            str(name), version, dimensions, spelling, extends, similarity, weights, missing, names
        )

    def _dimension(self, name: Any, given: Any, old: Dimension | None) -> Dimension | None:
        if not isinstance(name, str):
            self._say(f"dimension {name!r} is not a text; quote it")
            return None
        given = self._table(given, name)
        self._only(given, _DIMENSION_KEYS, name)
        if old is not None and "values" in given:
            self._say(f"{name}: it has values already; give more under `add:`")
        if old is None and "add" in given:
            self._say(f"{name}: there is nothing to add to; give its values under `values:`")
        values = dict(old.values) if old else {}
        for key, described in self._table(given.get("add", given.get("values")), name).items():
            if not isinstance(key, str):
                self._say(f"{name}: value {key!r} is not a text; quote it")
            elif key in values:
                self._say(f"{name}: {key} is there already; synonyms need a value of their own")
            else:
                values[key] = self._value(f"{name}/{key}", key, described)
        if not values:
            self._say(f"{name}: it has no value; give some under `values:`")
        for flag in ("location", "exclusive"):
            if not isinstance(given.get(flag, False), bool):
                self._say(f"{name}: {flag} is {given[flag]!r}, not true or false")
        parent = given.get("parent", old.parent if old else None)
        return Dimension(
            name,
            str(given.get("field", old.field if old else name)),
            values,
            parent,
            bool(given.get("location", old.location if old else False)),
            bool(given.get("exclusive", old.exclusive if old else False)),
            self._texts(given["order"], f"{name}: order")
            if "order" in given
            else (old.order if old else ()),
            (old.ignore if old else ()) + self._texts(given.get("ignore", []), f"{name}: ignore"),
        )

    def _value(self, where: str, name: str, given: Any) -> Value:
        given = self._table(given, where)
        self._only(given, _VALUE_KEYS, where)
        number = given.get("id", -1)
        if type(number) is not int or ("id" in given and number < 0):
            self._say(f"{where}: id {number!r} is not a whole number from 0")
            number = -1
        for key in ("parent", "broader"):
            if not isinstance(given.get(key), str | None):
                self._say(f"{where}: {key} is {given[key]!r}, not a text")
        return Value(
            name,
            number,
            given.get("parent"),
            given.get("broader"),
            self._phrases(given.get("synonyms", []), f"{where}: synonyms"),
            self._phrases(given.get("when_negated", []), f"{where}: when_negated"),
            self._texts(given.get("implies", []), f"{where}: implies"),
            self._texts(given.get("denies", []), f"{where}: denies"),
        )

    def _phrases(self, given: Any, where: str) -> tuple[Phrase, ...]:
        phrases = []
        for item in given if isinstance(given, list) else [None]:
            if isinstance(item, str) and item.strip():
                phrases.append(Phrase(item))
            elif isinstance(item, dict) and {"phrase"} <= item.keys() <= {"phrase", "near"}:
                near = self._texts(item.get("near", []), where)
                phrases.append(Phrase(str(item["phrase"]), near))
            else:
                self._say(f"{where}: a list of texts or of `{{phrase: …, near: […]}}` is needed")
        return tuple(phrases)

    def _texts(self, given: Any, where: str) -> tuple[str, ...]:
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            self._say(f"{where}: a list of texts is needed")
            return ()
        return tuple(given)

    def _numbered(self, dimensions: dict[str, Dimension]) -> dict[str, Dimension]:
        """Give a number to each value that has none: the next that are free, in file order."""
        values = [value for d in dimensions.values() for value in d.values.values()]
        given = [value.id for value in values if value.id >= 0]
        for number in sorted({number for number in given if given.count(number) > 1}):
            self._say(f"id {number} is given twice; ids are for ever, so choose the next free one")
        if given and max(given) >= len(values):
            self._say(f"id {max(given)} leaves a gap: {len(values)} values have ids from 0")
        free = iter(sorted(set(range(len(values))) - set(given)))
        return {
            name: Dimension(
                **{
                    **vars(dimension),
                    "values": {
                        key: Value(**{**vars(value), "id": next(free, -1)})
                        if value.id < 0
                        else value
                        for key, value in dimension.values.items()
                    },
                }
            )
            for name, dimension in dimensions.items()
        }

    def _check_links(self, dimensions: dict[str, Dimension]) -> None:
        owners: dict[str, str] = {}
        fields: dict[str, str] = {}
        for name, dimension in dimensions.items():
            if (other := fields.setdefault(dimension.field, name)) != name:
                self._say(f"{name}: field {dimension.field} is that of {other} too")
            if dimension.parent is not None and dimension.parent not in dimensions:
                self._say(f"{name}: its parent {dimension.parent!r} is no dimension")
            above = dimensions[dimension.parent].values if dimension.parent in dimensions else {}
            for missing in [value for value in dimension.order if value not in dimension.values]:
                self._say(f"{name}: order names {missing!r}, which is none of its values")
            for value in dimension.values.values():
                where = f"{name}/{value.name}"
                if (other := owners.setdefault(value.name, name)) != name:
                    self._say(f"{where}: {other} has a value of that name; rename one")
                if ";" in value.name:
                    self._say(f"{where}: values are joined by ';', so none may contain it")
                if dimension.parent is None and value.parent is not None:
                    self._say(f"{where}: has a parent, but {name} has no parent dimension")
                if dimension.parent is not None and value.parent not in above:
                    self._say(f"{where}: its parent {value.parent!r} is not in {dimension.parent}")
                self._check_broader(dimension, value)
                for key in ("implies", "denies"):
                    for other in getattr(value, key):
                        if other not in dimension.values or other == value.name:
                            self._say(f"{where}: {key}: {other!r} is no other value of {name}")
                for phrase in (*value.synonyms, *value.when_negated):
                    for slot in SLOT.findall(phrase.text):
                        if slot not in dimensions:
                            self._say(f"{where}: {phrase.text!r} names no dimension: {slot!r}")

    def _check_broader(self, dimension: Dimension, value: Value) -> None:
        seen = [value.name]
        while (above := dimension.values[seen[-1]].broader) is not None:
            where = f"{dimension.name}/{value.name}"
            if above not in dimension.values:
                self._say(f"{where}: broader {above!r} is not in {dimension.name}")
                return
            if above in seen:
                self._say(f"{where}: it is broader than itself ({' > '.join([*seen, above])})")
                return
            seen.append(above)

    def _table(self, given: Any, where: str) -> dict[Any, Any]:
        if given is None:
            return {}
        if not isinstance(given, dict):
            self._say(f"{where}: `name: …` lines are needed, not {type(given).__name__}")
            return {}
        return given

    def _only(self, given: Mapping[Any, Any], known: set[str], where: str) -> None:
        for key in given:
            if key not in known:
                self._say(
                    f"{where}: {key!r} means nothing there; known: {', '.join(sorted(known))}"
                )

    def _say(self, problem: str) -> None:
        named = [
            key
            for key in self.lines
            if problem.startswith(key) and problem[len(key) : len(key) + 1] in (":", " ")
        ]
        if named:
            problem = f"line {self.lines[max(named, key=len)]}: {problem}"
        if problem not in self.problems:
            self.problems.append(problem)
