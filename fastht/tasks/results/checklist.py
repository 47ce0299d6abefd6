"""What a study's report has to say, as far as runs know it; the rest as questions to its authors.

The topics are those of CLAIM 2024 (Checklist for Artificial Intelligence in Medical Imaging,
Tejani et al., Radiology: Artificial Intelligence 2024) and TRIPOD+AI (Collins et al., BMJ 2024), in
words of our own, with the numbers of TRIPOD+AI's items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastht.tasks.results.class_tables import calibration_lines
from fastht.tasks.results.finished_runs import read_options
from fastht.tasks.results.tables import (
    Row,
    Run,
    score_label,
    scores_of,
    table_columns,
)
from fastht.version import __version__

CHECKLIST_NAME = "checklist.md"
_OPEN = "- [ ] "
_UNKNOWN = "Not recorded: the run was made by a version of fastht that did not."
_INTRODUCTION = """\
A draft for the authors, filled in by fastht {version}. The topics follow CLAIM 2024 and TRIPOD+AI
in words of our own; numbers are of TRIPOD+AI's items. Neither group has endorsed this page, and it
replaces neither checklist: journals want these themselves. Lines without a box are what the runs
know; lines with an empty box are questions that only the authors can answer."""


@dataclass(frozen=True)
class _Study:
    """The runs of one task and data set, and their rows."""

    runs: Sequence[Run]
    rows: Sequence[Row]

    def values(self, name: str) -> list[Any]:
        """Return what the runs say of something, each answer once."""
        found = [run[name] for run in self.runs if run.get(name) is not None]
        return _different(found)

    def provenance(self, name: str) -> list[Any]:
        """Return what the runs recorded of where they come from, each answer once."""
        found = [run["provenance"][name] for run in self.runs if "provenance" in run]
        return _different(found)


def checklist(
    headings: Sequence[str], groups: Sequence[Sequence[Run]], rows: Sequence[Sequence[Row]]
) -> str:
    """Return the page as Markdown.

    Args:
        headings: of the sections of a report.
        groups: the runs of each section, with their folders.
        rows: the rows of each section.
    """
    page = ["# Reporting checklist", _INTRODUCTION.format(version=__version__)]
    for heading, runs, own in zip(headings, groups, rows, strict=True):
        study = _Study(runs, own)
        page.append(f"## {heading}")
        for title, known, questions in _TOPICS:
            lines = [f"- {line}" for line in known(study)] if known else []
            page.append(f"### {title}")
            page.append("\n".join([*lines, *(_OPEN + question for question in questions)]))
    return "\n\n".join(page) + "\n"


def _different(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _data(study: _Study) -> list[str]:
    lines = [f"Data: {_listed(study.values('data'))}."]
    if study.values("data") == ["sample"]:
        lines.append("These images are SIMULATED: nothing clinical follows from them.")
    if trained := study.values("trained_on"):
        lines.append(
            f"Some models were trained on {_listed(trained)} and are tested here. Whether that is "
            "external data depends on where both come from."
        )
    return lines


def _exclusions(study: _Study) -> list[str]:
    found = study.provenance("left_out")
    if not found:
        return [_UNKNOWN]
    return [
        "Left out by the software: "
        + (", ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "none")
        + "."
        for counts in found
    ]


def _sides(study: _Study) -> list[str]:
    found = study.provenance("split")
    if not found:
        return [f"{_count(name, study)}." for name in ("train_images", "test_images")]
    lines = []
    for split in found:
        for name, side in split.items():
            patients = side["patients"]
            text = f"{name}: {side['images']:,} images"
            text += f" of {patients:,} patients" if patients else ", no patient is named"
            if patients and side["without_patient"]:
                text += f" ({side['without_patient']:,} images without)"
            if classes := side.get("classes"):
                text += "; " + ", ".join(f"{n:,} {label}" for label, n in classes.items())
            lines.append(f"{text}.")
    if shares := [row["percent"] for row in study.rows if row["percent"] != 100]:
        used = _listed(f"{share:g} %" for share in _different(shares))  # type: ignore[arg-type]
        lines.append(f"Runs with {used} trained on that share of every class of the train side.")
    return _different(lines)


def _count(name: str, study: _Study) -> str:
    counts = study.values(name)
    return f"{name.replace('_', ' ')}: {_listed(counts) or 'not recorded'}"


def _partition(study: _Study) -> list[str]:
    if not study.provenance("split"):
        return [_UNKNOWN]
    crossing = study.provenance("patients_on_several_sides")
    known = [value for value in crossing if value is not None]
    lines = []
    if None in crossing:
        lines.append(
            "No patient is named: images were split one by one, and images of one patient may be "
            "on several sides."
        )
    if any(known):
        lines.append(f"WARNING: {max(known)} patients are on several sides of the split.")
    elif known:
        lines.append("Split by patient: none is on several sides of what the runs were given.")
    return lines


def _model(study: _Study) -> list[str]:
    lines = [
        f"{row['method']}: {row['model']}"
        + (
            f", {row['trainable_parameters']:,} parameters train"
            if row.get("trainable_parameters") is not None
            else ""
        )
        + "."
        for row in study.rows
    ]
    if any(str(model).endswith("/none") for model in study.values("model")):
        lines.append("Weights of the base (after the slash) that are none: RANDOM ones.")
    return _different(lines)


def _training(study: _Study) -> list[str]:
    lines = []
    for settings in _different([_settings(Path(run["folder"])) for run in study.runs]):
        if settings:
            lines.append(f"Settings: {settings}.")
    return lines or ["Nothing was trained here, or its settings are not in the folder."]


def _settings(folder: Path) -> str:
    """Return the settings of a run's folder, but for what tells its repeats apart."""
    flat: dict[str, Any] = {}
    for key, value in read_options(folder).items():
        flat |= value if isinstance(value, dict) else {key: value}
    return ", ".join(
        f"{key} {value}"
        for key, value in flat.items()
        if value is not None and key not in ("out", "resume", "seed", "fastht_version")
    )


def _selection(study: _Study) -> list[str]:
    epochs = [run for run in study.runs if run.get("best_epoch") is not None]
    return [
        f"{run['method']}, seed {run['seed']}: the epoch with the best held-out score, "
        f"{run['best_epoch']} of {run['epochs']}; "
        + (
            "the scores are of the same side, and somewhat too good by that."
            if run["task"] == "contrastive"
            else "never the test side."
        )
        for run in epochs
        if "epochs" in run
    ] or ["No epoch was chosen in these runs."]


def _seeds(study: _Study) -> list[str]:
    lines = []
    for row in study.rows:
        share = "" if row["percent"] == 100 else f", {row['percent']:g} % of the training data"
        runs = "1 run" if row["seeds"] == 1 else f"{row['seeds']} runs with different seeds"
        lines.append(f"{row['method']}{share}: {runs}.")
    return [*lines, f"Seeds: {_listed(study.values('seed'))}."]


def _software(study: _Study) -> list[str]:
    if not study.provenance("fastht"):
        return [_UNKNOWN]
    return [
        f"fastht {_listed(study.provenance('fastht'))}, torch {_listed(study.provenance('torch'))}"
        f", Python {_listed(study.provenance('python'))}, {_listed(study.provenance('system'))}."
    ]


def _hardware(study: _Study) -> list[str]:
    known = [run["provenance"] for run in study.runs if "provenance" in run]
    lines = _different([f"{found['hardware']} ({found['device']})" for found in known])
    if not lines:
        return [_UNKNOWN]
    times = [
        f"{run['method']}, seed {run['seed']}: {run['provenance']['seconds']:.0f} s in all"
        + (f", {run['seconds']:.0f} s of training" if "seconds" in run else "")
        + f", {run['provenance']['processes']} process(es)."
        for run in study.runs
        if "provenance" in run
    ]
    return [f"{_listed(lines)}.", *times]


def _measures(study: _Study) -> list[str]:
    names = [score_label(name) for name in scores_of(study.rows) if "/" not in name]
    notes = _different(
        [r["intervals"]["note"] for r in study.runs if "note" in r.get("intervals", {})]
    )
    return [f"Measures: {_listed(names)}.", *notes]


def _calibration(study: _Study) -> list[str]:
    lines = []
    for run in study.runs:
        after = {k: v for k, v in run.get("calibration", {}).items() if k == "after"}
        lines += [f"{run['method']}, seed {run['seed']}: {x}." for x in calibration_lines(after)]
    return lines or ["No measure of calibration is among the scores."]


def _results(study: _Study) -> list[str]:
    columns = table_columns(study.rows, [n for n in scores_of(study.rows) if "/" not in n])
    names = list(columns)
    return [
        "; ".join(f"{name} {cells[i]}" for name, cells in columns.items() if cells[i] != "-")
        for i in range(len(columns[names[0]]))
    ]


def _failures(study: _Study) -> list[str]:
    lines = []
    for run in study.runs:
        folder = Path(run["folder"])
        found = [n for n in ("predictions.csv", "overlays.png", "roc.png") if (folder / n).exists()]
        if found:
            lines.append(f"{run['method']}, seed {run['seed']}: {_listed(found)} in `{folder}`.")
    return lines or ["The runs left no entries of single images."]


Known = Callable[[_Study], list[str]]
_TOPICS: tuple[tuple[str, Known | None, tuple[str, ...]], ...] = (
    (
        "Purpose and setting (TRIPOD+AI 1-4)",
        None,
        (
            "Which clinical question does the model answer, for whom, and where in their care?",
            "Does the study develop a model, evaluate one, or both?",
            "Which differences in care between groups of patients are known?",
        ),
    ),
    (
        "Sources of data (TRIPOD+AI 5, 6)",
        _data,
        (
            "Where, when and how were the images collected, prospectively or not?",
            "Who was eligible, and how were patients found?",
            "Which scanners, probes and settings acquired the images?",
            "How were the images made anonymous, and is text burnt into them?",
        ),
    ),
    (
        "Exclusions and missing data (TRIPOD+AI 11, 20)",
        _exclusions,
        ("Who was excluded before the software saw the data, and why?",),
    ),
    (
        "Numbers of each side (TRIPOD+AI 10, 20, 21)",
        _sides,
        ("How was the size of the study chosen?",),
    ),
    ("Patients on each side of the split (TRIPOD+AI 12)", _partition, ()),
    (
        "Characteristics of the patients (TRIPOD+AI 20)",
        None,
        ("How old were they, of which sex and ethnicity, how ill, on each side of the split?",),
    ),
    (
        "Reference standard (TRIPOD+AI 8)",
        None,
        (
            "What are labels or masks based on (pathology, follow-up, readers), and why?",
            "Who annotated, with which experience and tools, blind to what?",
            "How well did annotators agree?",
        ),
    ),
    (
        "Preparation of images and training (TRIPOD+AI 7, 12)",
        _training,
        ("What was done to the images before the software read them?",),
    ),
    (
        "Model (TRIPOD+AI 12, 22)",
        _model,
        ("Where do the base's weights come from, trained on what?",),
    ),
    ("Choice of the final model (TRIPOD+AI 12)", _selection, ()),
    ("Repeats (TRIPOD+AI 12)", _seeds, ()),
    (
        "Measures and their uncertainty (TRIPOD+AI 12)",
        _measures,
        (
            "Which measure was chosen as the main one before the results were known?",
            "How many comparisons were made, and was that corrected for?",
        ),
    ),
    (
        "Imbalance and fairness (TRIPOD+AI 13, 14)",
        None,
        (
            "Was the imbalance of classes dealt with, and are probabilities calibrated after that?",
            "How good is the model in groups of patients, such as by sex, age and site?",
        ),
    ),
    ("Calibration (TRIPOD+AI 12, 23)", _calibration, ()),
    ("Results with intervals (TRIPOD+AI 23)", _results, ()),
    (
        "Robustness and external data (TRIPOD+AI 12, 23)",
        None,
        (
            "Was the model tested on patients of other sites, and how do they differ?",
            "Which changes of scanner, prompt or setting change the results?",
            "What shows what the model looks at?",
        ),
    ),
    (
        "Failures (CLAIM: analysis of failed cases)",
        _failures,
        ("Which cases fail, and what do they have in common?",),
    ),
    ("Software", _software, ()),
    ("Hardware and time", _hardware, ()),
    (
        "Interpretation (TRIPOD+AI 25-27)",
        None,
        (
            "What are the limitations, the likely biases among them?",
            "What do the results mean for practice, and what would be needed to use the model?",
        ),
    ),
    (
        "Ethics and openness (TRIPOD+AI 17-19)",
        None,
        (
            "Which board approved the study, and how was consent dealt with?",
            "Who funded it, and which interests do the authors have?",
            "Where are protocol and registration, data, code and weights?",
            "How were patients and the public involved?",
        ),
    ),
)
