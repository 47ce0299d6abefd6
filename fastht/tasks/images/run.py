"""One run of an experiment: a method trained with one seed, scored on images it has not seen."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

import fastht
from fastht.checkpoint import save_adapter
from fastht.data.cases import SPLITS, Case, CaseSet, Task
from fastht.data.images import DataError
from fastht.data.layouts import TABLE_OPTIONS
from fastht.data.overlap.remembered import remember
from fastht.data.signature import Entry, case_entries
from fastht.data.splits import few_shot
from fastht.files import write_json
from fastht.tasks.images.class_outcome import fit_on_side, leave_classes
from fastht.tasks.images.experiment import (
    ExperimentArguments,
    build_model,
    make_dataset,
    make_goal,
)
from fastht.tasks.images.intervals import score_intervals
from fastht.tasks.images.outcome import leave_outcome, leave_predictions
from fastht.tasks.images.run_tower import RunTower, read_run_tower
from fastht.tasks.images.supervised import SupervisedTask, load_trained
from fastht.tasks.models.baseline_models import LinearProbe
from fastht.tasks.models.features import BlockFeatures
from fastht.tasks.models.methods import METHODS
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.results.known_images import KNOWN_NAME, judge_copies
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import Shown, shown_cases
from fastht.tasks.results.tables import BEFORE_NAME
from fastht.tasks.scores.native import Tolerances
from fastht.tasks.training.fit_memory import fit_memory, kept_choice, memory_record
from fastht.tasks.training.optimization import ParameterGroup
from fastht.tasks.training.run_files import ADAPTER_NAME
from fastht.tasks.training.seen import SPLIT_NAME, check_data, keep_data
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import STATE_NAME, NonFiniteLossError, Trainer, make_accelerator

RUN_NAME = "run.json"
BEST_NAME = "best.safetensors"
TOWER_DIGEST = "from_run_sha256"  # in the description, of the tower that a run starts from
CURVES_NAME = "curves.png"
# A tower that trains as a whole learns more slowly than its head, as in fastht train.
_TOWER_LR, _TOWER_WARMUP = 0.1, 0.05
# Options that runs of older versions do not have, and what they did.
_LATER: dict[str, Any] = {
    "resize": "squash",
    "tolerance_px": Tolerances.px,
    "tolerance_mm": Tolerances.mm,
    "exclude_origin": [],
    "image_dirs": [],
    "memory_budget": None,
    "largest_batch": False,
    "concept": None,
    "image_key": None,
    "caption_key": None,
    "warmup_steps": None,
    "warmup_epochs": None,
    "from_run": None,
    "lr_schedule": "steps",
    **dict.fromkeys(TABLE_OPTIONS),
}
# Options that do not change what a run computes.
_FREE = ("out", "resume", "methods", "percents", "repeats")


@dataclass(frozen=True)
class Run:
    """What one run is to do.

    Attributes:
        arguments: those of the experiment.
        task: to segment or to classify.
        method: a key of ``METHODS`` or ``BASELINES``.
        percent: share of the training cases.
        seed: of weights, order, dropout, augmentation and the share.
    """

    arguments: ExperimentArguments
    task: Task
    method: str
    percent: float
    seed: int

    @property
    def out(self) -> Path:
        """The folder of the run."""
        share = () if self.arguments.percents == (100.0,) else (f"{self.percent:g}-percent",)
        return self.arguments.out.joinpath(self.method, *share, f"seed-{self.seed}")

    def describe(self, cases: CaseSet) -> dict[str, Any]:
        """Return all that decides the run's numbers, as plain JSON types."""
        options = self.arguments.plain()
        trainer = options["trainer"]
        options["blocks"] = self.arguments.blocks_of(self.method)
        for name in _FREE:
            del options[name]
        for name in ("workers", "checkpoint_steps", "recompute", "seed"):
            del trainer[name]
        return {
            "task": self.task,
            "method": self.method,
            "percent": self.percent,
            "seed": self.seed,
            "split_seed": self.arguments.trainer.seed,
            "classes": list(cases.classes),
            "cases": len(cases),
            "options": options,
        } | ({} if self.tower is None else {TOWER_DIGEST: self.tower.sha256})

    @functools.cached_property
    def tower(self) -> RunTower | None:
        """The tower of another run that this one starts from."""
        arguments = self.arguments
        if arguments.from_run is None or not arguments.starts_from_run(self.method):
            return None
        return read_run_tower(arguments.from_run)


def perform(run: Run, cases: CaseSet, entries: Sequence[Entry] | None = None) -> dict[str, Any]:
    """Train and score; leave everything in the run's folder.

    A run that has come to its end is not repeated but read.

    Args:
        run: what to do.
        cases: with their sides.
        entries: what they are, where the caller has read it already.

    Returns:
        The content of the folder's ``results.json``.

    Raises:
        DataError: an image or mask cannot be read.
        ResumeError: the folder holds a run of other settings, or one that cannot be resumed.
        NonFiniteLossError: no epoch had a finite loss.
    """
    description = run.describe(cases)
    out = run.out
    entries = case_entries(cases) if entries is None else entries
    if begun(out) and (out / SPLIT_NAME).exists():  # older versions kept none
        check_data(out, entries)
    if (done := _finished(out, description)) is not None:
        return done
    started = time.monotonic()
    arguments, method = run.arguments, run.method
    config = replace(arguments.trainer, seed=run.seed)
    accelerator = make_accelerator(config)
    chosen = _training_cases(cases, run)
    config = replace(config, batch_size=_batch_size(config.batch_size, len(chosen), accelerator))
    set_seed(run.seed)  # every process builds the same head
    vision = build_model(arguments, run.task, method, len(cases.classes))
    set_seed(run.seed, device_specific=True)  # dropout differs between processes
    model = vision.module.to(accelerator.device)

    def dataset(side: tuple[Case, ...], training: bool = False) -> Any:
        return make_dataset(
            arguments, run.task, side, vision, cases.classes, seed=run.seed, training=training
        )

    task = SupervisedTask(
        model,
        make_goal(arguments, run.task, cases.classes),
        dataset(chosen, training=True),
        dataset(cases.side("val")),
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
        best_path=out / BEST_NAME,
    )
    resume = (out / STATE_NAME).exists()
    config, choice = fit_memory(
        accelerator, config, task, tower_of(model), kept=kept_choice(out / RUN_NAME, resume)
    )
    task.batch_size = config.batch_size
    if choice is not None:
        accelerator.print(choice.describe(), flush=True)
    test = dataset(cases.side("test"))
    before, judged_before = task.score(test)
    groups = _groups(model)
    trainer = Trainer(
        accelerator,
        config,
        task,
        out,
        _signature(description),
        resume,
        groups=groups,
        warmup_share=_TOWER_WARMUP if groups else 0.0,
    )
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        told = {"fastht_version": fastht.__version__} | memory_record(config, choice)
        write_json(out / RUN_NAME, description | told)
        keep_data(out, entries)
    progress = trainer.fit()
    if progress.best is None:
        raise NonFiniteLossError(
            f"no epoch of {out} had a finite {task.monitor}: there is nothing to keep; lower --lr"
        )
    accelerator.wait_for_everyone()
    load_trained(model, out / BEST_NAME)
    model_name = f"{arguments.model}/{arguments.pretrained}"
    shown = shown_cases(test.cases, model_name, cases.source)
    after, judged = leave_outcome(task, test, cases.classes, out, _title(run), shown)
    of_classes: dict[str, Any] = {}
    if run.task == "classify":
        fitted = fit_on_side(task, dataset(cases.side("val")), "val")
        of_classes = leave_classes(task, judged, cases.classes, fitted, out, _title(run), shown)
    results = {
        "task": run.task,
        "method": method,
        "percent": run.percent,
        "seed": run.seed,
        "model": model_name,
        "data": cases.source,
        **arguments.resize_stated,
        **stated_tower(run),
        "classes": list(cases.classes),
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "train_images": len(chosen),
        "test_images": len(test),
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": sum(row["seconds"] for row in progress.history),
        "before": before,
        "after": after,
        **of_classes,
        **memory_record(config, choice),
    }
    if accelerator.is_main_process:
        remember(out, chosen, among=cases.side("train"))
        _, results[KNOWN_NAME] = judge_copies(out, test.cases, "warn")
        leave_predictions(out / BEFORE_NAME, test, cases.classes, judged_before)
        results["intervals"] = score_intervals(
            task.goal, test.cases, before=judged_before, after=judged
        )
        results["provenance"] = provenance(
            {side: cases.side(side) for side in SPLITS},
            cases.left_out,
            device=accelerator.device,
            seconds=time.monotonic() - started,
            processes=accelerator.num_processes,
            notes=cases.notes,
        )
        learnt = shown_cases([*chosen, *cases.side("val")], model_name, cases.source)
        _leave_training(run, model, task.monitor, progress, learnt)
        write_json(out / RESULTS_NAME, results)
    accelerator.wait_for_everyone()
    return results


def read_description(folder: Path) -> dict[str, Any]:
    """Return what a run's folder says that it is.

    Raises:
        ResumeError: the folder holds no run, or a damaged one.
    """
    try:
        content = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        names = ("task", "method", "percent", "seed", "split_seed", "classes", "options")
        return {name: content[name] for name in names} | {TOWER_DIGEST: content.get(TOWER_DIGEST)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{folder} is no run of fastht segment or classify: {RUN_NAME} cannot be read ({error})"
        ) from error


def begun(out: Path) -> bool:
    """Whether a run's folder holds what starting anew would lose: weights, a state or results."""
    return any((out / name).exists() for name in (STATE_NAME, BEST_NAME, RESULTS_NAME))


def divides_alike(run: Run) -> bool:
    """Whether a run is in its folder already, with the options that decide the sides of its data.

    Raises:
        ResumeError: the folder holds a damaged run.
    """
    if not (begun(run.out) and (run.out / RUN_NAME).exists()):
        return False
    found, now = read_description(run.out), run.arguments
    before = (found["split_seed"], *map(found["options"].get, ("val_fraction", "test_fraction")))
    return before == (now.trainer.seed, now.val_fraction, now.test_fraction)


def _finished(out: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """Return the results of a run that has come to its end with these settings."""
    if not (out / RESULTS_NAME).exists():
        return None
    try:
        found = json.loads((out / RUN_NAME).read_text(encoding="utf-8"))
        results: dict[str, Any] = json.loads((out / RESULTS_NAME).read_text(encoding="utf-8"))
        before = _signature(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(f"{out} holds a damaged run ({error}); give another --out") from error
    now = _signature(json.loads(json.dumps(description)))
    names = [*now, *(before.keys() & _LATER.keys() - now.keys())]
    if differing := [name for name in names if before.get(name) != now.get(name)]:
        raise ResumeError(
            f"{out} holds a run with other settings ({', '.join(differing)}); give another --out"
        )
    return results


def _signature(description: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a run from others, alike for runs of older versions that did the same."""
    flat = _flat(description)
    return {name: value for name, value in flat.items() if _LATER.get(name, ...) != value}


def _flat(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description without nesting, so that what differs can be told by its name."""
    flat: dict[str, Any] = {}
    for name, value in description.items():
        flat |= _flat(value) if isinstance(value, dict) else {name: value}
    return flat


def stated_tower(run: Run) -> dict[str, Any]:
    """Return what results tell of the tower of another run that a run starts from."""
    if run.tower is None:
        return {}
    return {"from_run": str(run.arguments.from_run), "tower": run.tower.record()}


def check_tower(
    folder: Path, arguments: ExperimentArguments, description: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what results tell of the tower that a finished run started from.

    Args:
        folder: of the run.
        arguments: its options.
        description: as :func:`read_description` returns it.

    Raises:
        ResumeError: the tower is no longer what it was.
    """
    kind = (description["task"], description["method"], description["percent"])
    run = Run(arguments, *kind, description["seed"])
    if run.tower is not None and run.tower.sha256 != description[TOWER_DIGEST]:
        raise ResumeError(
            f"the weights in {arguments.from_run} are no longer those that {folder} started from; "
            "put them back, or train anew"
        )
    return stated_tower(run)


def _groups(model: nn.Module) -> list[ParameterGroup]:
    """How a tower that trains as a whole is optimised; its norms and biases do not decay."""
    if not isinstance(model, LinearProbe) or model.frozen:
        return []
    trained = [p for p in model.tower.parameters() if p.requires_grad]
    kinds = {decays: [p for p in trained if (p.ndim > 1) == decays] for decays in (True, False)}
    return [ParameterGroup(held, _TOWER_LR, decays) for decays, held in kinds.items() if held]


def tower_of(model: nn.Module) -> nn.Module | None:
    """Return the vision tower under a head; ``None`` for a model that is none of ours."""
    features = getattr(model, "features", None)
    return features.model if isinstance(features, BlockFeatures) else None


def _training_cases(cases: CaseSet, run: Run) -> tuple[Case, ...]:
    for side in ("train", "val", "test"):
        if not cases.side(side):  # type: ignore[arg-type]
            raise DataError(f"{cases.source}: no case is for {side}; check its splits")
    chosen = cases.side("train")
    return chosen if run.percent == 100 else few_shot(chosen, run.percent, seed=run.seed)


def _batch_size(asked: int, samples: int, accelerator: Accelerator) -> int:
    """Return a batch that few samples fill, divisible among the processes."""
    processes = accelerator.num_processes
    if samples >= asked:
        return asked
    if samples < processes:
        raise ValueError(f"{samples} training images cannot be shared by {processes} processes")
    return samples - samples % processes


def _leave_training(run: Run, model: nn.Module, monitor: str, progress: Any, shown: Shown) -> None:
    """Write the adapter by itself and the picture of the training."""
    from fastht.tasks.results.pictures import draw_learning_curves

    method = METHODS.get(run.method)
    if method is not None and method.variant is not None:
        name = f"{run.arguments.model}/{run.arguments.pretrained}"
        if run.tower is not None:
            name += f" of {run.tower.run.name}"
        tower: Any = model
        save_adapter(tower.features.model, run.out / ADAPTER_NAME, base_model=name)
    label = f"{monitor.removeprefix('val_')}, validation"
    draw_learning_curves(
        run.out / CURVES_NAME,
        progress.history,
        monitor,
        label,
        progress.best_epoch,
        _title(run),
        shown,
    )


def _title(run: Run) -> str:
    share = "" if run.percent == 100 else f", {run.percent:g} % of the training data"
    return f"{run.method} on {Path(run.arguments.data).name}{share}, seed {run.seed}"
