"""The main job, ``fastht train``: from a model's name and image-text pairs to an adapted model."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed

import fastht
from fastht.data import DataError, RecordSet, load_records, split_records
from fastht.data.headers import with_frames_noted
from fastht.data.overlap.remembered import remember
from fastht.data.records import note_patients
from fastht.data.signature import note_copies, record_entries
from fastht.files import cache_dir, check_writable, write_json
from fastht.tasks.image_text.adapted import adapt, load_weights, own_weights, weights_path
from fastht.tasks.image_text.caption_fit import CaptionFit, find_cut
from fastht.tasks.image_text.contrastive import ContrastiveTask
from fastht.tasks.image_text.held_out import held_out_intervals
from fastht.tasks.image_text.positives import describe_positives
from fastht.tasks.image_text.published import describe_recipe
from fastht.tasks.image_text.reading import READING_OPTIONS
from fastht.tasks.image_text.run import REVISION, kept_revision
from fastht.tasks.image_text.tag_account import (
    describe_targets,
    tagging_record,
    target_sharpness_of,
)
from fastht.tasks.image_text.tagged_texts import (
    TaggedTexts,
    build_graph,
    load_graph,
)
from fastht.tasks.image_text.tags import RecordTags, fields_of, tags_of
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.image_text.titles import describe_spread, repeats, spread_record
from fastht.tasks.image_text.towers import text_trains
from fastht.tasks.image_text.train_arguments import TrainArguments
from fastht.tasks.image_text.wording import remember_wordings
from fastht.tasks.models.echocare import ECHOCARE, NO_ADAPTERS
from fastht.tasks.models.encoders import Encoder, build_encoder
from fastht.tasks.results.comparison import comparison_table
from fastht.tasks.results.figure_style import plot_curves
from fastht.tasks.results.finished_runs import RESULTS_NAME
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.shown import SIMULATED, Shown, count_patients
from fastht.tasks.results.tables import BEFORE_NAME, PREDICTIONS_NAME, write_table
from fastht.tasks.scores.collapse import CollapseAlarm
from fastht.tasks.training.fit_memory import fit_memory, kept_choice, memory_record
from fastht.tasks.training.run_files import ARGUMENTS_NAME
from fastht.tasks.training.seen import check_data, keep_data
from fastht.tasks.training.state import ResumeError
from fastht.tasks.training.trainer import (
    STATE_NAME,
    NonFiniteLossError,
    Trainer,
    make_accelerator,
)
from fastht.taxonomy import load_taxonomy

CURVES_NAME = "curves.png"
TOWER_WARMUP = 0.05  # of a run in which towers train, unless it says otherwise
# Its token numbers tell tokenizers, and how many tokens they take, apart.
_PROBE = "Hypoechoic mass, 12.5 mm, BI-RADS 4a; Lésion hypoéchogène. 低回声结节"


def train(arguments: TrainArguments) -> dict[str, Any]:
    """Train and evaluate; leave what was trained, curves and results in ``arguments.out``.

    Returns:
        ``{"before": {...}, "after": {...}, ...}`` as in ``results.json``.

    Raises:
        DataError: the data cannot be used.
        ResumeError: ``out`` holds a run already and ``resume`` is off, or cannot be resumed.
        NonFiniteLossError: a loss is not finite.
        ValueError: an argument is out of range, the model is unknown or has no ViT, or LoRA cannot
            be put into it.
    """
    begun = time.monotonic()
    config, method = arguments.trainer, arguments.method
    accelerator = make_accelerator(config)
    set_seed(config.seed, device_specific=True)  # dropout differs between processes
    out = arguments.out
    if arguments.model.startswith(ECHOCARE) and method != "none":
        raise ValueError(NO_ADAPTERS)
    _check_folder(out, arguments.resume)

    tagging = arguments.tagging
    taxonomy = load_taxonomy(tagging.taxonomy) if tagging.needed else None
    records = load_records(
        arguments.data,
        attribute_keys=() if taxonomy is None else fields_of(taxonomy),
        **{name: getattr(arguments, name) for name in READING_OPTIONS},
    )
    if arguments.titles == "first":
        firsts = tuple(replace(record, others=()) for record in records)
        records = replace(records, records=firsts)
    train_records, val_records = split_records(
        records.records, val_fraction=arguments.val_fraction, seed=config.seed
    )
    sides = {"train": train_records, "val": val_records}
    tags: tuple[RecordTags, RecordTags] | None = None
    several = any(record.others for record in records)
    if taxonomy is not None:
        if several and tagging.tags == "captions":
            raise DataError(
                f"{records.source}: images have several captions, whose tags would differ; add "
                "--titles first, or --tags columns"
            )
        train_tags = tags_of(train_records, taxonomy, tagging.tags)
        tags = (train_tags, tags_of(val_records, taxonomy, tagging.tags))
        if train_tags.without == len(train_records):
            raise DataError(
                f"{records.source}: no training sample has a tag of {taxonomy.label}, in "
                f"{tagging.tags}; fill the columns, choose --tags captions or columns, or give "
                "another --taxonomy"
            )
    built = build_model(arguments, accelerator)
    model = built.model
    captions = [text for record in records for text in (record.caption, *record.others)]
    tokenizer = CaptionFit(built.tokenizer, arguments.caption_part, captions)
    cut = find_cut(tokenizer, captions)
    notes = (*note_patients(train_records, val_records), *cut.notes(arguments.caption_part))
    records = replace(records, notes=(*records.notes, *notes))
    _say(accelerator, _introduction(arguments, records, len(train_records), len(val_records)))
    for account in (built.account, describe_recipe(arguments)):
        if account:
            _say(accelerator, account)
    if cut.most_are_equal:
        raise DataError(
            f"{records.source}: most captions cannot be told apart: "
            f"{cut.describe(arguments.caption_part)}"
        )

    own = own_weights(model, method, arguments.train_towers)
    if own is not None:
        _say(accelerator, own.describe())
    base_model, dual = arguments.names.title, arguments.names.dual
    cache = None if text_trains(method, arguments.train_towers, dual=dual) else cache_dir()
    embedder = TextEmbedder(model, tokenizer, cache)
    graph = build_graph(tagging, embedder, arguments.pretrained)
    task = ContrastiveTask(
        model,
        method,
        TaggedTexts(embedder, graph),
        train_records,
        val_records,
        built.transform,
        accelerator,
        batch_size=config.batch_size,
        workers=config.workers,
        out=out,
        base_model=base_model,
        flip=arguments.flip,
        crop_margin=arguments.crop_margin,
        loss=arguments.loss,
        positives=arguments.positives,
        options=tagging,
        tags=tags,
        own=own,
        seed=config.seed,
    )
    if dual:
        _say(accelerator, task.describe_pooled())
    if task.reads_no_images:
        config = replace(config, workers=0)
    config, choice = fit_memory(
        accelerator,
        config,
        task,
        model,
        kept=kept_choice(out / ARGUMENTS_NAME, arguments.resume),
        beside=task.held_beside(),
    )
    task.batch_size = config.batch_size
    if choice is not None:
        _say(accelerator, choice.describe())
    floor = task.held_out_floor()
    if task.keys is not None:
        _say(accelerator, describe_positives(task.keys, arguments.positives))
    if floor is not None:
        _say(accelerator, f"The held-out loss cannot fall below {floor:.4f}.")
    sharpness = {}
    if tags is not None:
        _say(accelerator, tags[0].describe())
    if task.targets is not None and taxonomy is not None:
        sharpness = target_sharpness_of(task)
        _say(accelerator, describe_targets(tagging, taxonomy, sharpness))
    spread = arguments.spread_captions and repeats(task.captions)
    signature = arguments.signature(several, spread) | {"tokenizer": _digest(tokenizer)}
    if built.revision is not None:
        signature[REVISION] = built.revision
    if tags is not None:
        signature["tags"] = [side.digest() for side in tags]
    # Soft labels' loss is added to the training loss, whose value by guessing is then another.
    plain_loss = arguments.loss == "clip" and task.targets is None
    chance = math.log(config.batch_size) if plain_loss else None
    alarm = CollapseAlarm(chance, len(val_records))
    trainer = Trainer(
        accelerator,
        config,
        task,
        out,
        signature,
        arguments.resume,
        alarm.watch,
        groups=own.groups(arguments.tower_lr_scale, arguments.decay_all) if own else (),
        warmup_share=0.0 if arguments.train_towers == "none" else TOWER_WARMUP,
        alike=task.captions.rows if spread else None,
    )
    multiplicity = spread_record(trainer.sampler, task.captions) if spread else None
    if multiplicity is not None and multiplicity["multiplicity_shuffled"] > 1:
        _say(accelerator, describe_spread(multiplicity))
    if arguments.resume:
        check_data(out, record_entries(sides))
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        plain = (
            arguments.plain()
            | {"fastht_version": fastht.__version__}
            | memory_record(config, choice)
        )
        if built.revision is not None:
            plain[REVISION] = built.revision
        write_json(out / ARGUMENTS_NAME, plain)
        entries = record_entries(sides)
        keep_data(out, entries)
        read = len(records.notes)
        records = replace(records, notes=(*records.notes, *note_copies(entries)))
        records = with_frames_noted(records)  # all files were just read for their digests
        for note in records.notes[read:]:
            print(f"note: {note.text}", flush=True)
    # A resumed run too is the base until it goes on: no copy of towers that train is needed.
    with task.as_base():
        losses_before, held_before = task.judge()
    alarm.begin(held_before.spread)
    started = time.monotonic()
    progress = trainer.fit()
    seconds = time.monotonic() - started
    if progress.best_epoch is None:
        raise NonFiniteLossError(
            "no epoch had a finite held-out loss, so there is nothing to keep; lower --lr"
        )
    if told := alarm.conclude(progress.best_epoch):
        _say(accelerator, told)
    accelerator.wait_for_everyone()
    load_weights(model, method, out, own)
    load_graph(graph, out)
    losses_after, held_after = task.judge()
    before = losses_before | held_before.scores()
    after = losses_after | held_after.scores()
    intervals = held_out_intervals(held_before, held_after)
    results = {
        "task": "contrastive",
        "method": method,
        "train_towers": arguments.train_towers,
        "percent": 100.0,
        "seed": config.seed,
        "trainable_parameters": sum(p.numel() for p in task.module.parameters() if p.requires_grad),
        "before": before,
        "after": after,
        "best_epoch": progress.best_epoch,
        "epochs": progress.epoch,
        "seconds": seconds,
        "train_samples": len(train_records),
        "held_out_samples": len(val_records),
        "classes": task.classes,
        "model": base_model,
        "data": arguments.data,
        "loss": arguments.loss,
        "positives": arguments.positives,
        "caption_multiplicity": multiplicity,
        "held_out_loss_floor": floor,
        "tagging": tagging_record(tagging, tags, sharpness),
        "collapse": alarm.record(progress.best_epoch),
        "intervals": intervals,
        "gallery": held_after.retrieval.gallery(),
        **({} if built.record is None else {"encoder": built.record}),
        **memory_record(config, choice),
    }
    results["provenance"] = provenance(
        sides,
        records.dropped,
        notes=records.notes,
        device=accelerator.device,
        seconds=time.monotonic() - begun,
        processes=accelerator.num_processes,
    )
    if accelerator.is_main_process:
        remember(out, train_records)
        remember_wordings(out, task.captions.texts)
        write_json(out / RESULTS_NAME, results)
        write_table(out / BEFORE_NAME, held_before.rows())
        write_table(out / PREDICTIONS_NAME, held_after.rows())
        patients = count_patients(record.patient for record in val_records)
        plot_curves(
            progress.history,
            out / CURVES_NAME,
            best_epoch=progress.best_epoch,
            title=f"{base_model} on {arguments.data}",
            shown=Shown(len(val_records), patients, base_model, arguments.data),
        )
    columns = {"before": before, "after": after}
    _say(accelerator, comparison_table("held out", columns, intervals))
    _say(accelerator, held_after.retrieval.describe())
    _say(
        accelerator,
        f"{'weights' if method == 'none' else 'adapter'}: {weights_path(out, method)}   "
        f"curves: {out / CURVES_NAME}   TensorBoard: tensorboard --logdir {out / 'tensorboard'}",
    )
    accelerator.end_training()
    return results


def build_model(arguments: TrainArguments, accelerator: Accelerator) -> Encoder:
    """Return the model with what it is to train, on the accelerator's device.

    Raises:
        NoLoraError: LoRA cannot be put into this model.
        UnsupportedModelError: the model has no vision transformer.
        ValueError: there is no such model, or its weights cannot be had.
    """
    names = arguments.names
    if arguments.resume:  # by the commit that the run began with
        names = replace(names, revision=kept_revision(arguments.out))
    # One process downloads, the others find it there.
    with accelerator.main_process_first():
        built = build_encoder(names)
    adapt(
        built.model,
        arguments.method,
        config=arguments.adapter,
        lora_rank=arguments.lora_rank,
        backend=arguments.backend,
    )
    return replace(built, model=built.model.to(accelerator.device))


def _check_folder(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    check_writable(out)
    occupied = (out / STATE_NAME).exists()
    if occupied and not resume:
        raise ResumeError(f"{out} holds a run already: add --resume, or give another --out")
    if resume and not occupied:
        raise ResumeError(f"{out} holds no state to resume from; start it without --resume")


def _digest(tokenizer: CaptionFit) -> str:
    """Return what tells a tokenizer and its length from others."""
    tokens = tokenizer.tokenizer([_PROBE])
    return hashlib.sha256(tokens.contiguous().numpy().tobytes()).hexdigest()[:16]


def _introduction(arguments: TrainArguments, records: RecordSet, train: int, val: int) -> str:
    left = len(records) - train - val
    apart = f", {left} of split test are neither" if left else ""
    lines = [records.account(), f"{train} samples to train on, {val} held out{apart}."]
    if arguments.data == "sample":
        lines.append(SIMULATED)
    if arguments.pretrained == "none" and not arguments.model.startswith(ECHOCARE):
        lines.append(
            f"{arguments.model} starts from RANDOM weights (--pretrained none): good for trying "
            "things out; real work starts from pretrained ones."
        )
    return "\n".join(lines)


def _say(accelerator: Accelerator, text: str) -> None:
    if accelerator.is_main_process:
        print(text, flush=True)
