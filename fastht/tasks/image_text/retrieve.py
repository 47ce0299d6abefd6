"""``fastht retrieve``: images found by captions and captions by images, before and after."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastht
from fastht.data import ImageTextDataset, Record, RecordSet
from fastht.data.captions import Cleaning, clean_caption
from fastht.tasks.image_text.judged_records import keep_unseen, load_judged
from fastht.tasks.image_text.pair_scores import PairScores, pair_intervals
from fastht.tasks.image_text.run import (
    UNKNOWN_FILES,
    ClipRun,
    check_folder,
    load_clip,
    results_folder,
)
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.known_images import KNOWN_NAME, Copies, judge_copies
from fastht.tasks.results.provenance import provenance
from fastht.tasks.results.retrieval_pictures import Found, draw_found
from fastht.tasks.results.shown import Shown, count_patients

RETRIEVED_NAME = "retrieved.png"
QUERY_NAME = "query.png"
_NEAREST = 5  # images that a text is shown with
_ROWS = 6  # captions in the picture


@dataclass(frozen=True)
class RetrieveArguments:
    """Find images by captions and captions by images, with a base and with what a run made of it.

    Images that the run trained on are left out. One process does it all.

    Attributes:
        data: "run" (what the run held out, or the sample if there is no run), "sample", a CSV or
            TSV table, webdataset shards ("shards/{000..009}.tar"), or a folder, JSON or Parquet
            file of a set with captions (`fastht data list`).
        image_key: column of the image files; default: filepath, or filename.
        caption_key: column of the captions; default: title, or Caption.
        label_key: column of the classes; default: label.
        patient_key: column of the patients; default: patient, or a name that means the same.
        split_key: column of the sides; default: split, if there.
        frame_key: column of the frames of multi-frame files; default: frame.
        separator: column separator of the table; default: found out.
        image_dirs: folders in which relative image paths are looked up, before the table's own.
        cleaning: what captions and the query keep: letters of every script, or ASCII alone as in
            the paper; default: as the run did, else letters.
        run: folder of a run of fastht train, which names the model.
        model: without a run: open_clip's name of the model, hf-hub:ORG/REPO, local-dir:FOLDER, or
            "fastht-tiny".
        pretrained: without a run: open_clip's tag, the file of the weights, or "none" for random
            ones.
        adapter: without a run: folder of a saved HT adapter; default: the base alone.
        copies: images that are copies of those that the run trained on: warn or leave-out.
        query: only show the images that are nearest to this text.
        batch_size: images at a time.
        workers: processes that load images.
        out: folder of the results; default: retrieve-DATA in the folder of the run, else
            runs/retrieve-DATA-MODEL.
    """

    data: str = "run"
    image_key: str | None = None
    caption_key: str | None = None
    label_key: str | None = None
    patient_key: str | None = None
    split_key: str | None = None
    frame_key: str | None = None
    separator: str | None = None
    image_dirs: tuple[Path, ...] = ()
    cleaning: Cleaning | None = None
    run: Path | None = None
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    adapter: Path | None = None
    copies: Copies = "warn"
    query: str | None = None
    batch_size: int = 32
    workers: int = 2
    out: Path | None = None


def retrieve(arguments: RetrieveArguments) -> int:
    """Measure retrieval, print the scores and leave them with a picture; or answer a query.

    Raises:
        DataError: the data cannot be used, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run or the model cannot be had, or the query is empty.
    """
    if arguments.query is not None and not arguments.query.strip():
        raise ValueError("--query is empty; give the text to look for")
    check_folder(arguments.out)
    clip = load_clip(arguments.run, arguments.model, arguments.pretrained, arguments.adapter)
    own = arguments.data == "run"
    data = str(clip.arguments.get("data", "sample")) if own else arguments.data
    out = arguments.out or results_folder("retrieve", data, arguments.run, arguments.model)
    check_folder(out)
    cleaning = arguments.cleaning or clip.cleaning
    query = None if arguments.query is None else clean_caption(arguments.query, cleaning)
    if query == "":
        raise ValueError(f"--query {arguments.query!r} has no letters; give the text to look for")
    found = load_judged(
        data, clip.arguments if own and clip.arguments else vars(arguments), cleaning
    )
    records = keep_unseen(found, own and arguments.run is not None, clip)
    cut = clip.fit_captions([record.caption for record in found])
    found = replace(found, notes=(*found.notes, *cut.notes(clip.caption_part)))
    print(found.account())
    if arguments.run is not None:
        print(f"{len(found) - len(records)} of them left out, as {arguments.run} trained on them.")
    records, known = judge_copies(arguments.run, records, arguments.copies)
    if arguments.run and known is None and not clip.knows(record.image for record in found):
        print(UNKNOWN_FILES.format(run=arguments.run))
    if data == "sample":
        print("These images are SIMULATED: they show that things work, nothing clinical.")
    out.mkdir(parents=True, exist_ok=True)
    if query is not None:
        _answer(query, records, clip, arguments, out)
    else:
        _measure(records, data, found, clip, arguments, out, known)
    return 0


def _measure(
    records: Sequence[Record],
    data: str,
    found: RecordSet,
    clip: ClipRun,
    arguments: RetrieveArguments,
    out: Path,
    known: dict[str, Any] | None,
) -> None:
    started = time.monotonic()
    left_out = len(found) - len(records)
    captions = [record.caption for record in records]
    judged = {}
    for version in clip.versions():
        images = _encode(records, clip, arguments)
        plain = clip.embedder.plain(captions)
        texts = clip.embedder.tagged(captions, plain)
        beside = None if clip.embedder.graph is None else plain
        judged[version] = PairScores(records, images, texts, beside)
    scores = {version: pairs.scores() for version, pairs in judged.items()}
    intervals = pair_intervals(judged)
    retrieval = judged["before"].retrieval
    write_comparison(
        out,
        {
            "task": "retrieve",
            "data": data,
            **clip.describe(),
            "test_images": len(records),
            "captions": len(set(captions)),
            "gallery": retrieval.gallery(),
            "left_out": left_out,
            KNOWN_NAME: known,
            "before": scores["before"],
            # Where nothing adapts the model, it is the same before and after.
            "after": scores.get("after", scores["before"]),
            "intervals": intervals,
            "provenance": provenance(
                {"scored": records},
                found.dropped | {"the run trained on": left_out},
                device=next(clip.model.parameters()).device,
                seconds=time.monotonic() - started,
                notes=found.notes,
            ),
            "fastht_version": fastht.__version__,
        },
    )
    # The last version is the adapted one, if there is one.
    _draw(records, images, texts, clip, out / RETRIEVED_NAME, _shown(records, clip, arguments))
    heading = f"{retrieval.images} images, {retrieval.captions} captions"
    print(
        f"{comparison_table(heading, scores, intervals)}\n{retrieval.describe()}\n\n"
        f"results and pictures: {out}"
    )


def _answer(
    query: str,
    records: Sequence[Record],
    clip: ClipRun,
    arguments: RetrieveArguments,
    out: Path,
) -> None:
    """Print the files of the images nearest to a text, and draw them."""
    different = list({(record.image, record.frame): record for record in records}.values())
    images = _encode(different, clip, arguments)
    nearest = _nearest(images, clip.embedder([query])[0])
    for place, (index, similarity) in enumerate(nearest, 1):
        print(f"{place}  {similarity:.4f}  {different[index].image}")
    pictures = ImageTextDataset(different, _unchanged)
    found = [Found(pictures[index]["image"], similarity) for index, similarity in nearest]
    path = out / QUERY_NAME
    title, shown = f"nearest by {clip.name}{_adapted(clip)}", _shown(different, clip, arguments)
    draw_found(path, [(query, found)], title, shown)
    print(f"picture: {path}")


def _draw(
    records: Sequence[Record],
    images: Tensor,
    texts: Tensor,
    clip: ClipRun,
    path: Path,
    shown: Shown,
) -> None:
    """Draw captions that are evenly spaced among all, with the images nearest to them."""
    rows = list({record.caption: i for i, record in enumerate(records)}.values())
    places = torch.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().int().tolist()
    pictures = ImageTextDataset(records, _unchanged)
    drawn = []
    for row in (rows[place] for place in places):
        caption = records[row].caption
        found = [
            Found(pictures[index]["image"], similarity, records[index].caption == caption)
            for index, similarity in _nearest(images, texts[row])
        ]
        drawn.append((caption, found))
    draw_found(path, drawn, f"nearest by {clip.name}{_adapted(clip)}", shown)


def _shown(records: Sequence[Record], clip: ClipRun, arguments: RetrieveArguments) -> Shown:
    """Return what a picture of found images is of: the images that are searched."""
    data = clip.arguments.get("data", "sample") if arguments.data == "run" else arguments.data
    patients = count_patients(record.patient for record in records)
    images = {(record.image, record.frame) for record in records}
    return Shown(len(images), patients, clip.name, data)


def _nearest(images: Tensor, text: Tensor) -> list[tuple[int, float]]:
    """Return the indexes of the images nearest to a text, with their similarities."""
    found = (images @ text).topk(min(_NEAREST, len(images)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _encode(records: Sequence[Record], clip: ClipRun, arguments: RetrieveArguments) -> Tensor:
    data = ImageTextDataset(records, clip.transform)
    return clip.encode_images(data, arguments.batch_size, arguments.workers)


def _adapted(clip: ClipRun) -> str:
    put_in = [] if clip.method in (None, "none") else [str(clip.method)]
    own = [] if clip.own is None else ["weights of its own that trained"]
    return f" with {' and '.join([*put_in, *own])}" if put_in or own else ""


def _unchanged(image: Any) -> Any:
    return image
