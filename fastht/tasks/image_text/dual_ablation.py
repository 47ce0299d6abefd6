"""``fastht train --recipe echocare-clip-ablation``: what trains of a dual encoder, side by side."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from fastht.captions.engine import caption_rows
from fastht.captions.schema import load_templates
from fastht.data import ImageTextDataset
from fastht.data.tables import read_table
from fastht.files import make_directory, write_atomically, write_json
from fastht.tasks.image_text.ablation_table import IMAGES, STATE, ablation_table
from fastht.tasks.image_text.ablation_tower import with_tower
from fastht.tasks.image_text.compared import SEEDS, Scores, compare_trainings, trained_scores
from fastht.tasks.image_text.judged_records import keep_unseen, load_judged
from fastht.tasks.image_text.pair_scores import PairScores, pair_intervals
from fastht.tasks.image_text.run import load_clip
from fastht.tasks.image_text.train_arguments import TrainArguments
from fastht.tasks.models.build import TINY_MODEL
from fastht.tasks.models.encoders import NO_HEAD, OWN
from fastht.tasks.models.text_towers import TINY_BERT
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.results.tables import BEFORE_NAME, PREDICTIONS_NAME

ALIGNED_NAME = "aligned.json"
_HEAD = "mlp-256"
# The plan of EchoCare-CLIP's authors for their three tiers: organ, condition, metadata.
_TIER_SHARES = {"organ": 0.2, "condition": 0.5}
_LABEL = "label"
_DESCRIPTORS = ("shape", "margin", "echogenicity", "orientation", "posterior", "calcification")
ONE_TEMPLATE = "one template"
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


def run_ablation(arguments: TrainArguments) -> dict[str, Any]:
    """Train and judge all variants with the same seeds; see :func:`compare_trainings`."""
    prepare: Callable[[TrainArguments], TrainArguments] | None = None
    if arguments.model == TINY_MODEL and arguments.data == "sample":
        tables = write_captions(_beside(arguments, "captions"))
        towers = _beside(arguments, "towers")
        prepare = lambda one: with_tower(one, tables[ONE_TEMPLATE], towers)  # noqa: E731
    return compare_trainings(
        arguments,
        dual_variants(arguments),
        SEEDS,
        lambda one: judge_pairs(one, arguments.data),
        ablation_table,
        prepare,
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
        tables = write_captions(_beside(arguments, "captions"))
        variants |= {f"HT {name}": replace(ht, data=str(path)) for name, path in tables.items()}
    return variants


def _beside(arguments: TrainArguments, what: str) -> Path:
    """Return a folder beside that of the comparison, which holds nothing but runs."""
    return arguments.out.with_name(f"{arguments.out.name}-{what}")


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
        ONE_TEMPLATE: (load_templates(str(one)), rows),
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
    for version, table in (("before", BEFORE_NAME), ("after", PREDICTIONS_NAME)):
        _, rows = read_table(out / table)
        right = [
            (row["file"], row["patient"] or None, float(row["zero_shot_accuracy"]))
            for _, row in rows
            if row.get("zero_shot_accuracy")
        ]
        images = aligned[version].pop(IMAGES) | {"zero_shot_accuracy": right}
        judged[version] = trained[version] | aligned[version] | {IMAGES: images}
    found = results["collapse"]
    judged["after"][STATE] = found["state"]
    if found["state"] != "collapsed" and found["alarms"]:
        judged["after"][STATE] += " after a collapse"
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
    scores: dict[str, Any] = {}
    for version, judged in pairs.items():
        percentiles = zip(records, judged.percentiles.tolist(), strict=True)
        rows = [(i, record.patient, value) for i, (record, value) in enumerate(percentiles)]
        scores[version] = judged.scores() | {IMAGES: {"rank_percentile": rows}}
    return scores | {"intervals": pair_intervals(pairs)}
