"""``fastht attributes``: findings told apart by dimension, before and after fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastht
from fastht.data import DataError, ImageTextDataset, Record, RecordSet
from fastht.data.captions import Cleaning
from fastht.tasks.image_text.held_out import resample_records
from fastht.tasks.image_text.judged_records import keep_unseen, load_judged
from fastht.tasks.image_text.prompts import class_embeddings
from fastht.tasks.image_text.run import (
    UNKNOWN_FILES,
    ClipRun,
    check_folder,
    load_clip,
    results_folder,
)
from fastht.tasks.image_text.tags import RecordTags, TagSource, fields_of, tags_of
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.tables import PREDICTIONS_NAME, write_table
from fastht.tasks.scores.attributes import (
    AttributeScores,
    fit_probe,
    probe_logits,
    standardised,
)
from fastht.taxonomy import Taxonomy, load_taxonomy

# What is said of a value, by dimension; the sentences of the paper are not known.
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "Diagnosis": ("Ultrasound image of a {}.", "Ultrasound showing a {}."),
    "Body_system_level": ("Ultrasound image of {}.", "An ultrasound examination of {}."),
    "Organ_level": ("Ultrasound image of {}.", "An ultrasound examination of {}."),
    "Shape": ("Ultrasound showing a lesion of {} shape.", "Ultrasound of a {} lesion."),
    "Margins": ("Ultrasound showing a lesion with {} margins.", "A lesion with {} margins."),
    "Echogenicity": ("Ultrasound showing a {} lesion.", "Ultrasound of {} tissue."),
    "InternalCharacteristics": ("Ultrasound showing a lesion with {}.", "A lesion with {}."),
    "PosteriorAcoustics": ("Ultrasound showing posterior acoustic {}.", "Posterior {}."),
    "Vascularity": ("Ultrasound showing a lesion with {}.", "A lesion with {}."),
}
_OTHER = ("Ultrasound image: {}.",)
TIES = "ties count against the right answer"


@dataclass(frozen=True)
class AttributesArguments:
    """Tell the values of each dimension of findings apart by prompts, and by linear probes.

    With a base and with what a run made of it. Images that the run trained on are left out of the
    scores, and the probes learn from them. The answer has to be found among all values that the
    taxonomy has.

    Attributes:
        data: "run" (what the run held out, or the sample if there is no run), "sample", or a CSV or
            TSV table with a column of tags for each dimension.
        image_key: column of the image files; default: filepath, or filename.
        caption_key: column of the captions; default: title, or Caption.
        patient_key: column of the patients; default: patient, or a name that means the same.
        separator: column separator of the table; default: found out.
        image_dirs: folders in which relative image paths are looked up, before the table's own.
        cleaning: what captions keep; default: as the run did, else letters.
        tags: where the right answers are from: columns of the table, or captions.
        taxonomy: of the tags: name of a shipped one, or a YAML file.
        run: folder of a run of fastht train, which names the model.
        model: without a run: open_clip's name of the model, hf-hub:ORG/REPO, local-dir:FOLDER, or
            "fastht-tiny".
        pretrained: without a run: open_clip's tag, the file of the weights, or "none" for random
            ones.
        adapter: without a run: folder of a saved HT adapter; default: the base alone.
        probe: let linear probes learn from what the run trained on, beside prompts.
        batch_size: images at a time.
        workers: processes that load images.
        out: folder of the results; default: attributes-DATA in the folder of the run, else
            runs/attributes-DATA-MODEL.
    """

    data: str = "run"
    image_key: str | None = None
    caption_key: str | None = None
    patient_key: str | None = None
    separator: str | None = None
    image_dirs: tuple[Path, ...] = ()
    cleaning: Cleaning | None = None
    tags: TagSource = "columns"
    taxonomy: str = "us365k"
    run: Path | None = None
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    adapter: Path | None = None
    probe: bool = True
    batch_size: int = 32
    workers: int = 2
    out: Path | None = None


def attributes(arguments: AttributesArguments) -> int:
    """Score, print and leave the results; return the exit status.

    Raises:
        DataError: the data cannot be used, has no tags, or no image is left.
        ResumeError: the run's weights cannot be read.
        TaxonomyError: the taxonomy cannot be read.
        ValueError: the run or the model cannot be had.
    """
    check_folder(arguments.out)
    clip = load_clip(arguments.run, arguments.model, arguments.pretrained, arguments.adapter)
    results = judge_attributes(arguments, clip)
    write_attributes(results, arguments, clip)
    return 0


def write_attributes(
    judged: AttributeResults, arguments: AttributesArguments, clip: ClipRun
) -> None:
    """Print what was found and leave it in the folder of the results."""
    data = judged.data
    out = arguments.out or results_folder("attributes", data, arguments.run, arguments.model)
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(out, judged.results | clip.describe())
    write_table(out / PREDICTIONS_NAME, judged.predictions)
    print(comparison_table("attributes", judged.versions, judged.results["intervals"]))
    print(f"{judged.results['candidates']}; {TIES}\n\nresults and predictions: {out}")


@dataclass(frozen=True)
class AttributeResults:
    """What :func:`judge_attributes` found.

    Attributes:
        data: as it is called.
        results: for a ``results.json``.
        versions: scores before and, where something adapts the model, after.
        predictions: a row for each image.
    """

    data: str
    results: dict[str, Any]
    versions: dict[str, dict[str, float]]
    predictions: list[dict[str, Any]]


def judge_attributes(arguments: AttributesArguments, clip: ClipRun) -> AttributeResults:
    """Score the attributes of images by the base and the adapted model; errors as the command's."""
    started = time.monotonic()
    taxonomy = load_taxonomy(arguments.taxonomy)
    own = arguments.data == "run"
    data = str(clip.arguments.get("data", "sample")) if own else arguments.data
    options = clip.arguments if own and clip.arguments else vars(arguments)
    cleaning = arguments.cleaning or clip.cleaning
    found = load_judged(data, options, cleaning, fields_of(taxonomy))
    records = keep_unseen(found, own and arguments.run is not None, clip)
    learned = tuple(r for r in found if arguments.probe and clip.trained_on(r.image))
    tags = tags_of(records, taxonomy, arguments.tags)
    print(_introduction(found, records, learned, tags, arguments, clip, data))
    truth, learned_truth = owned_values(tags), None
    if learned:
        learned_truth = owned_values(tags_of(learned, taxonomy, arguments.tags))
    prompts = {name: value_prompts(taxonomy, name) for name in taxonomy.dimensions}

    scored: dict[str, dict[str, AttributeScores]] = {}
    for version in clip.versions():
        images = _encode(records, clip, arguments)
        scored[version] = {"": _by_prompts(images, prompts, truth, clip.embedder)}
        if clip.embedder.graph is not None:
            scored[version]["plain_text_"] = _by_prompts(
                images, prompts, truth, clip.embedder.plain
            )
        if learned_truth is not None:
            scored[version]["probe_"] = _by_probes(
                _encode(learned, clip, arguments), images, learned_truth, truth
            )
    made = resample_records(records)
    statistics = {
        version: made.statistics(lambda weights, kinds=kinds: _prefixed(kinds, weights))  # type: ignore[misc]
        for version, kinds in scored.items()
    }
    intervals = made.record(**statistics)
    intervals.setdefault("after", intervals["before"])
    once = torch.ones(1, len(records), dtype=torch.float64)
    versions = {
        version: {name: values.item() for name, values in _prefixed(kinds, once).items()}
        for version, kinds in scored.items()
    }
    results = {
        "task": "attributes",
        "data": data,
        "test_images": len(records),
        "probe_images": len(learned),
        "tags": tags.record(),
        "candidates": _candidates(taxonomy, tags),
        "before": versions["before"],
        # Where nothing adapts the model, it is the same before and after.
        "after": versions.get("after", versions["before"]),
        "intervals": intervals,
        "provenance": provenance(
            {"scored": records, "probes": learned},
            found.dropped,
            device=next(clip.model.parameters()).device,
            seconds=time.monotonic() - started,
            notes=found.notes,
        ),
        "fastht_version": fastht.__version__,
    }
    return AttributeResults(data, results, versions, _predictions(records, tags, scored))


def value_prompts(taxonomy: Taxonomy, dimension: str) -> dict[str, tuple[str, ...]]:
    """Return the sentences that say each value of a dimension."""
    templates = PROMPTS.get(dimension, _OTHER)
    values = taxonomy.dimensions[dimension].values
    return {value: tuple(template.format(value) for template in templates) for value in values}


def owned_values(tags: RecordTags) -> dict[str, Tensor]:
    """Return whether each record has each value, ``[n, values]`` bool by dimension."""
    return {
        name: torch.tensor([[v in held.get(name, ()) for v in d.values] for held in tags.values])
        for name, d in tags.taxonomy.dimensions.items()
    }


def _by_prompts(
    images: Tensor,
    prompts: Mapping[str, Mapping[str, tuple[str, ...]]],
    truth: Mapping[str, Tensor],
    embedder: Any,
) -> AttributeScores:
    similarities = {
        name: images.double() @ class_embeddings(embedder, said).double().T
        for name, said in prompts.items()
    }
    return AttributeScores(similarities, truth)


def _by_probes(
    learned: Tensor,
    images: Tensor,
    learned_truth: Mapping[str, Tensor],
    truth: Mapping[str, Tensor],
) -> AttributeScores:
    """Return the scores of linear probes, of dimensions of which training had two values."""
    learned, images = standardised(learned, [images])
    logits = {}
    for name, own in learned_truth.items():
        if (weight := fit_probe(learned, own)) is not None:
            logits[name] = probe_logits(images, weight)
    return AttributeScores(logits, {name: truth[name] for name in logits})


def _prefixed(kinds: Mapping[str, AttributeScores], weights: Tensor) -> dict[str, Tensor]:
    return {
        f"{prefix}{name}": values
        for prefix, scores in kinds.items()
        for name, values in scores.resampled(weights).items()
    }


def _encode(records: Sequence[Record], clip: ClipRun, arguments: AttributesArguments) -> Tensor:
    data = ImageTextDataset(records, clip.transform)
    return clip.encode_images(data, arguments.batch_size, arguments.workers)


def _candidates(taxonomy: Taxonomy, tags: RecordTags) -> str:
    counts = ", ".join(
        f"{name} {len(d.values)} ({tags.coverage()[name]:,} records)"
        for name, d in taxonomy.dimensions.items()
    )
    return f"values to choose from, and records that have one: {counts}"


def _introduction(
    found: RecordSet,
    records: Sequence[Record],
    learned: Sequence[Record],
    tags: RecordTags,
    arguments: AttributesArguments,
    clip: ClipRun,
    data: str,
) -> str:
    lines = [found.account(), f"{len(records)} images to tell apart; {tags.without} without tags."]
    if tags.unknown:
        named = ", ".join(f"{value!r} ({n})" for value, n in list(tags.unknown.items())[:5])
        lines.append(f"{sum(tags.unknown.values())} tags that the taxonomy has not: {named}")
    if learned:
        lines.append(f"Linear probes learn from the {len(learned)} images that the run trained on.")
    elif arguments.probe:
        lines.append("No linear probes: they learn from what a run trained on; give one by --run.")
    if arguments.run is not None and not clip.knows(record.image for record in found):
        lines.append(UNKNOWN_FILES.format(run=arguments.run))
    if data == "sample":
        lines.append("These images are SIMULATED: they show that things work, nothing clinical.")
    if not any(tags.values):
        raise DataError(f"{found.source}: no image to score has a tag of {tags.taxonomy.label}")
    return "\n".join(lines)


def _predictions(
    records: Sequence[Record],
    tags: RecordTags,
    scored: Mapping[str, Mapping[str, AttributeScores]],
) -> list[dict[str, Any]]:
    """Return a row for each image: its values, and what each version takes it for by prompts."""
    rows = []
    for i, (record, held) in enumerate(zip(records, tags.values, strict=True)):
        row: dict[str, Any] = {"file": record.image, "patient": record.patient}
        for name, dimension in tags.taxonomy.dimensions.items():
            row[name] = ";".join(held.get(name, ()))
            for version, kinds in scored.items():
                if (predicted := kinds[""].predicted.get(name)) is not None:
                    row[f"{name} {version}"] = list(dimension.values)[int(predicted[i])]
        rows.append(row)
    return rows
