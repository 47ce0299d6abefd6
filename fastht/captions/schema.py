"""Caption templates in tiers, from a YAML file that is checked before anything is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from fastht.data.tables import read_text

_PART = re.compile(r"\[\[(.*?)\]\]")
_SLOT = re.compile(r"\{([^{}]*)\}")
_KEYS = {"organ", "image", "label", "fields", "missing", "vocabulary", "tiers"}
_TIER_KEYS = {"name", "verbatim", "checked", "needs", "needs_any", "templates"}


class TemplatesError(ValueError):
    """Templates, a table or captions for it cannot be used; the message says why."""


@dataclass(frozen=True)
class Template:
    """A sentence with slots ``{field}``, and parts ``[[ ... ]]`` that vanish with their fields."""

    text: str

    @property
    def needed(self) -> frozenset[str]:
        """The fields outside of parts, without which it cannot be filled."""
        return frozenset(_SLOT.findall(_PART.sub("", self.text)))

    @property
    def fields(self) -> frozenset[str]:
        """All fields."""
        return frozenset(_SLOT.findall(self.text))

    def fill(self, values: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
        """Return the sentence, and the fields that stand in it. ``a(n)`` becomes a or an."""
        kept = _PART.sub(
            lambda part: part[1] if all(name in values for name in _SLOT.findall(part[1])) else "",
            self.text,
        )
        used = tuple(dict.fromkeys(_SLOT.findall(kept)))
        text = " ".join(_SLOT.sub(lambda slot: values[slot[1]], kept).split())
        text = re.sub(r"\ba\(n\) (?=[aeiou])", "an ", text, flags=re.IGNORECASE)
        text = re.sub(r" (?=[,.;:])", "", text.replace("a(n) ", "a ").replace("A(n) ", "A "))
        return text[:1].upper() + text[1:], used


@dataclass(frozen=True)
class Tier:
    """What captions a row that has what it needs: templates, or a column as it is.

    Attributes:
        name: what the table calls it.
        needs: fields that a row must have.
        any_of: fields of which a row must have ``at_least`` some.
        at_least: how many.
        templates: of which each row gets one or more.
        verbatim: the field that is the caption; no template then.
        checked: whether such captions are checked against the fields, as of a language model.
    """

    name: str
    needs: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    at_least: int = 0
    templates: tuple[Template, ...] = ()
    verbatim: str | None = None
    checked: bool = False

    def fits(self, values: Mapping[str, str]) -> bool:
        """Whether a row has what the tier needs."""
        if self.verbatim is not None:
            return self.verbatim in values
        enough = sum(name in values for name in self.any_of) >= self.at_least
        return enough and all(name in values for name in self.needs)


@dataclass(frozen=True)
class Templates:
    """Tiers, the first that fits a row wins, and how a table's columns are read.

    Attributes:
        organ: what is imaged; ``{organ}`` in templates.
        image: columns of the image, the first that a table has counts.
        label: the field of the class.
        fields: field -> columns that may hold it, likewise.
        missing: cells that say nothing, without regard to case.
        vocabulary: field -> cell -> phrase, without regard to case.
        tiers: in order.
    """

    organ: str
    image: tuple[str, ...]
    label: str
    fields: dict[str, tuple[str, ...]]
    missing: frozenset[str]
    vocabulary: dict[str, dict[str, str]]
    tiers: tuple[Tier, ...]
    source: str = field(default="", compare=False)


def shipped() -> tuple[str, ...]:
    """Return the names of the templates in the package."""
    files = resources.files("fastht.captions").iterdir()
    return tuple(sorted(f.name[:-5] for f in files if f.name.endswith(".yaml")))


def load_templates(source: str) -> Templates:
    """Read and check templates.

    Args:
        source: the name of shipped ones, or the path of a YAML file.

    Raises:
        TemplatesError: they cannot be used; all problems are listed.
        DataError: the file cannot be read.
    """
    if source in shipped():
        path = Path(str(resources.files("fastht.captions") / f"{source}.yaml"))
    else:
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            known = ", ".join(shipped())
            raise TemplatesError(f"templates {source!r}: neither shipped ({known}) nor a YAML file")
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise TemplatesError(f"{path}: no YAML ({error}); correct it") from None
    if not isinstance(content, dict):
        raise TemplatesError(f"{path}: no mapping of {', '.join(sorted(_KEYS))}")
    problems: list[str] = []
    made = _build(content, source, problems)
    if problems:
        raise TemplatesError(f"{path}: {'; '.join(problems)}")
    return made


def _build(content: dict[Any, Any], source: str, problems: list[str]) -> Templates:
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        problems.append(f"unknown keys {', '.join(unknown)}")
    fields = {
        str(name): _texts(columns) or (str(name),)
        for name, columns in _mapping(content.get("fields"), "fields", problems).items()
    }
    vocabulary = {
        str(name): {str(cell).casefold(): str(phrase) for cell, phrase in phrases.items()}
        for name, phrases in _mapping(content.get("vocabulary"), "vocabulary", problems).items()
        if isinstance(phrases, dict)
    }
    if unread := sorted(vocabulary.keys() - fields.keys()):
        problems.append(f"vocabulary of {', '.join(unread)}, which are no fields")
    organ, label = str(content.get("organ") or ""), str(content.get("label") or "")
    if not organ:
        problems.append("no organ")
    if label not in fields:
        problems.append(f"label {label!r} is no field")
    listed = content.get("tiers")
    tiers = tuple(
        _tier(entry, f"tier {number}", {*fields, "organ"}, problems)
        for number, entry in enumerate(listed if isinstance(listed, list) else (), 1)
    )
    if not tiers:
        problems.append("no tiers")
    if len({tier.name for tier in tiers}) < len(tiers):
        problems.append("two tiers of one name")
    return Templates(
        organ,
        _texts(content.get("image")) or ("filepath", "filename"),
        label,
        fields,
        frozenset(text.casefold() for text in _texts(content.get("missing"))),
        vocabulary,
        tiers,
        source,
    )


def _tier(entry: Any, where: str, fields: set[str], problems: list[str]) -> Tier:
    if not isinstance(entry, dict):
        problems.append(f"{where} is no mapping")
        return Tier(where)
    name = str(entry.get("name") or where)
    if unknown := sorted(map(str, entry.keys() - _TIER_KEYS)):
        problems.append(f"{name}: unknown keys {', '.join(unknown)}")
    some = entry.get("needs_any") or {}
    any_of, at_least = (
        (_texts(some.get("fields")), some.get("at_least", 1)) if isinstance(some, dict) else ((), 0)
    )
    templates = tuple(map(Template, _texts(entry.get("templates"))))
    verbatim = entry.get("verbatim")
    tier = Tier(
        name,
        _texts(entry.get("needs")),
        any_of,
        at_least if any_of else 0,
        templates,
        None if verbatim is None else str(verbatim),
        entry.get("checked") is True,
    )
    if (verbatim is None) == (not templates):
        problems.append(f"{name}: give either templates or verbatim")
    named = {*tier.needs, *tier.any_of, *([tier.verbatim] if tier.verbatim else [])}
    for template in templates:
        named |= template.fields
        if _PART.sub("", template.text).count("[[") or "]]" in _PART.sub("", template.text):
            problems.append(f"{name}: brackets without their other half in {template.text!r}")
        if lacking := sorted(template.needed - {*tier.needs, "organ"}):
            what = f"{', '.join(lacking)} may be missing in {template.text!r}"
            problems.append(f"{name}: {what}: put it into [[ ]] or add it to needs")
    if unread := sorted(named - fields):
        problems.append(f"{name}: {', '.join(unread)}, which are no fields")
    if len({template.text for template in templates}) < len(templates):
        problems.append(f"{name}: a template twice")
    if not (isinstance(at_least, int) and 0 <= tier.at_least <= len(any_of)):
        problems.append(f"{name}: at_least {at_least} of {len(any_of)} fields")
    return tier


def _mapping(found: Any, what: str, problems: list[str]) -> dict[Any, Any]:
    if found is None or isinstance(found, dict):
        return found or {}
    problems.append(f"{what} is no mapping")
    return {}


def _texts(found: Any) -> tuple[str, ...]:
    if found is None:
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else (str(found),)
