"""``fastht retrieve``: images found by captions and captions by images, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.data import ImageTextDataset, Record
from fastht.data.captions import clean_caption
from fastht.tasks.image_text.judged_records import (
    Judged,
    PairsArguments,
    encode_records,
    open_model,
    open_pairs,
)
from fastht.tasks.image_text.pair_scores import PairScores, pair_intervals
from fastht.tasks.image_text.run import ClipRun
from fastht.tasks.results.comparison import comparison_table, write_comparison
from fastht.tasks.results.retrieval_pictures import Found, draw_found
from fastht.tasks.results.shown import Shown, count_patients

RETRIEVED_NAME = "retrieved.png"
QUERY_NAME = "query.png"
_NEAREST = 5  # images that a text is shown with
_ROWS = 6  # captions in the picture


@dataclass(frozen=True)
class RetrieveArguments(PairsArguments):
    """Find images by captions and captions by images, with a base and with what a run made of it.

    Images that the run trained on are left out. One process does it all.

    Attributes:
        query: only show the images that are nearest to this text.
    """

    query: str | None = None


def retrieve(arguments: RetrieveArguments) -> int:
    """Measure retrieval, print the scores and leave them with a picture; or answer a query.

    Raises:
        DataError: the data cannot be used, or no image is left.
        ResumeError: the run's weights cannot be read.
        ValueError: the run or the model cannot be had, or the query is empty.
    """
    if arguments.query is not None and not arguments.query.strip():
        raise ValueError("--query is empty; give the text to look for")
    opened = open_model(arguments)
    query = arguments.query
    if query is not None:
        query = clean_caption(query, arguments.cleaning or opened.clip.cleaning)
        if not query:
            raise ValueError(
                f"--query {arguments.query!r} has no letters; give the text to look for"
            )
    judged = open_pairs("retrieve", arguments, opened=opened)
    judged.out.mkdir(parents=True, exist_ok=True)
    if query is not None:
        _answer(query, judged, arguments)
    else:
        _measure(judged, arguments)
    return 0


def _measure(judged: Judged, arguments: RetrieveArguments) -> None:
    clip, records, out = judged.clip, judged.records, judged.out
    captions = [record.caption for record in records]
    versions = {}
    for version in clip.versions():
        images = encode_records(records, clip, arguments)
        plain = clip.embedder.plain(captions)
        texts = clip.embedder.tagged(captions, plain)
        beside = None if clip.embedder.graph is None else plain
        versions[version] = PairScores(records, images, texts, beside)
    scores = {version: pairs.scores() for version, pairs in versions.items()}
    intervals = pair_intervals(versions)
    retrieval = versions["before"].retrieval
    write_comparison(
        out,
        {
            **judged.describe("retrieve"),
            "gallery": retrieval.gallery(),
            "before": scores["before"],
            # Where nothing adapts the model, it is the same before and after.
            "after": scores.get("after", scores["before"]),
            "intervals": intervals,
            **judged.close(),
        },
    )
    # The last version is the adapted one, if there is one.
    shown = _shown(records, judged)
    _draw(records, images, texts, clip, out / RETRIEVED_NAME, shown)
    heading = f"{retrieval.images} images, {retrieval.captions} captions"
    print(
        f"{comparison_table(heading, scores, intervals)}\n{retrieval.describe()}\n\n"
        f"results and pictures: {out}"
    )


def _answer(query: str, judged: Judged, arguments: RetrieveArguments) -> None:
    """Print the files of the images nearest to a text, and draw them."""
    clip = judged.clip
    different = list({(record.image, record.frame): record for record in judged.records}.values())
    images = encode_records(different, clip, arguments)
    nearest = _nearest(images, clip.embedder([query])[0])
    for place, (index, similarity) in enumerate(nearest, 1):
        print(f"{place}  {similarity:.4f}  {different[index].image}")
    pictures = ImageTextDataset(different, _unchanged)
    found = [Found(pictures[index]["image"], similarity) for index, similarity in nearest]
    path = judged.out / QUERY_NAME
    title, shown = f"nearest by {clip.name}{_adapted(clip)}", _shown(different, judged)
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


def _shown(records: Sequence[Record], judged: Judged) -> Shown:
    """Return what a picture of found images is of: the images that are searched."""
    patients = count_patients(record.patient for record in records)
    images = {(record.image, record.frame) for record in records}
    return Shown(len(images), patients, judged.clip.name, judged.data)


def _nearest(images: Tensor, text: Tensor) -> list[tuple[int, float]]:
    """Return the indexes of the images nearest to a text, with their similarities."""
    found = (images @ text).topk(min(_NEAREST, len(images)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _adapted(clip: ClipRun) -> str:
    put_in = [] if clip.method in (None, "none") else [str(clip.method)]
    own = [] if clip.own is None else ["weights of its own that trained"]
    return f" with {' and '.join([*put_in, *own])}" if put_in or own else ""


def _unchanged(image: Any) -> Any:
    return image
