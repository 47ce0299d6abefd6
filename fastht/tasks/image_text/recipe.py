"""``fastht train --recipe``: a recipe and what it is compared with, trained and judged."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import fastht
from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.image_text.attributes import AttributesArguments, judge_attributes
from fastht.tasks.image_text.judged_records import open_model
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.results.tables import RESULTS_NAME
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import STATE_NAME

SEEDS = 3  # of an ablation
TABLE_NAME = "recipe.md"
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
    """Train and judge all variants with the same seeds; print and leave a table of them.

    Trainings that are finished are not done again with ``resume``.

    Returns:
        What ``recipe.json``'s content is: the scores of each variant and seed.

    Raises:
        ResumeError: the folder holds such a comparison already, and ``resume`` is off.
        ValueError: there are several processes.
        Others as :func:`train` and :func:`judge_attributes`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--recipe compares in one process; for several give its options to a training: "
            "--semantic fastht --tag-graph tokens"
        )
    out, variants = arguments.out, variants_of(arguments)
    count = SEEDS if arguments.recipe.endswith("ablation") else 1
    seeds = [arguments.trainer.seed + i for i in range(count)]
    if out.exists() and any(out.iterdir()) and not arguments.resume:
        raise ResumeError(f"{out} holds something already: add --resume, or give another --out")
    make_directory(out)
    scores: dict[str, dict[str, Any]] = {name: {} for name in variants}
    for seed in seeds:
        for name, tagging in variants.items():
            folder = out / name.replace(" ", "-") / f"seed-{seed}"
            print(f"\n== {name}, seed {seed} ==")
            one = replace(
                arguments,
                recipe="none",
                tagging=tagging,
                trainer=replace(arguments.trainer, seed=seed),
                out=folder,
                resume=(folder / STATE_NAME).exists(),
            )
            scores[name][str(seed)] = _train_and_judge(one, count == 1)
        # After each seed, so that a comparison that is cut short is one of fewer seeds.
        found = {
            "recipe": arguments.recipe,
            "data": arguments.data,
            "model": arguments.model,
            "seeds": seeds[: seeds.index(seed) + 1],
            "epochs": arguments.trainer.epochs,
            "scores": scores,
            "fastht_version": fastht.__version__,
        }
        table = recipe_table(scores)
        write_json(out / "recipe.json", found)
        write_atomically(out / TABLE_NAME, table.encode())
    print(f"\n{table}\ntable and runs: {out}")
    if arguments.data == "sample":
        print("These images are SIMULATED: they show that things work, nothing clinical.")
    return found


def _train_and_judge(arguments: TrainArguments, probe: bool) -> dict[str, dict[str, float]]:
    """Train, unless that is done, and return the scores before and after with attributes."""
    out = arguments.out
    if not (out / RESULTS_NAME).exists():
        train(arguments)
    trained = json.loads((out / RESULTS_NAME).read_text(encoding="utf-8"))
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
    return {version: trained[version] | judged[version] for version in ("before", "after")}


def recipe_table(scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Return a Markdown table in percent: means over seeds, with standard deviations of several.

    Args:
        scores: by variant, seed, ``before`` or ``after``, and name.
    """
    first = next(iter(scores.values()))
    columns = {"base": [run["before"] for run in first.values()]}
    columns |= {name: [run["after"] for run in runs.values()] for name, runs in scores.items()}
    n = len(first)
    heading = f"%, {'mean and standard deviation of ' if n > 1 else ''}{n} seed{'s' * (n > 1)}"
    lines = [f"| {heading} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in SHOWN:
        cells = [_cell([run[name] for run in runs if name in run]) for runs in columns.values()]
        if any(cells):
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
