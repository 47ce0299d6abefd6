"""Captions of a table's rows: the first tier that fits, its templates drawn by a keyed hash."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastht.captions.checks import Limits, Reason, check_captions
from fastht.captions.schema import Templates, TemplatesError, Tier
from fastht.data.captions import clean_caption
from fastht.data.draws import draw


@dataclass(frozen=True)
class Captioned:
    """What a row got.

    Attributes:
        path: of its image, as captions are drawn by it.
        label: its class, ``None`` if it has none.
        values: its fields that say something, in the words of the vocabulary.
        tier: that captions it.
        captions: one or more, all different.
        used: the fields that stand in them.
    """

    path: str
    label: str | None
    values: dict[str, str]
    tier: str
    captions: tuple[str, ...]
    used: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """All rows in the table's order, and why checked captions were not taken, reason -> count."""

    rows: tuple[Captioned, ...]
    refused: Counter[Reason]


def caption_rows(
    templates: Templates,
    rows: Sequence[Mapping[str, str]],
    *,
    root: Path,
    seed: int = 0,
    count: int = 1,
    given: Mapping[str, Sequence[str]] | None = None,
    given_tier: str = "llm",
    limits: Limits | None = None,
) -> Result:
    """Caption each row of a table.

    Captions follow from the seed and the path of the image alone: whoever sorts rows or adds some
    changes no caption.

    Args:
        templates: the tiers.
        rows: cells by column.
        root: the folder of the table, which paths are relative to.
        seed: of the draws.
        count: captions of an image that has as many, different ones.
        given: captions of a language model by path, for the tier ``given_tier``.
        given_tier: name of a checked tier.
        limits: what checked captions must keep.

    Raises:
        TemplatesError: the table has no column of images, two rows of one image have different
            labels, or a row fits no tier.
    """
    columns = list(rows[0]) if rows else []
    image = next((name for name in templates.image if name in columns), None)
    if image is None:
        raise TemplatesError(
            f"no column {' or '.join(templates.image)} of images; the columns are "
            f"{', '.join(columns)}; name it under image: in a templates file"
        )
    refused: Counter[Reason] = Counter()
    labels: dict[str, str | None] = {}
    made = []
    for row in rows:
        path = relative_path(row[image], root)
        values = read_fields(templates, row)
        label = values.get(templates.label)
        if labels.setdefault(path, label) != label:
            two = " and ".join(str(name) for name in (labels[path], label))
            raise TemplatesError(f"{path}: two rows with the labels {two}; correct one of them")
        made.append(
            _caption(
                templates,
                path,
                values,
                seed,
                count,
                (given or {}).get(path, ()),
                given_tier,
                limits or Limits(),
                refused,
            )
        )
    return Result(tuple(made), refused)


def read_fields(templates: Templates, row: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a row that say something, in the words of the vocabulary."""
    values = {}
    for name, columns in templates.fields.items():
        for column in columns:
            cell = " ".join(unicodedata.normalize("NFC", row.get(column) or "").split())
            if cell and cell.casefold() not in templates.missing:
                phrase = templates.vocabulary.get(name, {}).get(cell.casefold(), cell)
                if phrase:
                    values[name] = phrase
                break
    return values


def relative_path(cell: str, root: Path) -> str:
    """Return the path of an image as captions are drawn by it: relative, with / and composed."""
    path = os.path.normpath(cell.replace("\\", "/"))
    if os.path.isabs(path) and Path(path).is_relative_to(os.path.abspath(root)):
        path = os.path.relpath(path, os.path.abspath(root))
    return unicodedata.normalize("NFC", path.replace(os.sep, "/"))


def _caption(
    templates: Templates,
    path: str,
    values: dict[str, str],
    seed: int,
    count: int,
    given: Sequence[str],
    given_tier: str,
    limits: Limits,
    refused: Counter[Reason],
) -> Captioned:
    """Caption a row by the first tier that fits it and whose captions stand."""
    for tier in templates.tiers:
        captions: tuple[str, ...]
        used: tuple[str, ...] = ()
        if given and tier.name == given_tier:
            texts = given
        elif tier.fits(values) and tier.verbatim is not None:
            texts = (values[tier.verbatim],)
        elif tier.fits(values):
            captions, used = _fill(tier, path, values | {"organ": templates.organ}, seed, count)
            return Captioned(path, values.get(templates.label), values, tier.name, captions, used)
        else:
            continue
        if tier.checked:
            told = {n: v for n, v in values.items() if n != tier.verbatim}
            captions, reasons = check_captions(texts, told, templates.organ, limits)
            refused.update(reasons)
        else:
            captions = tuple(filter(None, map(clean_caption, texts)))
        if captions:
            return Captioned(
                path, values.get(templates.label), values, tier.name, captions[:count], used
            )
    raise TemplatesError(f"{path}: no tier fits this row; add one without needs")


def _fill(
    tier: Tier, path: str, values: Mapping[str, str], seed: int, count: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Fill templates until there are ``count`` different captions, or no template is left."""
    captions: dict[str, None] = {}
    used: dict[str, None] = {}
    for index in draw(seed, path, tier.name, len(tier.templates), len(tier.templates)):
        text, names = tier.templates[index].fill(values)
        if text not in captions:
            captions[text] = None
            used |= dict.fromkeys(names)
        if len(captions) == count:
            break
    return tuple(captions), tuple(used)


def unique_names(paths: Sequence[str]) -> dict[str, str]:
    """Return what names an image without doubt -> its path: paths, and base names of one file."""
    by_name: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        by_name[os.path.basename(path)].add(path)
    return {path: path for path in paths} | {
        name: next(iter(found)) for name, found in by_name.items() if len(found) == 1
    }
