"""Trainings side by side: several variants, each with the same seeds, and one table of them."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import fastht
from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.image_text.train import train
from fastht.tasks.image_text.train_arguments import TrainArguments
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.results.shown import SIMULATED
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import STATE_NAME

TABLE_NAME = "recipe.md"
SEEDS = 3  # of an ablation

Scores = Mapping[str, Mapping[str, Any]]  # by "before" and "after", and name
Judge = Callable[[TrainArguments], Scores]


def compare_trainings(
    arguments: TrainArguments,
    variants: Mapping[str, TrainArguments],
    count: int,
    judge: Judge,
    table: Callable[[Mapping[str, Mapping[str, Scores]]], str],
    prepare: Callable[[TrainArguments], TrainArguments] | None = None,
) -> dict[str, Any]:
    """Train and judge all variants with the same seeds; print and leave a table of them.

    Trainings that are finished are not done again with ``resume``.

    Args:
        arguments: of the recipe; their seed is the first.
        variants: what is trained, by name.
        count: of seeds.
        judge: what is found out of a finished training, given its arguments.
        table: of the scores by variant and seed, in Markdown.
        prepare: makes what trainings of a seed begin with, and returns the arguments with it.

    Returns:
        What ``recipe.json``'s content is: the scores of each variant and seed.

    Raises:
        ResumeError: the folder holds such a comparison already, and ``resume`` is off.
        ValueError: there are several processes.
        Others as :func:`train` and ``judge``.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--recipe compares in one process; for several start a training of each variant: "
            "--semantic fastht --tag-graph tokens, or --method and --train-towers"
        )
    out = arguments.out
    seeds = [arguments.trainer.seed + i for i in range(count)]
    if out.exists() and any(out.iterdir()) and not arguments.resume:
        raise ResumeError(f"{out} holds something already: add --resume, or give another --out")
    make_directory(out)
    scores: dict[str, dict[str, Scores]] = {name: {} for name in variants}
    made = ""
    found: dict[str, Any] = {}
    for seed in seeds:
        for name, variant in variants.items():
            folder = out / name.replace(" ", "-") / f"seed-{seed}"
            print(f"\n== {name}, seed {seed} ==")
            one = replace(
                variant,
                recipe="none",
                trainer=replace(variant.trainer, seed=seed),
                out=folder,
                resume=(folder / STATE_NAME).exists(),
            )
            if not (folder / RESULTS_NAME).exists():
                train(one if prepare is None else prepare(one))
            scores[name][str(seed)] = judge(one)
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
        made = table(scores)
        write_json(out / "recipe.json", found)
        write_atomically(out / TABLE_NAME, made.encode())
    print(f"\n{made}\ntable and runs: {out}")
    if arguments.data == "sample":
        print(SIMULATED)
    return found


def trained_scores(arguments: TrainArguments) -> dict[str, dict[str, Any]]:
    """Return what a training found out itself, before and after."""
    found = json.loads((arguments.out / RESULTS_NAME).read_text(encoding="utf-8"))
    return {version: found[version] for version in ("before", "after")}


def table_of(
    columns: Mapping[str, Sequence[Mapping[str, float]]],
    shown: Sequence[str],
    cell: Callable[[str, Sequence[float]], str],
    heading: str,
) -> str:
    """Return a Markdown table of scores, a row each; rows without any are left out.

    Args:
        columns: by name, the scores of each seed.
        shown: names of scores.
        cell: what a cell says of a score's values.
        heading: of the first column.
    """
    lines = [f"| {heading} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in shown:
        cells = [
            cell(name, [run[name] for run in runs if run.get(name) is not None])
            for runs in columns.values()
        ]
        if any(cells):
            lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def seeds_said(count: int) -> str:
    """Return how a heading tells of how many seeds the cells are."""
    return (
        f"{'mean and standard deviation of ' if count > 1 else ''}{count} seed{'s' * (count > 1)}"
    )


def in_percent(values: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation of several; empty for none."""
    if not values:
        return ""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
