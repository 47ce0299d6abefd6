"""What a finished run tells on a model card: its data, its scores with intervals, its limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastht.hub.card import public_name
from fastht.tasks.results.finished_runs import read_options
from fastht.tasks.results.known_images import KNOWN_NAME
from fastht.tasks.results.tables import (
    Run,
    interval_text,
    score_digits,
    score_label,
    score_text,
    score_unit,
    scores_of,
    summarise,
)

_HEADS = {"segment": "decoder", "classify": "classifier"}
_SIMULATED = (
    "**These images are SIMULATED**: they were made by a program, no patient was examined, and "
    "nothing clinical follows from the scores."
)


def about_run(run: Run) -> str:
    """Return sections of a model card, as Markdown, without a path of the machine or a patient.

    Args:
        run: its ``results.json`` with its ``folder``, as ``read_run`` returns it.
    """
    return "\n\n".join(
        [
            "## Training",
            _listed(_training(run)),
            "## Data",
            _listed(_data(run)),
            "## Scores",
            _scores(run),
        ]
    )


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _training(run: Run) -> list[str]:
    name = public_name(run["model"])
    lines = [f"Task: {run['task']}; method: {run['method']}; seed {run['seed']}."]
    lines.append(f"Base model: `{name}`.")
    if str(name).endswith("/none"):
        lines.append("**The weights of the base are random ones**: it was never trained.")
    if run.get("trainable_parameters") is not None:
        lines.append(f"{run['trainable_parameters']:,} parameters trained.")
    if "best_epoch" in run and "epochs" in run:
        lines.append(
            f"Epoch {run['best_epoch']} of {run['epochs']} was kept, by its score on held-out "
            "images."
        )
    if settings := _settings(Path(run["folder"])):
        lines.append(f"Settings: {settings}.")
    if run["task"] in _HEADS:
        lines.append(
            f"The {_HEADS[run['task']]} that trained with the adapters is not in this repository: "
            "the scores are of both together."
        )
    return lines


def _settings(folder: Path) -> str:
    """Return the trainer's settings: of the others some name folders and columns."""
    trainer = read_options(folder).get("trainer", {})
    return ", ".join(f"{key} {value}" for key, value in trainer.items() if value is not None)


def _data(run: Run) -> list[str]:
    name = PurePosixPath(PureWindowsPath(str(run["data"])).as_posix()).name
    lines = [f"Data: `{name}`."]
    if run["data"] == "sample":
        lines.append(_SIMULATED)
    if classes := run.get("classes"):
        lines.append(f"Classes: {', '.join(map(str, classes))}.")
    if run["percent"] != 100:
        lines.append(f"Trained on {run['percent']:g} % of the training side.")
    known = run.get("provenance")
    if known is None:
        counts = ("train_images", "test_images", "train_samples", "held_out_samples")
        found = [f"{run[n]:,} {n.replace('_', ' ')}" for n in counts if run.get(n) is not None]
        return [*lines, f"{', '.join(found) or 'How many images is not recorded'}."]
    lines += [_side(name, side) for name, side in known["split"].items()]
    if left_out := known["left_out"]:
        lines.append(f"Left out: {', '.join(f'{n:,} {reason}' for reason, n in left_out.items())}.")
    crossing = known["patients_on_several_sides"]
    if crossing is None:
        lines.append(
            "No patient is named in the data: images of one patient may be on several sides."
        )
    elif crossing:
        lines.append(f"**WARNING: {crossing:,} patients are on several sides of the split.**")
    else:
        lines.append("No patient is on several sides of the split.")
    told = run.get(KNOWN_NAME) or {}
    copies = sum(count for kind, count in told.items() if kind not in ("perhaps", "left_out"))
    if copies > told.get("left_out", 0):
        lines.append(f"**WARNING: {copies:,} scored images are copies of training images.**")
    return lines


def _side(name: str, side: Mapping[str, Any]) -> str:
    text = f"{name}: {side['images']:,} images"
    text += f" of {side['patients']:,} patients" if side["patients"] else ""
    if classes := side["classes"]:
        text += f" ({', '.join(f'{count:,} {label}' for label, count in classes.items())})"
    return f"{text}."


def _scores(run: Run) -> str:
    row = summarise([run])[0]
    intervals = run.get("intervals", {})
    table = ["| score | base | adapted | difference |", "|---|---|---|---|"]
    for name in scores_of([row]):
        before = score_text(row, f"{name}_before")
        cells = (
            score_label(name),
            before,
            score_text(row, name),
            _difference(row, name, intervals),
        )
        table.append(f"| {' | '.join(cells)} |")
    if "note" in intervals:
        note = f"[low, high]: {intervals['note']}"
    else:
        note = "There are no intervals: the run was made by a version of fastht that wrote none."
    side = "the held-out side" if run["task"] == "contrastive" else "the test side"
    lines = [f"Of the images of {side}.", "\n".join(table), note]
    if run["task"] == "contrastive":
        lines.append(
            "The epoch that was kept was chosen on this side too, which makes the scores of the "
            "adapted model somewhat too good."
        )
    return "\n\n".join(lines)


def _difference(row: Run, name: str, intervals: Mapping[str, Any]) -> str:
    """Return what a score gained, where the run compared both versions image by image."""
    ends = intervals.get("difference", {}).get(name)
    if ends is None:
        return "-"
    factor, digits = score_unit(name)[0], score_digits(name)
    gained = factor * (row[name] - row[f"{name}_before"])
    return f"{gained:+.{digits}f}" + interval_text(ends[0], ends[1], factor, digits, "+")
