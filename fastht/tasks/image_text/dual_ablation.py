"""``fastht train --recipe echocare-clip-ablation``: what trains of a dual encoder, side by side."""

from __future__ import annotations

import csv
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from fastht.captions.engine import caption_rows
from fastht.captions.schema import load_templates
from fastht.data import ImageTextDataset
from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.image_text.compared import (
    SEEDS,
    Scores,
    compare_trainings,
    in_percent,
    seeds_said,
    table_of,
    trained_scores,
)
from fastht.tasks.image_text.judged_records import keep_unseen, load_judged
from fastht.tasks.image_text.pair_scores import PairScores, pair_intervals
from fastht.tasks.image_text.run import load_clip
from fastht.tasks.image_text.train_arguments import TrainArguments
from fastht.tasks.models.encoders import NO_HEAD, OWN
from fastht.tasks.models.text_towers import TINY_BERT
from fastht.tasks.results.tables import RESULTS_NAME

ALIGNED_NAME = "aligned.json"
_HEAD = "mlp-256"
# The plan of EchoCare-CLIP's authors for their three tiers: organ, condition, metadata.
_TIER_SHARES = {"organ": 0.2, "condition": 0.5}
_LABEL = "label"
_DESCRIPTORS = ("shape", "margin", "echogenicity", "orientation", "posterior", "calcification")
_ONE_TEMPLATE = """\
organ: breast
image: [filepath]
label: condition
fields: {condition: [label]}
missing: [""]
tiers:
  - name: one template
    needs: [condition]
    templates: ["An ultrasound image of the {organ} with a {condition}."]
"""
_COSINES = ("gap", "paired", "unmatched")
_ENDS = "zero_shot_accuracy, 95 % of each seed"
SHOWN = (
    *_COSINES,
    "zero_shot_accuracy",
    _ENDS,
    "image_to_text_recall@5",
    "image_to_text_recall@10",
    "text_to_image_recall@5",
    "text_to_image_recall@10",
    "image_effective_rank",
    "alarm",
)


def run_ablation(arguments: TrainArguments) -> dict[str, Any]:
    """Train and judge all variants with the same seeds; see :func:`compare_trainings`."""
    return compare_trainings(
        arguments,
        dual_variants(arguments),
        SEEDS,
        lambda one: judge_pairs(one, arguments.data),
        ablation_table,
    )


def dual_variants(arguments: TrainArguments) -> dict[str, TrainArguments]:
    """Return what is trained, by name; for the sample also captions of other kinds.

    Text tower and heads are those of the arguments, else ``tiny-bert`` and ``mlp-256``. Equal
    captions are positives of each other. "full published rate" trains towers as the published
    code does: at the rate of the heads, without warm-up and clipping, all decaying.
    """
    base = replace(
        arguments,
        text=TINY_BERT if arguments.text == OWN else arguments.text,
        head=_HEAD if arguments.head == NO_HEAD else arguments.head,
        positives="caption",
        method="none",
        train_towers="none",
    )
    full = replace(base, train_towers="both")
    ht = replace(base, method="ht")
    variants = {
        "heads": base,
        "image": replace(base, train_towers="image"),
        "text": replace(base, train_towers="text"),
        "full": full,
        "full published rate": replace(
            full,
            tower_lr_scale=1.0,
            decay_all=True,
            trainer=replace(full.trainer, warmup_steps=0, clip_grad_norm=0.0),
        ),
        "HT": ht,
    }
    if arguments.data == "sample":
        tables = write_captions(arguments.out.with_name(f"{arguments.out.name}-captions"))
        variants |= {f"HT {name}": replace(ht, data=str(path)) for name, path in tables.items()}
    return variants


def write_captions(folder: Path) -> dict[str, Path]:
    """Write the sample with captions of three tiers, and of one template, as tables.

    Of the sample's rows all have descriptors. So that all three tiers occur, by the shares of the
    published plan, captions of a fifth of the images are told neither class nor descriptors, and
    those of three tenths no descriptors; which these are goes by a hash of the image's name.
    """
    make_directory(folder)
    root = Path(str(resources.files("fastht.data") / "sample"))
    with (root / "sample.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    one = folder / "one-template.yaml"
    write_atomically(one, _ONE_TEMPLATE.encode())
    kinds = {
        "three tiers": (load_templates("breast"), [_told_in_part(row) for row in rows]),
        "one template": (load_templates(str(one)), rows),
    }
    found = {}
    for name, (templates, told) in kinds.items():
        path = folder / f"{name.replace(' ', '-')}.csv"
        made = caption_rows(templates, told, root=root).rows
        lines = ["filepath\ttitle\tlabel\tpatient\ttier"]
        for row, caption in zip(rows, made, strict=True):
            image, title = str(root / row["filepath"]), caption.captions[0]
            lines.append("\t".join((image, title, row[_LABEL], row["patient"], caption.tier)))
        write_atomically(path, "\n".join([*lines, ""]).encode())
        found[name] = path
    return found


def _told_in_part(row: Mapping[str, str]) -> dict[str, str]:
    """Return a row without what its tier does not tell."""
    number = int.from_bytes(
        hashlib.blake2b(row["filepath"].encode(), digest_size=8).digest(), "big"
    )
    place = number / 2**64
    hidden: set[str] = set()
    if place < _TIER_SHARES["condition"]:
        hidden.update(_DESCRIPTORS)
    if place < _TIER_SHARES["organ"]:
        hidden.add(_LABEL)
    kept = {"filepath", _LABEL, *_DESCRIPTORS} - hidden
    return {name: value if name in kept else "" for name, value in row.items()}


def judge_pairs(arguments: TrainArguments, data: str) -> Scores:
    """Return what a training found out, with the alignment of the pairs that it held out.

    Args:
        arguments: of the finished training.
        data: whose captions are judged, of the same images: those of the sample are its own,
            whatever captions trained.
    """
    out = arguments.out
    if not (out / ALIGNED_NAME).exists():
        write_json(out / ALIGNED_NAME, _align(arguments, data))
    aligned = json.loads((out / ALIGNED_NAME).read_text(encoding="utf-8"))
    results = json.loads((out / RESULTS_NAME).read_text(encoding="utf-8"))
    trained = trained_scores(arguments)
    judged = {}
    for version in ("before", "after"):
        ends = results["intervals"].get(version, {}).get("zero_shot_accuracy")
        judged[version] = trained[version] | aligned[version] | {_ENDS: ends}
    judged["after"]["alarm"] = float(results["collapse"] is not None)
    return judged


def _align(arguments: TrainArguments, data: str) -> dict[str, Any]:
    clip = load_clip(arguments.out, arguments.model, arguments.pretrained, None)
    options = clip.arguments if data == arguments.data else {}
    found = load_judged(data, options, clip.cleaning, ())
    records = keep_unseen(found, True, clip)
    captions = [record.caption for record in records]
    clip.fit_captions(captions)
    pictures = ImageTextDataset(records, clip.transform)
    trainer = arguments.trainer
    pairs = {
        version: PairScores(
            records,
            clip.encode_images(pictures, trainer.batch_size, trainer.workers),
            clip.embedder(captions),
        )
        for version in clip.versions()
    }
    scores: dict[str, Any] = {version: judged.scores() for version, judged in pairs.items()}
    return scores | {"intervals": pair_intervals(pairs)}


def ablation_table(scores: Mapping[str, Mapping[str, Scores]]) -> str:
    """Return a Markdown table: cosines and ranks as they are, all else in percent.

    Args:
        scores: by variant, seed, ``before`` or ``after``, and name.
    """
    first = next(iter(scores.values()))
    columns: dict[str, list[Mapping[str, Any]]] = {"base": [r["before"] for r in first.values()]}
    columns |= {name: [run["after"] for run in runs.values()] for name, runs in scores.items()}
    return table_of(columns, SHOWN, _cell, seeds_said(len(first)))


def _cell(name: str, values: Sequence[Any]) -> str:
    if not values:
        return ""
    if name == _ENDS:
        return "; ".join(f"{100 * low:.0f}-{100 * high:.0f}" for low, high in values)
    if name == "alarm":
        return f"{sum(values):.0f} of {len(values)}"
    if name in _COSINES or name.endswith("rank"):
        digits = 1 if name.endswith("rank") else 3
        mean = f"{statistics.fmean(values):.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
    return in_percent(values)
