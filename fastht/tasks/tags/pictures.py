"""Pictures of a report on tags: coverage by split, shifts beside what chance gives."""

from __future__ import annotations

from pathlib import Path

from fastht.tasks.results.figure_style import DPI, FAINT, PALETTE, SMALL, new_figure, tidy
from fastht.tasks.tags.findings import Report


def draw_coverage(report: Report, path: Path) -> None:
    """Draw the share of records with a tag, a bar a split for each dimension, into a PNG."""
    coverage = report.tables["coverage"]
    names = list(coverage)
    sides = list(coverage[names[0]])
    figure = new_figure(8, 1.2 + 0.34 * len(names), f"Records with a tag: {report.data}")
    axes = figure.subplots()
    height = 0.8 / len(sides)
    for number, side in enumerate(sides):
        places = [i + (number - (len(sides) - 1) / 2) * height for i in range(len(names))]
        values = [100 * coverage[name][side] for name in names]
        axes.barh(places, values, height, label=side, color=PALETTE[number])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="records with a tag (%)", xlim=(0, 100))
    axes.legend(frameon=False, fontsize=SMALL)
    tidy(axes)
    figure.savefig(path, dpi=DPI)


def draw_shifts(report: Report, path: Path) -> None:
    """Draw how far each split's tags are from those of training, and chance, into a PNG."""
    shifts = report.tables["shifts"]
    rows = [
        (f"{name}, {side}", row["distance"], row["chance"])
        for name, sides in shifts.items()
        for side, row in sides.items()
    ]
    figure = new_figure(8, 1.2 + 0.28 * len(rows), f"Tags against those of train: {report.data}")
    axes = figure.subplots()
    axes.barh(range(len(rows)), [row[1] for row in rows], 0.6, color=PALETTE[0], label="found")
    axes.plot(
        [row[2] for row in rows],
        range(len(rows)),
        "|",
        color=FAINT,
        markersize=10,
        label="95 % of what chance gives",
    )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="total variation", xlim=(0, None))
    axes.legend(frameon=False, fontsize=SMALL)
    tidy(axes)
    figure.savefig(path, dpi=DPI)
