"""``fastht report``: runs compared, one table for each task and data set."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import fill
from typing import Any

import tyro

from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.results.checklist import CHECKLIST_NAME, checklist
from fastht.tasks.results.class_tables import (
    chance_sentence,
    class_columns,
    class_text,
    warning_lines,
)
from fastht.tasks.results.differences import (
    Compared,
    Difference,
    difference_columns,
    difference_rows,
)
from fastht.tasks.results.finished_runs import find_runs
from fastht.tasks.results.pictures import draw_comparison, draw_few_shot
from fastht.tasks.results.rank_stability import prompt_lines
from fastht.tasks.results.shown import shown_runs
from fastht.tasks.results.tables import (
    EXTRAS,
    NAME_COLUMNS,
    WIDTH,
    Row,
    Run,
    group_runs,
    score_label,
    score_text,
    score_unit,
    scores_of,
    share_text,
    summarise,
    table_columns,
    text_columns,
    text_table,
    write_table,
)
from fastht.tasks.results.telling_apart import tell_apart

# Compares the rows of a report in pairs, from the runs of each row.
Compare = Callable[[Sequence[Sequence[Run]], Sequence[Row]], Compared]

TABLE_NAME = "report.csv"
DIFFERENCES_NAME = "differences.csv"
JSON_NAME = "report.json"
PAGE_NAME = "report.md"
_INTRODUCTION = """\
Scores are of held-out images: means over the runs with different seeds, ± their sample standard
deviation where there are several. "before" is without what was trained: of the base, or of a head
of random weights; "without distance" are the images that HD95 and ASD leave out, because the true
or the predicted mask is empty.

[low, high] is an interval of the score over the patients of the test images, or over the images
where no patient is named. Differences are paired: both scores are of the same images, and of the
same resamples of their patients. An interval that holds 0 does not tell the two apart. Over several
seeds the scores are averaged first: the interval is of other patients, not of other seeds. Nothing
is corrected for the number of comparisons."""


@dataclass(frozen=True)
class ReportArguments:
    """Compare finished runs: tables and pictures, apart for each task and data set.

    Attributes:
        runs: folders of runs, or folders above them. Runs that differ in their seeds alone are
            summed up; runs of the same name and seed are told apart by their folders.
        out: folder of the report; default: report in the folder of the runs, or runs/report if
            there are several.
        checklist: also write what the runs know of the topics of CLAIM 2024 and TRIPOD+AI, and ask
            the authors for the rest.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    out: Path | None = None
    checklist: bool = False


@dataclass(frozen=True)
class _Section:
    """The runs of one task and data set, and their rows."""

    task: str
    data: str
    rows: list[Row]
    runs: list[dict[str, Any]]
    places: list[int] = field(default_factory=list)  # of the rows among those of the report
    compared: Compared = field(default_factory=Compared)

    @property
    def heading(self) -> str:
        """The task, the data, and what else is the same in all rows."""
        parts = [f"{self.task}: {self.data}"]
        for name in ("model", *EXTRAS):
            values = {row.get(name) for row in self.rows}
            if len(values) == 1 and None not in values:
                label = "" if name == "model" else f"{name.replace('_', ' ')} "
                parts.append(f"{label}{values.pop()}")
        return ", ".join(parts)

    @property
    def score(self) -> str:
        """The score that is drawn: the first one."""
        return scores_of(self.rows)[0]

    @property
    def shown(self) -> list[str]:
        """The scores of the table."""
        before = f"{self.score}_before"
        known = any(before in row for row in self.rows)
        return [*([before] if known else []), *scores_of(self.rows)]

    @property
    def differences(self) -> list[Difference]:
        """Its paired differences, the places of rows being those in the section."""
        return [
            replace(d, row=self.places.index(d.row), other=self.places.index(d.other))
            for d in self.compared.differences
            if d.row in self.places
        ]

    @property
    def remarks(self) -> list[str]:
        """What the intervals are over, and why rows or pairs of them have no difference."""
        units = {self.compared.units[p]: None for p in self.places if p in self.compared.units}
        names = _shares(self.rows)
        notes = [
            f"{names[i]} has no paired difference, {note}."
            for i, place in enumerate(self.places)
            for note in self.compared.notes.get(place, ())
        ]
        return [*(f"[low, high]: {unit}" for unit in units), *notes]


def report(arguments: ReportArguments, compare: Compare | None = None) -> int:
    """Print and write the comparison; return the exit status.

    Args:
        arguments: which runs, and where to.
        compare: compares the rows in pairs; ``None`` leaves paired differences out.

    Raises:
        DataError: a folder holds no run, or a damaged one.
        ValueError: no folder is named, or runs cannot be told apart.
        OSError: the report cannot be written.
    """
    if not arguments.runs:
        raise ValueError("no runs to compare; name folders of runs, or a folder above them")
    runs = _gather(arguments.runs)
    apart = tell_apart(runs)
    rows = summarise(runs)
    compared = Compared() if compare is None else compare(group_runs(runs), rows)
    for row, ends in zip(rows, compared.ends, strict=False):
        row |= ends
    one = len(arguments.runs) == 1
    out = arguments.out or (arguments.runs[0] if one else Path("runs")) / "report"
    make_directory(out)
    write_table(out / TABLE_NAME, rows)
    differences: list[Row] = []
    sections: list[_Section] = []
    page = ["# Comparison of runs", _INTRODUCTION, *(f"- {line}" for line in apart)]
    stems: set[str] = set()
    for task, data in dict.fromkeys((row["task"], row["data"]) for row in rows):
        section = _Section(
            task,
            data,
            [row for row in rows if (row["task"], row["data"]) == (task, data)],
            [run for run in runs if (run["task"], run["data"]) == (task, data)],
            [i for i, row in enumerate(rows) if (row["task"], row["data"]) == (task, data)],
            compared,
        )
        sections.append(section)
        print(f"{section.heading}\n\n{text_table(section.rows, section.shown)}\n")
        if classes := class_text(_of_classes(section)):
            print(f"{classes}\n")
        for line in _remarks(section):
            print(f"{line}\n")
        found = section.differences
        differences += difference_rows(found, _shares(section.rows), section.rows)
        if found:
            print(f"{text_columns(_difference_columns(section, [section.score]))}\n")
        if section.remarks:
            print("\n".join([*(fill(remark, WIDTH) for remark in section.remarks), ""]))
        page += _write_section(section, out, _new_stem(section, stems))
    write_json(out / JSON_NAME, {"rows": rows, "differences": differences})
    if differences:
        write_table(out / DIFFERENCES_NAME, differences)
    write_atomically(out / PAGE_NAME, ("\n\n".join(page) + "\n").encode())
    for line in apart:
        print(line)
    if arguments.checklist:
        text = checklist(
            [section.heading for section in sections],
            [section.runs for section in sections],
            [section.rows for section in sections],
        )
        write_atomically(out / CHECKLIST_NAME, text.encode())
        print(f"checklist: {out / CHECKLIST_NAME}")
    print(f"report: {out / PAGE_NAME}   table: {out / TABLE_NAME}")
    return 0


def _gather(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return all runs, each once, with the folder that was given."""
    runs: dict[Path, dict[str, Any]] = {}
    for folder in folders:
        for run in find_runs(folder):
            runs.setdefault(run["folder"].resolve(), run | {"given": folder})
    return list(runs.values())


def _new_stem(section: _Section, taken: set[str]) -> str:
    """Return a name for the section's pictures that no other section has."""
    words = re.findall(r"[a-z0-9]+", f"{section.task} {Path(section.data).name}".lower())
    stem, number = "-".join(words), 1
    while stem in taken:
        number += 1
        stem = "-".join([*words, str(number)])
    taken.add(stem)
    return stem


def _write_section(section: _Section, out: Path, stem: str) -> list[str]:
    """Draw a section's pictures; return its paragraphs."""
    pictures = _draw(section, out, stem)
    # Scores of single classes are in the CSV.
    scores = [name for name in scores_of(section.rows) if "/" not in name]
    paired = [_markdown(_difference_columns(section, scores))] if section.differences else []
    classes = _of_classes(section)
    return [
        f"## {section.heading}",
        _markdown(table_columns(section.rows, section.shown)),
        *paired,
        *(["\n".join(f"- {remark}" for remark in section.remarks)] if section.remarks else []),
        *([_markdown(classes)] if classes else []),
        *_remarks(section),
        *(f"![{alt}]({name})" for name, alt in pictures.items()),
        _markdown(_run_columns(section)),
    ]


def _of_classes(section: _Section) -> dict[str, list[str]]:
    """Return the scores of single classes, means over the seeds, as columns."""
    names = [
        name if row["percent"] == 100 else f"{name}, {share_text(row)}"
        for name, row in zip(_names(section.rows), section.rows, strict=True)
    ]
    classes = list(dict.fromkeys(c for run in section.runs for c in run.get("classes", ())))
    versions = dict(zip(names, section.rows, strict=True))
    intervals = {
        name: {
            score.removesuffix("_low"): [row[score], row[f"{score.removesuffix('_low')}_high"]]
            for score in row
            if score.endswith("_low")
        }
        for name, row in versions.items()
    }
    return class_columns(versions, classes, intervals, heading="method")


def _remarks(section: _Section) -> list[str]:
    """Return what accuracy needs no image, where all runs agree, ranks by prompts, and warnings."""
    chances = [run.get("chance") for run in section.runs]
    told = []
    if chances[0] and all(chance == chances[0] for chance in chances):
        told.append(chance_sentence(chances[0]))
    told += prompt_lines(section.runs)
    return told + [
        f"{line} ({run['folder']})" for run in section.runs for line in warning_lines(run)
    ]


def _draw(section: _Section, out: Path, stem: str) -> dict[str, str]:
    """Draw a score of the methods, and over the shares of the training data if there are several.

    Returns:
        What each picture shows by its file name.
    """
    score, label = section.score, score_label(section.score)
    factor, _ = score_unit(score)
    percents = sorted({row["percent"] for row in section.rows})
    points: dict[str, list[tuple[float, float, float]]] = {}
    for name, row in zip(_names(section.rows), section.rows, strict=True):
        mean, spread = row.get(score, math.nan), row.get(f"{score}_sd")
        point = (factor * mean, math.nan if spread is None else factor * spread)
        points.setdefault(name, []).append((row["percent"], *point))
    pictures = {}
    shown = shown_runs(section.runs)
    for percent in percents:
        share = "" if percents == [100] else f", {percent:g} % of the training data"
        at = {name: p[1:] for name, found in points.items() for p in found if p[0] == percent}
        file = f"comparison-{stem}{f'-{percent:g}-percent' if share else ''}.png"
        draw_comparison(out / file, at, label, f"{section.heading}{share}", shown)
        pictures[file] = f"{label} of the methods{share}"
    if any(len(found) > 1 for found in points.values()) and percents[0] > 0:
        file = f"few-shot-{stem}.png"
        draw_few_shot(out / file, points, label, section.heading, shown)
        pictures[file] = f"{label} over the share of the training data"
    return pictures


def _names(rows: Sequence[Row]) -> list[str]:
    """Return names that tell rows apart up to their share of the training data."""
    columns = table_columns(rows)
    names = columns["method"]
    for column in NAME_COLUMNS[1:]:
        label = "" if column == "model" else f"{column} "
        for place, cell in enumerate(columns.get(column, ())):
            if cell != "-":
                names[place] += f", {label}{cell}"
    return names


def _shares(rows: Sequence[Row]) -> list[str]:
    """Return names that tell all rows apart."""
    shares = len({row["percent"] for row in rows}) > 1
    return [
        f"{name}, {share_text(row)}" if shares else name
        for name, row in zip(_names(rows), rows, strict=True)
    ]


def _difference_columns(section: _Section, scores: Sequence[str]) -> dict[str, list[str]]:
    known = {d.score for d in section.differences}
    shown = [score for score in scores if score in known]
    return difference_columns(section.differences, _shares(section.rows), section.rows, shown)


def _run_columns(section: _Section) -> dict[str, list[str]]:
    """Return the single runs with their folders."""
    runs = section.runs
    return {
        "method": [run["method"] for run in runs],
        "model": [run["model"] for run in runs],
        "share": [share_text(run) for run in runs],
        "seed": [str(run["seed"]) for run in runs],
        "best epoch": [str(run.get("best_epoch") or "-") for run in runs],
        score_label(section.score): [score_text(run["after"], section.score) for run in runs],
        "folder": [f"`{run['folder']}`" for run in runs],
    }


def _markdown(columns: dict[str, list[str]]) -> str:
    """Return columns by their headings as a table of Markdown."""
    left = (*NAME_COLUMNS, "difference", "class", "folder")
    marks = ["---" if name in left else "---:" for name in columns]
    escaped = ([cell.replace("|", r"\|") for cell in cells] for cells in columns.values())
    lines = [list(columns), marks, *zip(*escaped, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
