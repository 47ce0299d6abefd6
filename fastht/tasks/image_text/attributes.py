"""``fastht attributes``: findings told apart by dimension, before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.data import DataError, Record, RecordSet
from fastht.tasks.image_text.held_out import resample_records
from fastht.tasks.image_text.judged_records import (
    Opened,
    PairsArguments,
    encode_records,
    open_model,
    open_pairs,
)
from fastht.tasks.image_text.prompts import class_embeddings
from fastht.tasks.image_text.tags import (
    RecordTags,
    TagSource,
    fields_of,
    tags_of,
    tags_of_images,
)
from fastht.tasks.results.comparison import comparison_table, write_comparison
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
class AttributesArguments(PairsArguments):
    """Tell the values of each dimension of findings apart by prompts, and by linear probes.

    With a base and with what a run made of it. Images that the run trained on are left out of the
    scores, and the probes learn from them. The answer has to be found among all values that the
    taxonomy has. An image with several captions counts once, with the tags of all of them.

    Attributes:
        tags: where the right answers are from: columns of the table, or captions.
        taxonomy: of the tags: name of a shipped one, or a YAML file.
        probe: let linear probes learn from what the run trained on, beside prompts.
    """

    tags: TagSource = "columns"
    taxonomy: str = "us365k"
    probe: bool = True


def attributes(arguments: AttributesArguments) -> int:
    """Score, print and leave the results; return the exit status.

    Raises:
        DataError: the data cannot be used, has no tags, or no image is left.
        ResumeError: the run's weights cannot be read.
        TaxonomyError: the taxonomy cannot be read.
        ValueError: the run or the model cannot be had.
    """
    found = judge_attributes(arguments, open_model(arguments))
    out = found.out
    out.mkdir(parents=True, exist_ok=True)
    write_comparison(out, found.results)
    write_table(out / PREDICTIONS_NAME, found.predictions)
    print(comparison_table("attributes", found.versions, found.results["intervals"]))
    print(f"{found.results['candidates']}; {TIES}\n\nresults and predictions: {out}")
    return 0


@dataclass(frozen=True)
class AttributeResults:
    """What :func:`judge_attributes` found.

    Attributes:
        out: folder of the results, which nothing is written to yet.
        results: for a ``results.json``.
        versions: scores before and, where something adapts the model, after.
        predictions: a row for each image.
    """

    out: Path
    results: dict[str, Any]
    versions: dict[str, dict[str, float]]
    predictions: list[dict[str, Any]]


def judge_attributes(arguments: AttributesArguments, opened: Opened) -> AttributeResults:
    """Score the attributes of images by the base and the adapted model; errors as the command's."""
    taxonomy = load_taxonomy(arguments.taxonomy)
    judged = open_pairs(
        "attributes", arguments, opened=opened, columns=fields_of(taxonomy), texts=False
    )
    clip, found = judged.clip, judged.found
    learn = arguments.probe and arguments.run is not None
    learned = tuple(r for r in found if learn and clip.trained_on(r.image))
    rows = judged.records
    records, tags = tags_of_images(rows, tags_of(rows, taxonomy, arguments.tags))
    if len(rows) > len(records):
        print(
            f"{len(rows)} captions of {len(records)} images: an image counts once, with the tags "
            "of all its captions."
        )
    print(_introduction(found, records, learned, tags, arguments))
    truth, learned_truth = owned_values(tags), None
    if learned:
        learned, learned_tags = tags_of_images(learned, tags_of(learned, taxonomy, arguments.tags))
        learned_truth = owned_values(learned_tags)
    prompts = {name: value_prompts(taxonomy, name) for name in taxonomy.dimensions}

    scored: dict[str, dict[str, AttributeScores]] = {}
    for version in clip.versions():
        images = encode_records(records, clip, arguments)
        scored[version] = {"": _by_prompts(images, prompts, truth, clip.embedder)}
        if clip.embedder.graph is not None:
            scored[version]["plain_text_"] = _by_prompts(
                images, prompts, truth, clip.embedder.plain
            )
        if learned_truth is not None:
            scored[version]["probe_"] = _by_probes(
                encode_records(learned, clip, arguments), images, learned_truth, truth
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
        **judged.describe("attributes"),
        "probe_images": len(learned),
        "tags": tags.record(),
        "candidates": _candidates(taxonomy, tags),
        "before": versions["before"],
        # Where nothing adapts the model, it is the same before and after.
        "after": versions.get("after", versions["before"]),
        "intervals": intervals,
        **judged.close(probes=learned),
    }
    predictions = _predictions(records, tags, scored)
    return AttributeResults(judged.out, results, versions, predictions)


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


def _candidates(taxonomy: Taxonomy, tags: RecordTags) -> str:
    counts = ", ".join(
        f"{name} {len(d.values)} ({tags.coverage()[name]:,} images)"
        for name, d in taxonomy.dimensions.items()
    )
    return f"values to choose from, and images that have one: {counts}"


def _introduction(
    found: RecordSet,
    records: Sequence[Record],
    learned: Sequence[Record],
    tags: RecordTags,
    arguments: AttributesArguments,
) -> str:
    lines = [f"{len(records)} images to tell apart; {tags.without} without tags."]
    if tags.unknown:
        named = ", ".join(f"{value!r} ({n})" for value, n in list(tags.unknown.items())[:5])
        lines.append(f"{sum(tags.unknown.values())} tags that the taxonomy has not: {named}")
    if learned:
        lines.append(f"Linear probes learn from the {len(learned)} images that the run trained on.")
    elif arguments.probe:
        lines.append("No linear probes: they learn from what a run trained on; give one by --run.")
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
