"""Recorded ids: the list beside a taxonomy's file that says which value every id is for ever.

Rows of checkpoints hang on ids. NAME.ids beside NAME.yaml has a line for each, as "Shape/oval", in
their order; where there is one, reading the taxonomy checks it.
"""

from __future__ import annotations

from pathlib import Path

from fastht.taxonomy.schema import Taxonomy, TaxonomyError, refusal


def ids_path(path: Path) -> Path:
    """The file of recorded ids of a taxonomy's file."""
    return path.with_suffix(".ids")


def ids_text(taxonomy: Taxonomy) -> str:
    """The ids as the file has them."""
    return "".join(f"{dimension}/{value}\n" for dimension, value in taxonomy.tags)


def require_recorded_ids(taxonomy: Taxonomy, path: Path, *, new: bool = False) -> None:
    """Check a taxonomy against the recorded ids of its file, where there are some.

    Args:
        taxonomy: that was read.
        path: of its file.
        new: it may have ids that are not recorded yet.

    Raises:
        TaxonomyError: the list cannot be read, or an id has gone, moved or was never recorded.
    """
    recorded = ids_path(path)
    if not recorded.is_file():
        return
    try:
        lines = recorded.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaxonomyError(f"{recorded}: cannot be read ({error}); restore it") from None
    now = ids_text(taxonomy).splitlines()
    problems = [
        f"id {number} was {tag} and is {now[number] if number < len(now) else 'gone'}; ids are for "
        "ever: give new values an `id:` that is free"
        for number, tag in enumerate(lines)
        if now[number : number + 1] != [tag]
    ]
    if not problems and not new and len(now) > len(lines):
        added = ", ".join(now[len(lines) :][:5])
        problems = [
            f"{len(now) - len(lines)} ids are not recorded yet ({added}): record them by "
            f"`fastht taxonomy record {path.name}`"
        ]
    if problems:
        raise refusal(str(recorded), problems)
