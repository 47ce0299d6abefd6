"""A finished run of ``fastht segment`` or ``classify``, with its model as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastht.data.cases import Task
from fastht.data.images import DataError
from fastht.tasks.images.experiment import ExperimentArguments, build_model
from fastht.tasks.images.run import BEST_NAME, check_tower, read_description
from fastht.tasks.images.supervised import load_trained
from fastht.tasks.models.build import VisionModel
from fastht.tasks.results.finished_runs import read_run
from fastht.tasks.training.state import ResumeError


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder holds.

    Attributes:
        folder: of the run.
        description: as :func:`read_description` returns it.
        arguments: of the run, and of it alone.
        vision: images ``[B, 3, H, W]`` to logits, on the CPU, with the best weights.
        started_from: what results tell of the run whose tower it started from; empty without one.
    """

    folder: Path
    description: Mapping[str, Any]
    arguments: ExperimentArguments
    vision: VisionModel
    started_from: Mapping[str, Any]

    @property
    def task(self) -> Task:
        """What the run learnt."""
        task: Task = self.description["task"]
        return task

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return tuple(self.description["classes"])

    @property
    def model_name(self) -> str:
        """Name of the base and of its weights."""
        return f"{self.arguments.model}/{self.arguments.pretrained}"

    @property
    def temperature(self) -> float | None:
        """That of a classifier, fitted on its validation side; ``None``: the run holds none."""
        try:
            kept = read_run(self.folder).get("calibration", {}).get("after")
        except DataError:  # the run has not come to its end
            return None
        return None if kept is None else kept["temperature"]


def open_run(
    folder: Path, task: Task | None = None, changed: Mapping[str, Any] | None = None
) -> FinishedRun:
    """Return a run with its model.

    Args:
        folder: of the run.
        task: that it has to be of; ``None``: of any.
        changed: options that are to be others than the run's; ``None`` among them change nothing.

    Raises:
        ResumeError: the folder holds no finished run, or one of another task, or the weights that
            it started from have changed.
        ValueError: its model cannot be built.
    """
    description = read_description(folder)
    if task not in (None, description["task"]):
        raise ResumeError(f"{folder} is a run of fastht {description['task']}, not of {task}")
    options = description["options"]
    options["trainer"]["seed"] = description["split_seed"]
    options |= {name: value for name, value in (changed or {}).items() if value is not None}
    made = ExperimentArguments.from_plain(
        options
        | {
            "methods": [description["method"]],
            "percents": [description["percent"]],
            "repeats": 1,
            "out": str(folder),
            "resume": False,
        }
    )
    started_from = check_tower(folder, made, description)
    classes = len(description["classes"])
    vision = build_model(made, description["task"], description["method"], classes)
    load_trained(vision.module, folder / BEST_NAME)
    return FinishedRun(folder, description, made, vision, started_from)
