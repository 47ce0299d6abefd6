"""``fastht probe``: classes told apart by logistic regression on frozen features."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import fastht
from fastht.data.account import one_class
from fastht.data.cases import SPLITS, Case, CaseSet, Split, split_part
from fastht.data.images import DataError
from fastht.data.source import DataSource
from fastht.data.splits import few_shot, k_shot, sample_sides, split_cases
from fastht.tasks.image_text.judged_cases import labelled_data, load_labelled, prediction_rows
from fastht.tasks.image_text.judged_records import (
    JudgedModel,
    Opened,
    choose_folder,
    leave_copies,
    open_model,
)
from fastht.tasks.image_text.probe_features import (
    Features,
    baseline_features,
    own_features,
    parse_baseline,
)
from fastht.tasks.image_text.run import ClipRun, file_key
from fastht.tasks.images.intervals import resample_cases
from fastht.tasks.images.paired import report
from fastht.tasks.results.comparison import write_comparison
from fastht.tasks.results.known_images import KNOWN_NAME
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.results.shown import SIMULATED
from fastht.tasks.results.tables import PREDICTIONS_NAME, write_table
from fastht.tasks.scores.classification import (
    chance_accuracy,
    classification_scores,
    prediction_warnings,
    resampled,
)
from fastht.tasks.scores.intervals import Resampling
from fastht.tasks.scores.logistic_probe import (
    STRENGTHS,
    Probe,
    choose_inside,
    choose_on,
    fit_probe,
)

_AT_LEAST = 2  # images of a class that a share takes, of a class that has them


@dataclass(frozen=True)
class ProbeArguments(JudgedModel, DataSource):
    """Learn logistic regressions on frozen image features, with all training images or few.

    Of a run before and after, of a model, and of baselines, all on the same images; in the end the
    report compares them in pairs. Images that the run trained on are never scored.

    Attributes:
        data: "run" (the sample, if the run trained on it or there is no run), "sample", a folder,
            or a CSV or TSV table.
        baselines: more models, as NAME or NAME:WEIGHTS: of open_clip (ViT-B-32:openai), hf-hub: and
            local-dir:, "biomedclip", timm:NAME.
        percents: shares of the training images, of every class alike, at least two images.
        shots: training images of each class, e.g. 1 2 4 8 16.
        repeats: draws of each share below 100 and of each number of shots, with the seeds that
            follow --seed.
        seed: of the split and of the first draw.
        strengths: values of C to choose from; one of them is taken as it is.
        choose_c: by what, where few images train: cross-validation inside those, or the whole
            validation side, as published, which is many more images than the shots. With all
            training images it is the validation side.
        val_fraction: share of the data that C is chosen by, where it comes without such a split.
        test_fraction: share of the data that is scored, likewise. Where the data is the run's own,
            that is what the run held out.
    """

    data: str = "run"
    baselines: tuple[str, ...] = ()
    percents: tuple[float, ...] = (100.0,)
    shots: tuple[int, ...] = ()
    repeats: int = 5
    seed: int = 0
    strengths: tuple[float, ...] = STRENGTHS
    choose_c: Literal["inside", "val"] = "inside"
    val_fraction: float = 0.1
    test_fraction: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.percents and not self.shots:
            raise ValueError("nothing to learn from: give --percents or --shots")
        if not all(0 < p <= 100 for p in self.percents) or not all(k > 0 for k in self.shots):
            raise ValueError("choose percents above 0 and at most 100, and shots at least 1")
        if self.repeats < 1 or self.seed < 0:
            raise ValueError("choose repeats at least 1, and seed 0 or more")
        if not self.strengths or not all(c > 0 for c in self.strengths):
            raise ValueError(f"strengths are {list(self.strengths)}; give some, all above 0")
        if not (self.val_fraction > 0 < self.test_fraction) or (
            self.val_fraction + self.test_fraction >= 1
        ):
            raise ValueError("choose val_fraction and test_fraction above 0 and below 1 together")
        for name in self.baselines:
            parse_baseline(name)


@dataclass(frozen=True)
class _Task:
    """The images of all probes.

    Attributes:
        cases: those of the sides, of which every feature has a row.
        classes: all labels.
        known: what results tell of copies of the run's training images.
        told: what results tell of the data.
    """

    cases: CaseSet
    classes: tuple[str, ...]
    known: dict[str, Any] | None
    told: dict[str, Any]

    def rows(self, cases: Sequence[Case]) -> Tensor:
        """Return the rows of some cases."""
        places = {case: row for row, case in enumerate(self.cases)}
        return torch.tensor([places[case] for case in cases])

    def labels(self, cases: Sequence[Case]) -> Tensor:
        """Return the class indices of some cases."""
        return torch.tensor([self.classes.index(str(case.label)) for case in cases])


@dataclass(frozen=True)
class _Draw:
    """Training images that a probe learns from."""

    folder: str
    percent: float
    shots: int | None
    seed: int
    cases: tuple[Case, ...]

    @property
    def whole(self) -> bool:
        """Whether it is all training images."""
        return self.percent == 100 and self.shots is None


def probe(arguments: ProbeArguments) -> int:
    """Learn and score probes, leave a folder for each and a report on all.

    Raises:
        DataError: the data cannot be used, or a side of it has no image.
        ResumeError: the run's weights cannot be read.
        ValueError: the run or a model cannot be had, or ``out`` holds something already.
    """
    opened = open_model(arguments)
    data = labelled_data(arguments.data, arguments.trainer, opened)
    out = choose_folder("probe", arguments, data)
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something already; give another --out")
    found = load_labelled(arguments, data, opened)
    if len(found.classes) < 2:
        raise DataError(one_class(found))
    task = _make_task(found, opened, arguments, data)
    draws = list(_draws(task.cases.side("train"), arguments))
    print(task.cases.account())
    if data == "sample":
        print(SIMULATED)
    for line in dict.fromkeys(line for draw in draws for line in _too_few(draw, task)):
        print(f"NOTE: {line}")
    made = resample_cases(task.cases.side("test"))
    for number, features in enumerate(_sources(opened.clip, task, arguments)):
        base = features.told["model"]
        print(f"{base}: {next(iter(features.versions.values())).shape[1]} features", flush=True)
        for draw in draws:
            folder = out / f"{number}-{features.folder}" / draw.folder / f"seed-{draw.seed}"
            _perform(folder, features, draw, task, arguments, made)
    print()
    return report(ReportArguments((out,), out))


def _sources(clip: ClipRun, task: _Task, arguments: ProbeArguments) -> Iterator[Features]:
    """Yield the features of one model after the other: towers need not be held together."""
    yield own_features(clip, task.cases.cases, arguments)
    for name in arguments.baselines:
        yield baseline_features(name, task.cases.cases, arguments)


def _make_task(found: CaseSet, opened: Opened, arguments: ProbeArguments, data: str) -> _Task:
    """Divide the data; what the run trained on, or copies of it, is neither scored nor chosen by.

    Raises:
        DataError: a side is empty, or one class alone trains.
    """
    clip, trainer = opened.clip, arguments.trainer
    sides, of_run = found, False
    if trainer is not None and opened.is_trained_on(data):
        of_run = not any(case.split for case in found)
    seed = arguments.seed
    if of_run:
        sides = _sides_of_run(found, clip)
        # By the run's own seed, whoever is nearest to validation was held out of it.
        seed += 1 + int(opened.trained.get("trainer", {}).get("seed", 0))
    fractions = (
        1 - arguments.val_fraction - arguments.test_fraction,
        arguments.val_fraction,
        arguments.test_fraction,
    )
    kept: dict[str, Split] | None = None
    if data == "sample" and not of_run:
        kept = sample_sides(found, fractions, arguments.seed)
    divided = split_cases(sides, fractions, seed=seed, kept=kept)
    judged = [c for c in divided if c.split != "train"]
    # The run's own training images are divided anew: C is chosen by some of them.
    unseen = [c for c in judged if not clip.trained_on(c.image) or (of_run and c.split == "val")]
    test = [c for c in unseen if c.split == "test"]
    if not test:
        raise DataError(
            f"{found.source}: {trainer} trained on all images that would be scored; "
            "give others by --data"
        )
    scored, known = leave_copies(arguments, clip, test, (case.image for case in found))
    left = Counter({"the run trained on": len(judged) - len(unseen)})
    left["copies of what the run trained on"] = len(test) - len(scored)
    chosen = {*scored, *(c for c in unseen if c.split == "val"), *divided.side("train")}
    cases = replace(
        divided,
        cases=tuple(c for c in divided if c in chosen),
        left_out=divided.left_out | {why: count for why, count in left.items() if count},
    )
    for side in SPLITS:
        if not cases.side(side):
            raise DataError(f"{found.source}: no case is for {side}; check its splits")
    if len({case.label for case in cases.side("train")}) < 2:
        raise DataError(f"{found.source}: one class alone trains; check its splits")
    told = {"sides": "those of the run" if of_run else "its own or drawn", **arguments.unseen()}
    return _Task(cases, found.classes, known, told)


def _sides_of_run(found: CaseSet, clip: ClipRun) -> CaseSet:
    """Return the images of a run's split: those that trained, and to test those held out."""
    names: dict[str, Split] = {"train": "train", "val": "test"}
    known = [(case, names.get(clip.sides.get(file_key(case.image), ""))) for case in found]
    cases = tuple(replace(case, split=side) for case, side in known if side is not None)
    left = len(found) - len(cases)
    reasons = {"not in the run's split": left} if left else {}
    return replace(found, cases=cases, left_out=found.left_out | reasons)


def _draws(train: tuple[Case, ...], arguments: ProbeArguments) -> Iterator[_Draw]:
    """Yield what probes learn from; all training images are drawn once."""
    for percent in arguments.percents:
        for seed in range(
            arguments.seed, arguments.seed + (arguments.repeats if percent < 100 else 1)
        ):
            chosen = train
            if percent < 100:
                chosen = few_shot(train, percent, seed=seed, at_least=_AT_LEAST)
            yield _Draw(f"{percent:g}-percent", percent, None, seed, chosen)
    for shots in arguments.shots:
        for seed in range(arguments.seed, arguments.seed + arguments.repeats):
            chosen = k_shot(train, shots, seed=seed)
            percent = round(100 * len(chosen) / len(train), 4)
            yield _Draw(f"{shots}-shots", percent, shots, seed, chosen)


def _too_few(draw: _Draw, task: _Task) -> Iterator[str]:
    """Name the classes that have fewer images to learn from than are asked for."""
    counts = Counter(case.label for case in draw.cases)
    for label in task.classes:
        if not counts[label]:
            yield f"no training image is {label!r}: probes never predict it"
        elif draw.shots is not None and counts[label] < draw.shots:
            yield f"{label!r} has {counts[label]} training images, fewer than {draw.shots} shots"


def _perform(
    folder: Path,
    features: Features,
    draw: _Draw,
    task: _Task,
    arguments: ProbeArguments,
    made: Resampling,
) -> None:
    """Learn from a draw, score, and leave a run's folder."""
    started = time.monotonic()
    test = task.cases.side("test")
    labels, classes = task.labels(test), task.classes
    probabilities, probes = {}, {}
    for version, found in features.versions.items():
        probes[version] = _learn(found, draw, task, arguments)
        probabilities[version] = probes[version].probabilities(found[task.rows(test)], len(classes))
    scores = {v: classification_scores(p, labels, classes) for v, p in probabilities.items()}
    statistics = {
        v: made.statistics(partial(resampled, p, labels, classes=classes))
        for v, p in probabilities.items()
    }
    intervals = made.record(**statistics)
    # Where nothing adapts the model, it is the same before and after.
    intervals.setdefault("after", intervals["before"])
    width = next(iter(features.versions.values())).shape[1]
    results = {
        "task": "probe",
        "data": task.cases.source,
        **features.told,
        "percent": draw.percent,
        "shots": draw.shots,
        "seed": draw.seed,
        "classes": list(classes),
        "features": width,
        "trainable_parameters": (width + 1) * len(classes),
        "train_images": len(draw.cases),
        "test_images": len(test),
        KNOWN_NAME: task.known,
        **task.told,
        "strength": {v: {"c": p.strength.c, "chosen": p.strength.how} for v, p in probes.items()},
        "notes": list(_too_few(draw, task)),
        "before": scores["before"],
        "after": scores.get("after", scores["before"]),
        "chance": chance_accuracy(labels, classes),
        "warnings": list(_warnings(probabilities, probes, labels, classes)),
        "intervals": intervals,
        "provenance": provenance(
            {"train": draw.cases, "val": task.cases.side("val"), "test": test},
            task.cases.left_out,
            device=torch.device("cpu"),
            seconds=time.monotonic() - started,
            notes=task.cases.notes,
        ),
        "fastht_version": fastht.__version__,
    }
    folder.mkdir(parents=True)
    write_comparison(folder, results)
    write_table(folder / PREDICTIONS_NAME, prediction_rows(test, classes, probabilities))


def _learn(features: Tensor, draw: _Draw, task: _Task, arguments: ProbeArguments) -> Probe:
    """Choose C and learn from a draw."""
    x, y = features[task.rows(draw.cases)], task.labels(draw.cases)
    strengths = sorted(arguments.strengths)
    if draw.whole or arguments.choose_c == "val":
        val = task.cases.side("val")
        held_out = features[task.rows(val)], task.labels(val)
        strength = choose_on((x, y), held_out, strengths)
    else:
        groups = [case.patient or split_part(case.image)[0] for case in draw.cases]
        strength = choose_inside(x, y, groups, strengths, seed=draw.seed)
    return fit_probe(x, y, strength)


def _warnings(
    probabilities: dict[str, Tensor],
    probes: dict[str, Probe],
    labels: Tensor,
    classes: Sequence[str],
) -> Iterator[str]:
    for version, p in probabilities.items():
        heading = f"{version}: " if len(probabilities) > 1 else ""
        for warning in prediction_warnings(p, labels, classes):
            yield heading + warning
        if not probes[version].converged:
            yield f"{heading}the regression did not converge at C = {probes[version].strength.c:g}"
