"""A report on tags and captions as text, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastht.data.notes import plural
from fastht.tasks.tags.findings import Report, cut

_LONGEST = 90  # characters of a caption in a table


def text(report: Report) -> str:
    """The report as it is printed."""
    lines = [*report.summary, f"taxonomy {report.taxonomy[0]} (sha256 {report.taxonomy[1][:12]})"]
    for title, header, rows in _tables(report):
        cells = [header, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines += ["", f"{title}:"]
        for first, *others in cells:
            more = (cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))
            lines.append("  " + "  ".join([first.ljust(widths[0]), *more]).rstrip())
    lines += ["", *_sentences(report)]
    for level in ("error", "warning"):
        found = report.of(level)  # type: ignore[arg-type]
        lines += ["", plural(len(found), level) if found else f"no {level}s"]
        lines += [f"  {one.line()}" for one in found]
    return "\n".join(lines)


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as a page.

    pictures: names of files beside it.
    """
    label, digest = report.taxonomy
    parts = [f"# Tags and captions of {report.data}", "", f"Taxonomy {label}, SHA-256 `{digest}`."]
    for paragraph in report.summary:
        parts += ["", _escape(paragraph)]
    for level, title in (("error", "Errors"), ("warning", "Warnings")):
        found = report.of(level)  # type: ignore[arg-type]
        parts += ["", f"## {title}", ""]
        parts += [f"- {_escape(one.line())}" for one in found] or ["None."]
    parts += ["", "## Numbers", "", *(_escape(line) for line in _sentences(report))]
    for title, header, rows in _tables(report):
        parts += ["", f"### {title}", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
        parts += [f"| {' | '.join(map(_escape, row))} |" for row in rows]
    for name in pictures:
        parts += ["", f"![{name.partition('.')[0]}]({name})"]
    return "\n".join(parts) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON, with every place of every finding."""
    label, digest = report.taxonomy
    return {
        "data": report.data,
        "taxonomy": label,
        "taxonomy_sha256": digest,
        "summary": report.summary,
        "errors": len(report.of("error")),
        "warnings": len(report.of("warning")),
        "findings": [
            {
                "kind": one.kind,
                "level": one.level,
                "count": one.count,
                "text": one.text,
                "remedy": one.remedy,
                "places": list(one.places),
            }
            for one in report.findings
        ],
        **report.tables,
    }


def _tables(report: Report) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table that there is."""
    tables = []
    if coverage := report.tables.get("coverage"):
        sides = list(next(iter(coverage.values())))
        rows = [[name, *(_percent(row[s]) for s in sides)] for name, row in coverage.items()]
        tables.append(("Records with a tag (%)", ["dimension", *sides], rows))
    if agreement := report.tables.get("agreement"):
        header = ["dimension", "given", "found", "both", "precision", "recall", "F1"]
        rows = [
            [
                name,
                *(f"{row[key]:,}" for key in ("given", "found", "both")),
                *(_ratio(row[key]) for key in ("precision", "recall", "f1")),
            ]
            for name, row in agreement.items()
        ]
        tables.append(("Captions' tags against the given ones", header, rows))
    if shifts := report.tables.get("shifts"):
        rows = [
            [name, side, f"{row['distance']:.3f}", f"{row['chance']:.3f}"]
            for name, sides_of in shifts.items()
            for side, row in sides_of.items()
        ]
        header = ["dimension", "split", "total variation", "95 % by chance"]
        tables.append(("Tags of a split against those of train", header, rows))
    if top := report.tables.get("captions", {}).get("top"):
        rows = [[cut(row["caption"], _LONGEST), f"{row['images']:,}"] for row in top]
        tables.append(("Captions that most images share", ["caption", "images"], rows))
    return tables


def _sentences(report: Report) -> list[str]:
    lines = []
    if found := report.tables.get("captions"):
        lines.append(
            f"{found['captions']:,} captions, {found['different']:,} different; "
            f"{found['sharing']:,} ({100 * found['share']:.1f} %) are shared with other images."
        )
    if found := report.tables.get("tirads"):
        lines.append(
            f"{found['stated']:,} records state a TI-RADS level; of {found['settled_by_tags']:,} "
            f"the tags settle it, and {found['agreed']:,} agree."
        )
    if found := report.tables.get("sharpness"):
        tower = found.get("text_tower")
        lines.append(
            f"Soft targets at tau {found['tau']:g}, batch {found['batch']}, missing "
            f"{found['missing']}: {100 * found['diagonal_mass']:.1f} % of the mass on the "
            f"diagonal, entropy {found['entropy']:.2f} of {found['entropy_of_even']:.2f} nats"
            + (f", similarity by the text tower of {tower}." if tower else ".")
        )
    if (found := report.tables.get("images")) and sum(found["on_one_side"].values()):
        count = sum(found["on_one_side"].values())
        lines.append(f"{count:,} pairs of alike images are on one side, which leaks nothing.")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _escape(line: str) -> str:
    return line.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
