"""``fastht zeroshot``: classes told apart by prompts alone, before and after fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import fastht
from fastht.data.account import one_class
from fastht.data.cases import SPLITS, Case, CaseSet
from fastht.data.catalogue.sets import organ_of
from fastht.data.images import DataError
from fastht.data.source import DataSource
from fastht.tasks.image_text.judged_cases import (
    encode_cases,
    labelled_data,
    load_labelled,
    prediction_rows,
)
from fastht.tasks.image_text.judged_records import (
    JudgedModel,
    choose_folder,
    leave_copies,
    open_model,
)
from fastht.tasks.image_text.pair_scores import of_plain_text
from fastht.tasks.image_text.prompt_sensitivity import (
    Sensitivity,
    drawn_variants,
    embed_variants,
    sensitivity_rows,
    sensitivity_text,
)
from fastht.tasks.image_text.prompts import (
    SHIPPED,
    Prompts,
    PromptSet,
    class_embeddings,
    load_prompts,
    zero_shot_logits,
)
from fastht.tasks.image_text.prompts.variants import naming, prompt_variants
from fastht.tasks.image_text.run import ClipRun
from fastht.tasks.image_text.wording import known_wordings
from fastht.tasks.images.class_outcome import Fitted, describe_classes, draw_classes, fit_on
from fastht.tasks.images.intervals import resample_cases
from fastht.tasks.results.class_tables import class_report
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.known_images import KNOWN_NAME
from fastht.tasks.results.prompt_pictures import draw_prompts
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import SIMULATED, shown_cases
from fastht.tasks.results.tables import PREDICTIONS_NAME, write_table
from fastht.tasks.scores.classification import classification_scores, resampled
from fastht.tasks.scores.intervals import Resampling

PROMPTS_NAME = "prompts.csv"
PROMPTS_PICTURE = "prompts.png"
_EXAMPLES = 5  # of images that cannot be used
_VERSIONS = {"before": "base", "after": "adapted"}


@dataclass(frozen=True)
class ZeroShotArguments(JudgedModel, DataSource):
    """Classify images by prompts, with a model's base and with what a run made of it.

    Images that the run trained on are left out. One process does it all.

    Attributes:
        data: "run" (the sample, if the run trained on it or there is no run), "sample", a folder,
            or a CSV or TSV table.
        prompts: breast, liver, lung, lymph_node, thyroid, sample, published (the one sentence of
            EchoCare-CLIP's evaluation, for any classes) or a YAML file; default: sample, for that.
        split: side to classify; default: test where the data comes with one, else val where it
            comes with that, else all of it.
        organ: fills prompts that leave it open, as published does; default: what the layout of the
            data images, if that is one organ.
        prompt_sensitivity: score each prompt alone, each left out and other organs' words too.
    """

    data: str = "run"
    prompts: str | None = None
    split: Literal["train", "val", "test", "all"] | None = None
    organ: str | None = None
    prompt_sensitivity: bool = False


def zeroshot(arguments: ZeroShotArguments) -> int:
    """Classify, print the scores and leave them, all predictions and pictures.

    Raises:
        DataError: the data or the prompts cannot be used, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run, the model or the prompts cannot be had.
    """
    started = time.monotonic()
    opened = open_model(arguments)
    clip = opened.clip
    data = labelled_data(arguments.data, arguments.trainer, opened)
    out = choose_folder("zeroshot", arguments, data)
    found = load_labelled(arguments, data, opened)
    if len(found.classes) < 2:
        raise DataError(one_class(found))
    prompts = _read_prompts(arguments, found, data, clip)
    split, cases = choose_side(found, arguments.split)
    kept = tuple(case for case in cases if not clip.trained_on(case.image))
    if not kept:
        raise DataError(
            f"{found.source}: all {len(cases)} images of split {split} trained "
            f"{arguments.trainer}; give others by --data or --split"
        )
    print(_introduction(found, split, len(kept), len(cases) - len(kept), arguments, data))
    kept, known = leave_copies(arguments, clip, kept, (case.image for case in found))

    labels = _labels(kept, found.classes)
    validation, why = _validation(found, split, kept, clip)
    trained = None if arguments.trainer is None else known_wordings(arguments.trainer)
    variants = list(prompt_variants(prompts, trained or ()))
    probabilities, plain, fitted, varied = {}, {}, {}, {}
    for version in clip.versions():
        images = encode_cases(kept, clip, arguments)
        probabilities[version], beside = _classify(images, clip, prompts)
        if beside is not None:
            plain[version] = beside
        if arguments.prompt_sensitivity:
            embedded = embed_variants(clip.embedder, variants)
            varied[version] = [class_probabilities(images, e, clip.scale) for e in embedded]
        fitted[version] = Fitted(None, why)
        if validation:
            p, _ = _classify(encode_cases(validation, clip, arguments), clip, prompts)
            fitted[version] = fit_on(p, _labels(validation, found.classes), "val")
    scores = {v: classification_scores(p, labels, found.classes) for v, p in probabilities.items()}
    for version, p in plain.items():
        scores[version] |= of_plain_text(classification_scores(p, labels))
    of_classes = describe_classes(probabilities, labels, found.classes, fitted)
    made = resample_cases(kept)
    intervals = _intervals(made, probabilities, plain, labels, found.classes)
    sensitivity = None
    if varied:
        sensitivity = Sensitivity(
            variants, varied, labels, made, trained is not None, naming(prompts)
        ).record()
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
        **arguments.unseen(),
        "organ": prompts.organ,
        "seen_wordings": None if trained is None else list(variants[0].seen),
        **({} if sensitivity is None else {"prompt_sensitivity": sensitivity}),
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
    write_table(out / PREDICTIONS_NAME, prediction_rows(kept, found.classes, probabilities))
    title = f"{clip.name}, zero-shot on {Path(found.source).name}"
    shown = shown_cases(kept, clip.name, found.source)
    draw_classes(
        {_VERSIONS[version]: p for version, p in probabilities.items()},
        labels,
        found.classes,
        {_VERSIONS[version]: temperature for version, temperature in fitted.items()},
        out,
        title,
        shown,
    )
    print(f"{comparison_table('zero-shot', scores, intervals)}\n\n{class_report(results)}")
    if sensitivity is not None:
        write_table(out / PROMPTS_NAME, sensitivity_rows(sensitivity, list(varied)))
        drawn = drawn_variants(sensitivity, {version: _VERSIONS[version] for version in varied})
        draw_prompts(
            out / PROMPTS_PICTURE, drawn, "balanced accuracy (%)", f"{title}, by prompts", shown
        )
        print(f"\n{sensitivity_text(sensitivity, list(varied))}")
    elif variants[0].seen:
        labels_seen = ", ".join(variants[0].seen)
        print(
            f"WARNING: prompts of {labels_seen} are worded as captions that trained "
            f"{arguments.trainer}; --prompt-sensitivity scores without them."
        )
    print(f"\nresults, predictions, pictures: {out}")
    return 0


def _intervals(
    made: Resampling,
    versions: dict[str, Tensor],
    plain: dict[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return the intervals of all scores of the model's versions, and of those by plain text."""

    def scored(weights: Tensor, version: str) -> dict[str, Tensor]:
        found = resampled(versions[version], labels, weights, classes)
        if version in plain:
            found |= of_plain_text(resampled(plain[version], labels, weights))
        return found

    found = {name: made.statistics(partial(scored, version=name)) for name in versions}
    intervals = made.record(**found)
    # Where nothing adapts the model, it is the same before and after.
    intervals.setdefault("after", intervals["before"])
    return intervals


def class_probabilities(images: Tensor, classes: Tensor, scale: float) -> Tensor:
    """Return the probability of each class for each image, ``[n, classes]``, float64.

    Arguments are those of :func:`zero_shot_logits`.
    """
    # In float32 sure predictions would all be 1, and the AUC could not rank them.
    return zero_shot_logits(images, classes, scale).softmax(dim=1)


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


def _classify(images: Tensor, clip: ClipRun, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """Return the probability of each class for each image, by the model as it is now.

    Of a run with a tag graph those by the plain text tower come beside them.
    """
    embedder, scale = clip.embedder, clip.scale
    p = class_probabilities(images, class_embeddings(embedder, prompts), scale)
    if embedder.graph is None:
        return p, None
    return p, class_probabilities(images, class_embeddings(embedder.plain, prompts), scale)


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


def _read_prompts(
    arguments: ZeroShotArguments, found: CaseSet, data: str, clip: ClipRun
) -> PromptSet:
    source = arguments.prompts
    if source is None and data != "sample":
        raise ValueError(
            f"which prompts describe the classes of {data}? Give --prompts {', '.join(SHIPPED)} "
            "or a YAML file"
        )
    organ = arguments.organ or organ_of(found.layout, arguments.name)
    read = load_prompts(source or "sample", found.classes, organ)
    return PromptSet({k: tuple(map(clip.clean, own)) for k, own in read.items()}, read.organ)


def _introduction(
    found: CaseSet,
    split: str,
    kept: int,
    left_out: int,
    arguments: ZeroShotArguments,
    data: str,
) -> str:
    lines = [found.account(), *(f"  {what}" for what in found.unusable[:_EXAMPLES])]
    if arguments.trainer is not None:
        lines.append(
            f"{left_out} images of split {split} left out, as {arguments.trainer} trained on them."
        )
    elif arguments.adapter is not None:
        lines.append("What the adapter trained on is not known; with --run it is left out.")
    lines.append(f"{kept} images of split {split} to classify.")
    if data == "sample":
        lines.append(SIMULATED)
    return "\n".join(lines)
