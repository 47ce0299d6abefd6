"""What a training tells of its tags: the setting, and how soft the targets are."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from fastht.tasks.image_text.contrastive import ContrastiveTask
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.tags import RecordTags
from fastht.taxonomy import Taxonomy


def target_sharpness_of(task: ContrastiveTask) -> dict[str, float]:
    """Return what the soft targets of training are like, in batches of its size."""
    assert task.targets is not None
    keys = None if task.keys is None else task.keys.to(task.accelerator.device)
    mass, entropy = task.targets[0].sharpness(task.contrasted(), keys)
    return {
        "target_diagonal_mass": mass,
        "target_entropy": entropy,
        "contrasted": task.contrasted(),
    }


def describe_targets(tagging: TagOptions, taxonomy: Taxonomy, sharpness: dict[str, float]) -> str:
    """Say in a paragraph how soft labels enter the loss and how soft they are."""
    held = tagging.resolved(taxonomy)
    weights = ", ".join(f"{name} {taxonomy.weights.get(name, 1):g}" for name in taxonomy.dimensions)
    weighed = f" Dimensions weigh {weights}." if taxonomy.weights else ""
    batch = int(sharpness["contrasted"])
    mass, entropy = sharpness["target_diagonal_mass"], sharpness["target_entropy"]
    return (
        f"Semantic soft labels ({held.semantic}): weight {held.semantic_weight:g}, temperature "
        f"{held.semantic_temperature:g}, missing dimensions {held.semantic_missing}.{weighed} Of "
        f"{batch} samples the targets have {mass:.4f} of their mass on the diagonal (1: hard "
        f"labels) and an entropy of {entropy:.3f} nats (at most {math.log(batch):.3f})."
    )


def tagging_record(
    tagging: TagOptions, tags: tuple[RecordTags, RecordTags] | None, sharpness: dict[str, float]
) -> dict[str, Any] | None:
    """Return what a ``results.json`` tells of tags and what they did."""
    if tags is None:
        return None
    taxonomy = tags[0].taxonomy
    held = dataclasses.asdict(tagging.resolved(taxonomy)) | sharpness
    if tagging.semantic != "none":
        held["similarity"] = taxonomy.similarity.content()
        held["weights"] = dict(taxonomy.weights)
    return held | {"records": tags[0].record()}
