"""``fastht train --recipe ultrasound-clip``: the recipe beside what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastht.files import write_json
from fastht.tasks.image_text.attributes import AttributesArguments, judge_attributes
from fastht.tasks.image_text.compared import (
    SEEDS,
    compare_trainings,
    in_percent,
    seeds_said,
    table_of,
    trained_scores,
)
from fastht.tasks.image_text.judged_records import open_model
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.train_arguments import TrainArguments

ATTRIBUTES_NAME = "attributes.json"
# Of the scores that a training and its attributes have, those that the table shows.
SHOWN = (
    "image_to_text_recall@5",
    "image_to_text_recall@10",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
    "plain_text_image_to_text_recall@10",
    "plain_text_text_to_image_recall@10",
    "mean_accuracy",
    "mean_recall",
    "plain_text_mean_accuracy",
    "plain_text_mean_recall",
    "probe_mean_accuracy",
    "probe_mean_recall",
)


def variants_of(arguments: TrainArguments) -> dict[str, TagOptions]:
    """Return what a recipe trains, plain CLIP training first, by name."""
    held = arguments.tagging
    semantic = "fastht" if held.semantic == "none" else held.semantic
    graph = "tokens" if held.tag_graph == "none" else held.tag_graph
    both = replace(held, semantic=semantic, tag_graph=graph)
    plain = TagOptions(tags=held.tags, taxonomy=held.taxonomy)
    if arguments.recipe == "ultrasound-clip":
        return {"plain": plain, "ultrasound-clip": both}
    return {
        "plain": plain,
        "soft labels": replace(both, tag_graph="none"),
        "tag graph": replace(plain, tag_graph=graph, tag_dropout=held.tag_dropout),
        "both": both,
    }


def run_recipe(arguments: TrainArguments) -> dict[str, Any]:
    """Train and judge all variants with the same seeds; see :func:`compare_trainings`."""
    count = SEEDS if arguments.recipe.endswith("ablation") else 1
    variants = {
        name: replace(arguments, tagging=tagging)
        for name, tagging in variants_of(arguments).items()
    }
    return compare_trainings(
        arguments, variants, count, lambda one: _judge(one, probe=count == 1), recipe_table
    )


def _judge(arguments: TrainArguments, probe: bool) -> dict[str, dict[str, float]]:
    """Return the scores before and after with attributes; these are found out once."""
    out = arguments.out
    if not (out / ATTRIBUTES_NAME).exists():
        options = AttributesArguments(
            tags=arguments.tagging.tags,
            taxonomy=arguments.tagging.taxonomy,
            run=out,
            probe=probe,
            batch_size=arguments.trainer.batch_size,
            workers=arguments.trainer.workers,
        )
        write_json(out / ATTRIBUTES_NAME, judge_attributes(options, open_model(options)).results)
    judged = json.loads((out / ATTRIBUTES_NAME).read_text(encoding="utf-8"))
    trained = trained_scores(arguments)
    return {version: trained[version] | judged[version] for version in ("before", "after")}


def recipe_table(scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Return a Markdown table in percent: means over seeds, with standard deviations of several.

    Args:
        scores: by variant, seed, ``before`` or ``after``, and name.
    """
    first = next(iter(scores.values()))
    columns = {"base": [run["before"] for run in first.values()]}
    columns |= {name: [run["after"] for run in runs.values()] for name, runs in scores.items()}
    heading = f"%, {seeds_said(len(first))}"
    return table_of(columns, SHOWN, lambda _, values: in_percent(values), heading)
