"""``fastht zeroshot``: classes told apart by prompts alone, before and after fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import fastht
from fastht.data.account import one_class
from fastht.data.cases import SPLITS, Case, CaseSet, read_case_image
from fastht.data.images import DataError
from fastht.data.source import DataSource
from fastht.tasks.image_text.prompts import SHIPPED, Prompts, class_embeddings, load_prompts
from fastht.tasks.image_text.run import (
    UNKNOWN_FILES,
    ClipRun,
    check_folder,
    load_clip,
    results_folder,
)
from fastht.tasks.images.class_outcome import Fitted, describe_classes, draw_classes, fit_on
from fastht.tasks.images.intervals import resample_cases
from fastht.tasks.results.class_tables import class_report
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.known_images import KNOWN_NAME, Copies, judge_copies
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import shown_cases
from fastht.tasks.results.tables import PREDICTIONS_NAME, write_table
from fastht.tasks.scores.classification import classification_scores, resampled

_Score = TypeVar("_Score", float, Tensor)
_EXAMPLES = 5  # of images that cannot be used
_VERSIONS = {"before": "base", "after": "adapted"}


@dataclass(frozen=True)
class ZeroShotArguments(DataSource):
    """Classify images by prompts, with a model's base and with what a run made of it.

    Images that the run trained on are left out. One process does it all.

    Attributes:
        data: "run" (the sample, if the run trained on it or there is no run), "sample", a folder,
            or a CSV or TSV table.
        run: folder of a run of fastht train, which names the model.
        model: without a run: open_clip's name of the model, hf-hub:ORG/REPO, local-dir:FOLDER, or
            "fastht-tiny".
        pretrained: without a run: open_clip's tag, the file of the weights, or "none" for random
            ones.
        adapter: without a run: folder of a saved HT adapter; default: the base alone.
        prompts: breast, liver, lung, lymph_node, thyroid, sample or a YAML file; default: sample,
            for that.
        split: side to classify; default: test where the data comes with one, else val where it
            comes with that, else all of it.
        copies: images that are copies of those that the run trained on: warn or leave-out.
        batch_size: images at a time.
        workers: processes that load images.
        out: folder of the results; default: zeroshot-DATA in the folder of the run, else
            runs/zeroshot-DATA-MODEL.
    """

    data: str = "run"
    run: Path | None = None
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    adapter: Path | None = None
    prompts: str | None = None
    split: Literal["train", "val", "test", "all"] | None = None
    copies: Copies = "warn"
    batch_size: int = 32
    workers: int = 2
    out: Path | None = None


class CaseImages(Dataset[dict[str, Any]]):
    """The images of cases, each read when asked for: ``{"image": transform(image)}``.

    Indexing raises DataError, with the name of the file, for an image that cannot be read.
    """

    def __init__(self, cases: Sequence[Case], transform: Callable[[Image.Image], Tensor]) -> None:
        self.cases = cases
        self.transform = transform

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"image": self.transform(read_case_image(self.cases[i]))}


def zeroshot(arguments: ZeroShotArguments) -> int:
    """Classify, print the scores and leave them, all predictions and pictures.

    Raises:
        DataError: the data or the prompts cannot be used, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run, the model or the prompts cannot be had.
    """
    started = time.monotonic()
    check_folder(arguments.out)
    clip = load_clip(arguments.run, arguments.model, arguments.pretrained, arguments.adapter)
    data = _choose_data(arguments, clip)
    out = arguments.out or results_folder("zeroshot", data, arguments.run, arguments.model)
    check_folder(out)
    found = replace(arguments, data=data).load("classify", leave_out=True)
    if len(found.classes) < 2:
        raise DataError(one_class(found))
    prompts = {
        label: tuple(map(clip.clean, sentences))
        for label, sentences in load_prompts(
            _choose_prompts(arguments, data), found.classes
        ).items()
    }
    split, cases = choose_side(found, arguments.split)
    kept = tuple(case for case in cases if not clip.trained_on(case.image))
    if not kept:
        raise DataError(
            f"{found.source}: all {len(cases)} images of split {split} trained {arguments.run}; "
            "give others by --data or --split"
        )
    print(_introduction(found, split, len(kept), len(cases) - len(kept), arguments, data))
    kept, known = judge_copies(arguments.run, kept, arguments.copies)
    if arguments.run and known is None and not clip.knows(case.image for case in found):
        print(UNKNOWN_FILES.format(run=arguments.run))

    labels = _labels(kept, found.classes)
    validation, why = _validation(found, split, kept, clip)
    probabilities, plain, fitted = {}, {}, {}
    for version in clip.versions():
        probabilities[version], beside = _classify(kept, clip, prompts, arguments)
        if beside is not None:
            plain[version] = beside
        fitted[version] = Fitted(None, why)
        if validation:
            p, _ = _classify(validation, clip, prompts, arguments)
            fitted[version] = fit_on(p, _labels(validation, found.classes), "val")
    scores = {v: classification_scores(p, labels, found.classes) for v, p in probabilities.items()}
    for version, p in plain.items():
        scores[version] |= _as_plain(classification_scores(p, labels))
    of_classes = describe_classes(probabilities, labels, found.classes, fitted)
    intervals = _intervals(kept, probabilities, plain, labels, found.classes)
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "task": "zeroshot",
        "data": found.source,
        **clip.describe(),
        "prompts": arguments.prompts or data,
        "split": split,
        "classes": list(found.classes),
        "test_images": len(kept),
        "left_out": len(cases) - len(kept),
        "unusable": len(found.unusable),
        KNOWN_NAME: known,
        "before": scores["before"],
        # Where nothing adapts the model, it is the same before and after.
        "after": scores.get("after", scores["before"]),
        **of_classes,
        "intervals": intervals,
        "provenance": provenance(
            {"scored": kept},
            found.left_out | {"the run trained on": len(cases) - len(kept)},
            device=next(clip.model.parameters()).device,
            seconds=time.monotonic() - started,
            notes=found.notes,
        ),
        "fastht_version": fastht.__version__,
    }
    write_comparison(out, results)
    write_table(out / PREDICTIONS_NAME, _predictions(kept, found.classes, probabilities))
    title = f"{clip.name}, zero-shot on {Path(found.source).name}"
    draw_classes(
        {_VERSIONS[version]: p for version, p in probabilities.items()},
        labels,
        found.classes,
        {_VERSIONS[version]: temperature for version, temperature in fitted.items()},
        out,
        title,
        shown_cases(kept, clip.name, found.source),
    )
    print(f"{comparison_table('zero-shot', scores, intervals)}\n\n{class_report(results)}")
    print(f"\nresults, predictions, pictures: {out}")
    return 0


def _intervals(
    cases: Sequence[Case],
    versions: dict[str, Tensor],
    plain: dict[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the intervals of all scores of the model's versions, and of those by plain text."""
    made = resample_cases(cases)

    def scored(weights: Tensor, version: str) -> dict[str, Tensor]:
        found = resampled(versions[version], labels, weights, classes)
        if version in plain:
            found |= _as_plain(resampled(plain[version], labels, weights))
        return found

    found = {name: made.statistics(partial(scored, version=name)) for name in versions}
    intervals = made.record(**found)
    # Where nothing adapts the model, it is the same before and after.
    intervals.setdefault("after", intervals["before"])
    return intervals


def class_probabilities(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Return the probability of each class for each image, ``[n, classes]``, float64.

    Args:
        images: ``[n, E]``, normalised.
        classes: ``[classes, E]``, as :func:`class_embeddings` gives them.
        scale: the model's factor of similarities.
    """
    # In float32 sure predictions would all be 1, and the AUC could not rank them.
    return (scale * images.double() @ classes.double().T).softmax(dim=1)


def choose_side(found: CaseSet, split: str | None) -> tuple[str, tuple[Case, ...]]:
    """Return which side of a data set is classified, and its cases.

    Args:
        found: the data set.
        split: what is asked for; ``None`` takes test or else val where the data comes with it:
            those are what published numbers are of. Otherwise all of it, for nothing here learns
            from the labels.

    Raises:
        DataError: no case is on the side asked for.
    """
    own = [side for side in SPLITS if found.side(side)]
    if split is None:
        split = next((side for side in ("test", "val") if side in own), "all")
    cases = found.cases if split == "all" else tuple(c for c in found if c.split == split)
    if not cases:
        choice = ", ".join([*own, "all"])
        raise DataError(f"{found.source}: no case is for {split}; choose --split of {choice}")
    return split, cases


def _classify(
    cases: Sequence[Case],
    clip: ClipRun,
    prompts: Prompts,
    arguments: ZeroShotArguments,
) -> tuple[Tensor, Tensor | None]:
    """Return the probability of each class for each image, by the model as it is now.

    Of a run with a tag graph those by the plain text tower come beside them.
    """
    images = clip.encode_images(
        CaseImages(cases, clip.transform), arguments.batch_size, arguments.workers
    )
    scale = clip.model.logit_scale.detach().exp().item()  # type: ignore[operator, union-attr]
    embedder = clip.embedder
    p = class_probabilities(images, class_embeddings(embedder, prompts), scale)
    if embedder.graph is None:
        return p, None
    return p, class_probabilities(images, class_embeddings(embedder.plain, prompts), scale)


def _as_plain(scores: dict[str, _Score]) -> dict[str, _Score]:
    return {f"plain_text_{name}": score for name, score in scores.items()}


def _labels(cases: Sequence[Case], classes: Sequence[str]) -> Tensor:
    return torch.tensor([classes.index(str(case.label)) for case in cases])


def _validation(
    found: CaseSet, split: str, kept: Sequence[Case], clip: ClipRun
) -> tuple[tuple[Case, ...], str]:
    """Return the validation images, none of which is scored or trained on, or why there are none.

    Nor are they of patients who are scored.

    Those of a data set's own validation side are taken, and nothing else: a temperature that is
    fitted on what is scored would flatter it.
    """
    if split in ("val", "all"):
        return (), f"no temperature fitted: split {split} is scored, val is not apart"
    scored = {case.patient for case in kept} - {None}
    side = tuple(
        case
        for case in found.side("val")
        if case.patient not in scored and not clip.trained_on(case.image)
    )
    return side, "no temperature fitted: no val side apart from what is scored or trained on"


def _choose_data(arguments: ZeroShotArguments, clip: ClipRun) -> str:
    if arguments.data != "run":
        return arguments.data
    trained_on = clip.arguments.get("data", "sample")
    if trained_on != "sample":
        raise ValueError(
            f"{arguments.run} trained on {trained_on}, whose captions are no labels: name labelled "
            "images to classify by --data"
        )
    return "sample"


def _choose_prompts(arguments: ZeroShotArguments, data: str) -> str:
    if arguments.prompts is not None:
        return arguments.prompts
    if data != "sample":
        raise ValueError(
            f"which prompts describe the classes of {data}? Give --prompts {', '.join(SHIPPED)} "
            "or a YAML file"
        )
    return "sample"


def _introduction(
    found: CaseSet,
    split: str,
    kept: int,
    left_out: int,
    arguments: ZeroShotArguments,
    data: str,
) -> str:
    lines = [found.account(), *(f"  {what}" for what in found.unusable[:_EXAMPLES])]
    if arguments.run is not None:
        lines.append(
            f"{left_out} images of split {split} left out, as {arguments.run} trained on them."
        )
    elif arguments.adapter is not None:
        lines.append("What the adapter trained on is not known; with --run it is left out.")
    lines.append(f"{kept} images of split {split} to classify.")
    if data == "sample":
        lines.append("These images are SIMULATED: they show that things work, nothing clinical.")
    return "\n".join(lines)


def _predictions(
    cases: Sequence[Case], classes: Sequence[str], probabilities: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """Return a row for each image: what it is, and what each version of the model takes it for."""
    rows: list[dict[str, Any]] = [
        {"file": case.image, "patient": case.patient, "label": case.label} for case in cases
    ]
    for version, found in probabilities.items():
        for row, values in zip(rows, found.tolist(), strict=True):
            row[f"predicted {version}"] = classes[values.index(max(values))]
            row |= {f"p({name}) {version}": p for name, p in zip(classes, values, strict=True)}
    return rows
