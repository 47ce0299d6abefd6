"""``fastht segment eval`` and ``classify eval``: a finished run scored again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import fill
from typing import Annotated, Any, Literal

import tyro

from fastht.data.cases import Case, CaseSet, Task
from fastht.data.images import DataError
from fastht.data.lesions import note_lesions
from fastht.data.resize import Resize
from fastht.data.signature import case_entries
from fastht.data.source import DataSource
from fastht.files import write_json
from fastht.tasks.images.class_outcome import Fitted, fit_on_side, leave_classes, refit
from fastht.tasks.images.experiment import (
    ExperimentArguments,
    load_split,
    make_dataset,
    make_goal,
)
from fastht.tasks.images.finished import open_run
from fastht.tasks.images.intervals import score_intervals
from fastht.tasks.images.outcome import leave_outcome
from fastht.tasks.images.run import BEST_NAME
from fastht.tasks.images.supervised import SupervisedTask
from fastht.tasks.results.class_tables import class_report
from fastht.tasks.results.finished_runs import RESULTS_NAME, read_run
from fastht.tasks.results.known_images import KNOWN_NAME, Copies, judge_copies
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import shown_cases
from fastht.tasks.results.tables import WIDTH, summarise, text_table
from fastht.tasks.training.seen import SPLIT_NAME, check_data, count_trained
from fastht.tasks.training.trainer import make_accelerator


@dataclass(frozen=True)
class EvalArguments(DataSource):
    """Score a run again, on its own held-out images or on those of another data set.

    Attributes:
        run: folder of one run, such as runs/experiment/ht/seed-0.
        data: "run" (that of the run), "sample", a folder, or a CSV or TSV table.
        split: side to score; default: test where the data comes with one, or is the run's; else
            all of it.
        copies: images that are copies of those that the run trained on: warn or leave-out.
        batch_size: images at a time.
        workers: processes that load images.
        precision: of the forward pass.
        resize: squash or letterbox; default: as the run was trained.
        tolerance_px: of the normalised surface Dice in pixels; default: that of the run.
        tolerance_mm: likewise in millimetres.
        out: folder of the results; default: eval-NAME in the run's folder.
    """

    run: Annotated[Path, tyro.conf.Positional] = field(kw_only=True)
    data: str = "run"
    split: Literal["train", "val", "test", "all"] | None = None
    copies: Copies = "warn"
    batch_size: int = 32
    workers: int = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    resize: Resize | None = None
    tolerance_px: float | None = None
    tolerance_mm: float | None = None
    out: Path | None = None


def evaluate(task: Task, arguments: EvalArguments) -> int:
    """Score a finished run on a data set and leave tables and pictures.

    Raises:
        DataError: the data cannot be used, or has other classes than the run.
        ResumeError: the folder holds no finished run of this task.
    """
    started = time.monotonic()
    folder = arguments.run
    changed = ("resize", "tolerance_px", "tolerance_mm")
    run = open_run(folder, task, {name: getattr(arguments, name) for name in changed})
    description, made, vision, classes = run.description, run.arguments, run.vision, run.classes
    cases, side = _cases_to_score(arguments, made, task)
    trained = 0 if arguments.data == "run" else count_trained(folder, side)
    if task == "segment":
        lesions = note_lesions(side, made.image_size, made.resize)
        cases = replace(cases, notes=(*cases.notes, *lesions))
    accelerator = make_accelerator(replace(made.trainer, precision=arguments.precision))
    side, known = judge_copies(folder, side, arguments.copies, accelerator.print)
    data = make_dataset(made, task, side, vision, classes)
    name = Path(cases.source).stem
    out = arguments.out or folder / f"eval-{name}"
    scored = SupervisedTask(
        vision.module.to(accelerator.device),
        make_goal(made, task, classes),
        data,
        data,
        accelerator,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        best_path=folder / BEST_NAME,
    )
    if accelerator.is_main_process:
        print(f"{cases.account()}\n{len(data)} of them are scored.{_known(trained)}", flush=True)
    model_name = run.model_name
    title, shown = f"{description['method']} on {name}", shown_cases(side, model_name, cases.source)
    scores, judged = leave_outcome(scored, data, classes, out, title, shown)
    of_classes: dict[str, Any] = {}
    if task == "classify":

        def fit(validation: tuple[Case, ...]) -> Fitted:
            return fit_on_side(scored, make_dataset(made, task, validation, vision, classes), "val")

        own = arguments.data in ("run", made.data)
        fitted = _temperature(
            folder, load_split(made, task, [folder]).side("val") if own else (), side, fit
        )
        of_classes = leave_classes(scored, judged, classes, fitted, out, title, shown)
    results = {
        "task": task,
        "method": description["method"],
        "percent": description["percent"],
        "seed": description["seed"],
        "model": model_name,
        "data": cases.source,
        "trained_on": made.data,
        "scored_that_trained": trained,
        **made.resize_stated,
        **run.started_from,
        "classes": list(classes),
        "test_images": len(data),
        KNOWN_NAME: known,
        "before": {},
        "after": scores,
        **of_classes,
    }
    if accelerator.is_main_process:
        results["intervals"] = score_intervals(scored.goal, side, after=judged)
        results["provenance"] = provenance(
            {"scored": side},
            cases.left_out,
            device=accelerator.device,
            seconds=time.monotonic() - started,
            processes=accelerator.num_processes,
            notes=cases.notes,
        )
        write_json(out / RESULTS_NAME, results)
        note = fill(f"[low, high]: {results['intervals']['note']}", WIDTH)
        print(f"\n{text_table(summarise([results]))}\n{note}")
        if told := class_report(results):
            print(f"\n{told}")
        print(f"\nresults and pictures: {out}")
    accelerator.end_training()
    return 0


def _known(trained: int | None) -> str:
    """Say how many of the images the run has seen in training."""
    if trained is None:
        return "\nNOTE: the run is of an older version; whether it trained on them is not known."
    if not trained:
        return ""
    return f"\nNOTE: {trained} of them trained this run: their scores say nothing of new images."


def _temperature(
    folder: Path,
    validation: tuple[Case, ...],
    side: tuple[Case, ...],
    fit: Callable[[tuple[Case, ...]], Fitted],
) -> Fitted:
    """Return a run's temperature: never one of images that are scored.

    Args:
        folder: of the run.
        validation: its validation side, if this is the run's data set.
        side: what is scored.
        fit: fits a temperature.
    """
    if {case.image for case in validation} & {case.image for case in side}:
        return Fitted(None, "no temperature: the run's was fitted on images that are scored here")
    try:
        kept = read_run(folder).get("calibration", {}).get("after")
    except DataError:  # the run has not come to its end
        kept = None
    if kept is not None:
        return refit(kept)
    if validation:  # an older version trained the run
        return fit(validation)
    return Fitted(None, "no temperature: the run holds none, and its validation side is not here")


def _cases_to_score(
    arguments: EvalArguments, made: ExperimentArguments, task: Task
) -> tuple[CaseSet, tuple[Case, ...]]:
    """Return the data set and the cases of it that are scored."""
    own = arguments.data == "run"
    cases = load_split(made, task, [arguments.run]) if own else arguments.load(task)
    if own and (arguments.run / SPLIT_NAME).exists():
        check_data(arguments.run, case_entries(cases))
    split = arguments.split or ("test" if own or cases.side("test") else "all")
    chosen = cases.cases if split == "all" else cases.side(split)
    if not chosen:
        raise DataError(f"{cases.source}: no case is on the side {split}; choose another --split")
    return cases, chosen
