"""The known data sets as text: the listing, one set, and the page of the documentation."""

from __future__ import annotations

from textwrap import fill

from fastht.data.catalogue.sets import SETS, KnownSet
from fastht.data.layouts import LAYOUTS

_WIDTH = 100
_FIELDS = (
    "organ",
    "images",
    "masks",
    "captions",
    "classes",
    "patients",
    "splits",
    "licence",
    "published",
)
_GENERAL = ("table", "folder", "json", "parquet")
_INTRODUCTION = """\
# Data sets

Made from the descriptions in `fastht/data/catalogue/sets.py` by `fastht data list --markdown`; a
test holds the two equal. fastht ships no set but its simulated sample and downloads none.

**How far this was tried.** None of these sets, apart from the sample, was at hand: layouts are as
documented by the authors or by code that reads them, and the tests write miniatures of that form.
Run `fastht data check` on a copy first; it lists everything that is not as described.

Before a model is judged on a set, `fastht data overlap TRAINED JUDGED` tells what both share. A run
of fastht remembers hashes of what it trained on, and scoring warns of images that are among them.
"""


def listing() -> str:
    """The sets with a line each, and the layouts of data of one's own."""
    rows = [("set", "layout", "organ", "has")]
    rows += [(known.name, known.layout, known.organ, _has(known)) for known in SETS]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    own = [f"  {key:<8} {LAYOUTS[key].looks}" for key in _GENERAL]
    return "\n".join(
        [
            *lines,
            "",
            "data of your own:",
            *own,
            "",
            "`fastht data list NAME` tells of one set.",
        ]
    )


def describe(known: KnownSet) -> str:
    """Everything that is known of a set."""
    parts = [f"{known.name} (layout {known.layout}: {LAYOUTS[known.layout].looks})"]
    parts += [_field(name, getattr(known, name)) for name in _FIELDS]
    parts += [_field("known trap", trap) for trap in known.traps]
    parts.append(_field("command line", known.use))
    return "\n".join(parts)


def markdown() -> str:
    """The page of the documentation."""
    parts = [_INTRODUCTION, "| set | layout | organ | has |", "|---|---|---|---|"]
    for known in SETS:
        cells = (known.name, f"`{known.layout}`", known.organ, _has(known))
        parts.append(f"| {' | '.join(cells)} |")
    for known in SETS:
        parts += ["", f"## {known.name}", "", f"Layout `{known.layout}`: {_looks(known)}", ""]
        parts += ["| | |", "|---|---|"]
        parts += [f"| {name} | {getattr(known, name)} |" for name in _FIELDS]
        parts += ["", "Known traps:", ""]
        parts += [f"- {trap}" for trap in known.traps]
        parts += ["", f"    fastht data check {known.use}"]
    parts += ["", "## Data of your own", ""]
    parts += [f"- `{key}`: {LAYOUTS[key].looks}" for key in _GENERAL]
    return "\n".join(parts) + "\n"


def _looks(known: KnownSet) -> str:
    return f"{LAYOUTS[known.layout].looks}."


def _has(known: KnownSet) -> str:
    found = [n for n in ("masks", "captions", "classes") if not getattr(known, n).startswith("non")]
    patients = [] if known.patients.startswith("none") else ["patients"]
    splits = [] if known.splits == "none" else ["splits"]
    return ", ".join([*found, *patients, *splits])


def _field(name: str, text: str) -> str:
    return fill(text, _WIDTH, initial_indent=f"  {name:<13} ", subsequent_indent=" " * 16)
