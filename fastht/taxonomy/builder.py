"""A taxonomy from a file's content, checked; all that is wrong is gathered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastht.taxonomy.schema import SCHEMA, SLOT, Dimension, Phrase, Taxonomy, Value
from fastht.taxonomy.settings import (
    check_settings,
    read_missing,
    read_similarity,
    read_weights,
)

_DIMENSION_KEYS = {"field", "parent", "location", "exclusive", "order", "ignore", "values", "add"}
_VALUE_KEYS = {"id", "parent", "broader", "implies", "denies", "synonyms", "when_negated"}
_FILE_KEYS = {"schema", "name", "version", "extends", "spelling", "dimensions"} | {
    "similarity",
    "weights",
    "missing",
}


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
