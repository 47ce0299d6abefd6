"""What the tests of benchmarks/report read off a page."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import load, pages


def page_of(path: Path) -> str:
    return pages.page(load.load([path]), ())


def table(page: str, heading: str, place: int = 0) -> list[dict[str, str]]:
    """Return the rows of a section's table by the names of their columns."""
    section = page.split(f"## {heading}\n\n")[1].split("\n## ")[0]
    blocks = [block for block in section.split("\n\n") if block.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]]
                        for line in blocks[place].strip().splitlines())  # fmt: skip
    return [dict(zip(header, row, strict=True)) for row in rows]
