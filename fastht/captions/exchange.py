"""What goes to a language model and comes back: prompts of rows, captions joined by their id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fastht.captions.checks import Limits
from fastht.captions.engine import Captioned, unique_names
from fastht.captions.schema import Templates, TemplatesError
from fastht.data.notes import plural
from fastht.data.tables import read_text


def write_prompts(
    templates: Templates, rows: Sequence[Captioned], count: int, limits: Limits
) -> bytes:
    """Return a JSON line for each image: its id, its fields and what to ask a model for.

    Fields that hold captions already are left out.
    """
    instruction = (
        f"Write {plural(count, 'caption')} of {limits.fewest} to {limits.most} words for an "
        f"ultrasound image of the {templates.organ}. Use all fields and nothing else: no "
        "number, grade, diagnosis or organ that is not in them. Return "
        '{"id": ..., "captions": [...]} on one line.'
    )
    verbatim = {tier.verbatim for tier in templates.tiers}
    lines = {}
    for row in rows:
        told = {name: value for name, value in row.values.items() if name not in verbatim}
        lines[row.path] = {"id": row.path, "fields": told, "instruction": instruction}
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()).encode()


def read_given(path: Path, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read captions of a language model, by the paths of the images of a table.

    Args:
        path: JSON lines of ``id`` and ``caption`` or ``captions``; an id is the path of an image,
            or its base name where one image alone has it.
        paths: of the table's images.

    Raises:
        TemplatesError: a line cannot be understood, an id is of no image or of several, or twice.
        DataError: the file cannot be read.
    """
    names = unique_names(paths)
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            content = json.loads(line)
            name = str(content["id"]).replace("\\", "/")
            texts = content["captions"] if "captions" in content else [content["caption"]]
            captions = tuple(map(str, texts))
        except (ValueError, KeyError, TypeError) as error:
            what = f"not a line of id and caption ({type(error).__name__}: {error})"
            raise TemplatesError(f"{where}: {what}; correct it") from None
        if name not in names:
            several = [one for one in paths if one.endswith(f"/{name}")]
            what = (
                f"{name} is {'the name of several images' if several else 'no image'} of the table"
            )
            raise TemplatesError(f"{where}: {what}; give the path as the table has it")
        if names[name] in found:
            raise TemplatesError(f"{where}: captions of {names[name]} twice; remove one of them")
        found[names[name]] = captions
    return found
