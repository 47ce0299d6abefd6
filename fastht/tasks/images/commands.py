"""``fastht segment train``, ``classify train`` and ``fewshot``: experiments as commands."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path

from fastht.data.cases import Task
from fastht.data.lesions import note_lesions
from fastht.data.signature import case_entries, note_copies
from fastht.files import check_writable
from fastht.tasks.images.experiment import (
    FEW_SHOT_PERCENTS,
    ExperimentArguments,
    check_methods,
    load_split,
)
from fastht.tasks.images.paired import report
from fastht.tasks.images.run import Run, begun, divides_alike, perform
from fastht.tasks.images.run_tower import read_run_tower
from fastht.tasks.results.known_images import judge_copies
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.results.shown import SIMULATED
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import make_accelerator


@dataclass(frozen=True)
class FewShotArguments(ExperimentArguments):
    """Train on small shares of the training data; compare methods and shares.

    Attributes:
        task: "segment" or "classify".
    """

    task: Task = "classify"
    percents: tuple[float, ...] = FEW_SHOT_PERCENTS
    out: Path = Path("runs/fewshot")


def train(task: Task, arguments: ExperimentArguments) -> int:
    """Do all runs of an experiment and compare them.

    Raises:
        DataError: the data cannot be used.
        ResumeError: ``out`` holds an experiment already and ``resume`` is off, or runs of others.
        NonFiniteLossError: a loss is not finite.
        ValueError: an argument is out of range, or a model unknown.
    """
    check_methods(arguments.methods, task)
    if arguments.from_run is not None:
        of_run = read_run_tower(arguments.from_run).arguments
        arguments = replace(arguments, model=of_run["model"], pretrained=of_run["pretrained"])
    first = arguments.trainer.seed
    runs = [
        Run(arguments, task, method, percent, first + repeat)
        for method in arguments.methods
        for percent in arguments.percents
        for repeat in range(arguments.repeats)
    ]
    out = arguments.out
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    check_writable(out)
    if not arguments.resume and (held := next((run.out for run in runs if begun(run.out)), None)):
        raise ResumeError(f"{held} is there already: add --resume, or give another --out")
    cases = load_split(arguments, task, [run.out for run in runs if divides_alike(run)])
    if task == "segment":
        lesions = note_lesions(cases, arguments.image_size, arguments.resize)
        cases = replace(cases, notes=(*cases.notes, *lesions))
    entries = case_entries(cases)
    cases = replace(cases, notes=(*cases.notes, *note_copies(entries)))
    accelerator = make_accelerator(arguments.trainer)  # the processes of all runs
    say = functools.partial(accelerator.print, flush=True)
    say(cases.account())
    if arguments.data == "sample":
        say(SIMULATED)
    if arguments.pretrained == "none":
        say("The base has RANDOM weights: it shows that things work, not how well.")
    if arguments.from_run is not None:
        say(f"The image tower is that of {arguments.from_run}, with what it trained.")
        judge_copies(arguments.from_run, cases.side("test"), "warn", say)
    for number, run in enumerate(runs, 1):
        share = "" if run.percent == 100 else f", {run.percent:g} % of the training data"
        say(f"\nrun {number} of {len(runs)}: {run.method}{share}, seed {run.seed} -> {run.out}")
        perform(run, cases, entries)
    if accelerator.is_main_process:
        print()
        report(ReportArguments((out,), out))
    accelerator.end_training()
    return 0


def fewshot(arguments: FewShotArguments) -> int:
    """Do an experiment over shares of the training data; see :func:`train`."""
    options = {f.name: getattr(arguments, f.name) for f in fields(ExperimentArguments)}
    return train(arguments.task, ExperimentArguments(**options))
