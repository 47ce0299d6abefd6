"""``fastht predict``: what a finished run, or an exported file, makes of images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import fastht
from fastht.data.cases import Case, read_case_image
from fastht.data.images import DataError
from fastht.exporting.onnx import data_file
from fastht.files import check_writable, write_json
from fastht.tasks.inference.found import Found, Frames, find_images
from fastht.tasks.inference.leave import (
    ABOUT_NAME,
    LINES_NAME,
    Row,
    areas_sentence,
    leave_image,
    leave_tables,
    read_lines,
)
from fastht.tasks.inference.predictors import Predictor, open_predictor
from fastht.tasks.results.folders import run_folder
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar

RESEARCH_ONLY = (
    "For research: this is no medical device, and nothing here is a diagnosis or a clinical claim."
)


@dataclass(frozen=True)
class PredictArguments:
    """Predict masks, classes, or classes by prompts, of images of one's own.

    Attributes:
        source: folder of one run of fastht segment, classify or train, or a file of fastht export.
        images: files and folders: PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM, NIfTI.
        prompts: of a contrastive model: breast, liver, lung, lymph_node, thyroid, sample or a YAML
            file.
        classes: those of the prompts that count, default all; without prompts each name is its own.
        frames: of files with several: all of them, or the one in the middle.
        batch_size: images at a time.
        workers: processes that load images.
        out: folder of the results, which must not exist; default: runs/predict-IMAGES-SOURCE.
        resume: go on with that folder: what is done is not done again.
    """

    source: Annotated[Path, tyro.conf.Positional]
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    prompts: str | None = field(default=None, kw_only=True)
    classes: tuple[str, ...] = field(default=(), kw_only=True)
    frames: Frames = field(default="all", kw_only=True)
    batch_size: int = field(default=32, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    out: Path | None = field(default=None, kw_only=True)
    resume: bool = field(default=False, kw_only=True)


class Pictures(Dataset[dict[str, Any]]):
    """Images at their own size and as the model takes them, each read when asked for.

    Items are ``{"index", "picture", "image"}``, or ``{"index", "error"}`` of one that cannot be
    read: the others are predicted all the same.
    """

    def __init__(self, cases: Sequence[Case], prepare: Callable[[Image.Image], Tensor]) -> None:
        self.cases = cases
        self.prepare = prepare

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            picture = read_case_image(self.cases[i])
            return {"index": i, "picture": picture, "image": self.prepare(picture)}
        except DataError as error:
            return {"index": i, "error": str(error)}


def predict(arguments: PredictArguments) -> int:
    """Predict, and leave tables, masks and overlays.

    Raises:
        DataError: there is no image, or none can be read.
        ResumeError: the source is no finished run, or there is nothing to resume.
        ValueError: the options do not fit the model.
    """
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size is {arguments.batch_size}; give at least 1")
    if not arguments.images:
        raise ValueError("no images are given; name files or folders after the run")
    source = arguments.source
    out = arguments.out or run_folder("predict", arguments.images[0], source.name)
    if out.exists() and not arguments.resume:
        raise ValueError(f"{out} exists; give another --out, or go on with it by --resume")
    check_writable(out)
    found = find_images(arguments.images, arguments.frames)
    settings = _settings(arguments, found)
    done = read_lines(out, settings) if arguments.resume else []
    predictor = open_predictor(source, arguments.prompts, arguments.classes)
    print(_introduction(found, predictor, len(done)), flush=True)

    about: dict[str, Any] = {
        "settings": settings,
        **predictor.told,
        "task": predictor.task,
        "classes": list(predictor.classes) if predictor.task != "segment" else None,
        "fastht_version": fastht.__version__,
        "notes": [RESEARCH_ONLY, *predictor.notes()],
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / ABOUT_NAME, about)
    rows = _predict(found, predictor, arguments, out, done)
    if not rows:
        raise DataError(f"no image could be read\n{found.account_of_skipped()}\nconvert them")
    counts = {"files": found.files, "images": len(rows), "skipped": len(found.skipped)}
    leave_tables(out, rows, found.skipped, about | counts)
    print(_conclusion(rows, found, predictor))
    print(f"\nresults: {out}\n{RESEARCH_ONLY}")
    return 0


def _predict(
    found: Found, predictor: Predictor, arguments: PredictArguments, out: Path, done: list[Row]
) -> list[Row]:
    """Return the rows of all images in their order; each is on disk as soon as it is known."""
    known = {row["file"]: row for row in done}
    left = [case for case in found.cases if case.image not in known]
    loader = make_loader(
        Pictures(left, predictor.prepare),
        workers=arguments.workers,
        batch_size=arguments.batch_size,
        collate_fn=list,
    )
    with (out / LINES_NAME).open("a", encoding="utf-8") as lines:
        for batch in ProgressBar(read_batches(loader), total=len(loader), title="batches"):
            for item in batch:
                if "error" in item:
                    name = left[item["index"]].image
                    why = item["error"].removeprefix(f"{name}: ")
                    found.skipped[name] = f"cannot be read: {why}"
            items = [item for item in batch if "error" not in item]
            if not items:
                continue
            logits = predictor.logits(torch.stack([item["image"] for item in items]))
            for item, values in zip(items, logits, strict=True):
                case = left[item["index"]]
                row = leave_image(out, case, item["picture"], values, predictor)
                known[case.image] = row
                lines.write(f"{json.dumps(row)}\n")
            lines.flush()
    return [known[case.image] for case in found.cases if case.image in known]


def _settings(arguments: PredictArguments, found: Found) -> dict[str, Any]:
    """Return what decides the predictions, so that two halves of a table are of one model."""
    source = arguments.source
    if source.is_file():
        weights = [path for path in (source, data_file(source)) if path.exists()]
    else:
        weights = sorted(source.glob("*.safetensors"))
        weights += sorted((source / "adapter").glob("*.safetensors"))
    digest = hashlib.sha256()
    for path in weights:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {
        "source": str(source.absolute()),
        "weights_sha256": digest.hexdigest(),
        "prompts": arguments.prompts,
        "classes": list(arguments.classes),
        "frames": arguments.frames,
    }


def _introduction(found: Found, predictor: Predictor, done: int) -> str:
    lines = [found.account()]
    if done:
        lines.append(f"{done:,} of them are done already.")
    trained = predictor.trained(found.cases)
    if trained is None:
        lines.append("NOTE: what the model was trained on is not known.")
    elif trained:
        lines.append(
            f"NOTE: {trained:,} of them trained this run: how well it does on them says nothing of "
            "new images."
        )
    return "\n".join([*lines, *predictor.notes()])


def _conclusion(rows: Sequence[Row], found: Found, predictor: Predictor) -> str:
    lines = [f"{len(rows):,} images predicted, {len(found.skipped):,} files or images skipped."]
    if any(why.startswith("cannot be read") for why in found.skipped.values()):
        lines.append(found.account_of_skipped())
    if predictor.task == "segment":
        empty = sum(row["area_pixels"] == 0 for row in rows)
        lines.append(f"{empty:,} masks are empty; {areas_sentence(rows)}")
    else:
        counts = dict.fromkeys(predictor.classes, 0)
        for row in rows:
            counts[row["predicted"]] += 1
        lines.append("predicted: " + ", ".join(f"{n:,} {name}" for name, n in counts.items()))
    return "\n".join(lines)
