"""A CLIP-like model to be judged: as a run of ``fastht train`` left it, or by its name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastht.checkpoint import load_adapter
from fastht.config import HTConfig
from fastht.data.captions import Cleaning, clean_caption
from fastht.data.cases import split_part
from fastht.data.tables import read_table
from fastht.files import cache_dir, check_writable
from fastht.tasks.image_text.adapted import (
    Method,
    adapt,
    as_base,
    load_weights,
    own_weights,
    weights_path,
)
from fastht.tasks.image_text.caption_fit import CaptionFit, CaptionPart, CutCaptions, find_cut
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.tagged_texts import TaggedTexts, build_graph, load_graph
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.image_text.towers import OwnWeights, text_trains
from fastht.tasks.models.dual import DualEncoder
from fastht.tasks.models.encoders import NO_HEAD, OWN, Encoder, EncoderNames, build_encoder
from fastht.tasks.results.folders import inner_folder, run_folder
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar
from fastht.tasks.training.run_files import ARGUMENTS_NAME, check_weights, read_run_arguments
from fastht.tasks.training.seen import SPLIT_NAME

REVISION = "text_revision"  # in that file
UNKNOWN_FILES = (
    "NOTE: no file of this data is in the split of {run}. Files are known by their paths, so "
    "copies of images that trained would be scored as if they were new."
)


def read_split(run: Path) -> dict[str, str]:
    """Return the side of each file of a run's split, by :func:`file_key`.

    Raises:
        DataError: the table cannot be read.
    """
    _, rows = read_table(run / SPLIT_NAME)
    # Some row of a file on the training side is enough to have trained on it.
    return {
        file_key(row["file"]): side
        for side in ("val", "train")
        for _, row in rows
        if row["split"] == side
    }


def file_key(image: str) -> str:
    """Return what tells the files of images apart, however they are named.

    Frames and slices of a file count as one, the images inside a tar do not.
    """
    tar, mark, member = image.partition(".tar::")
    if mark:
        return f"{os.path.realpath(tar + '.tar')}::{member}"
    return os.path.realpath(split_part(image)[0])


@dataclass(frozen=True)
class ClipRun:
    """A CLIP-like model to be judged as its base and, if anything adapts it, as adapted.

    Attributes:
        model: in evaluation mode.
        transform: PIL image -> ``[3, H, W]``.
        embedder: embeds texts with the text tower as it is at the time, and with the tags that are
            found in them if the run trained a tag graph.
        name: of the base, as ``"ViT-B-16/openai"``.
        method: what adapts it; ``None``: nothing.
        arguments: those of the run of ``fastht train`` that it is from; empty for others.
        sides: the run's split, as :func:`read_split` returns it.
        own: weights of the model itself that the run trained, with a copy of the base's.
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    embedder: TaggedTexts
    name: str
    method: Method | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    sides: Mapping[str, str] = field(default_factory=dict)
    own: OwnWeights | None = None

    def versions(self) -> Iterator[str]:
        """Make the model its base, and then the adapted one if there is one, while iterated."""
        if self.method is None:
            yield "before"
            return
        with as_base(self.model, self.method, self.own), self.embedder.disabled():
            yield "before"
        yield "after"

    @property
    def cleaning(self) -> Cleaning:
        """How the run cleaned its captions, and so how other texts are cleaned for it."""
        chosen: Cleaning = self.arguments.get("cleaning", "letters")
        return chosen

    @property
    def caption_part(self) -> CaptionPart:
        """What the run read of captions that are too long for the text tower."""
        part: CaptionPart = self.arguments.get("caption_part", "start")
        return part

    @property
    def scale(self) -> float:
        """The model's factor of similarities, as it is now."""
        value: float = self.model.logit_scale.detach().exp().item()  # type: ignore[operator, union-attr]
        return value

    def clean(self, text: str) -> str:
        """Return a text as the run's captions were cleaned."""
        return clean_caption(text, self.cleaning)

    def fit_captions(self, captions: Sequence[str]) -> CutCaptions:
        """Read captions as the run did from now on; return what is cut of these."""
        embedder = self.embedder.plain
        held = embedder.tokenizer
        plain = held.tokenizer if isinstance(held, CaptionFit) else held
        embedder.tokenizer = fitted = CaptionFit(plain, self.caption_part, captions)
        return find_cut(fitted, captions)

    @torch.no_grad()
    def encode_images(self, data: Dataset[Any], batch_size: int, workers: int) -> Tensor:
        """Return the normalised embeddings ``[n, E]`` of a data set's images, on the CPU.

        Args:
            data: items are mappings with an ``"image"`` that went through the transform.
            batch_size: images at a time.
            workers: processes that load images.

        Raises:
            DataError: an image cannot be read.
        """
        device = next(self.model.parameters()).device
        loader = make_loader(data, workers=workers, batch_size=batch_size)
        parts = []
        for batch in ProgressBar(read_batches(loader), total=len(loader), title="images"):
            images = batch["image"].to(device)
            parts.append(self.model.encode_image(images, normalize=True).float().cpu())  # type: ignore[operator]
        return torch.cat(parts)

    def trained_on(self, image: str) -> bool:
        """Return whether the run trained on an image's file."""
        return self.sides.get(file_key(image)) == "train"

    def knows(self, images: Iterable[str]) -> bool:
        """Return whether the file of any of some images is in the run's split."""
        return any(file_key(image) in self.sides for image in images)

    def describe(self) -> dict[str, Any]:
        """Return what a report of results tells of the model, as plain JSON types."""
        told: dict[str, Any] = {
            "model": self.name,
            "method": self.method or "base",
            "percent": 100.0,
            "seed": self.arguments.get("trainer", {}).get("seed", 0),
        }
        if (towers := self.arguments.get("train_towers", "none")) != "none":
            told["train_towers"] = towers
        return told | ({"trained_on": self.arguments["data"]} if self.arguments else {})


def load_clip(run: Path | None, model: str, pretrained: str, adapter: Path | None) -> ClipRun:
    """Return a model to be judged, on a GPU if there is one.

    Args:
        run: folder of ``fastht train``, which names the model; ``None`` takes the arguments below.
        model: as :func:`build_clip` takes it.
        pretrained: likewise.
        adapter: folder of a saved HT adapter for it.

    Raises:
        CheckpointError: the HT adapter cannot be read or does not fit.
        DataError: the run's split cannot be read.
        ResumeError: LoRA's weights, or those of towers, cannot be read or do not fit.
        ValueError: the folder holds no run or one without weights, a run and an adapter are both
            given, or the model is unknown or its weights cannot be had.
    """
    if run is None:
        return _load_model(model, pretrained, adapter)
    if adapter is not None:
        raise ValueError("--run and --adapter are both given: a run has its own; leave out one")
    arguments = read_run_arguments(run, "--adapter")
    method: Method = arguments["method"]
    check_weights(run, [weights_path(run, method).name])
    sides = read_split(run)
    names = EncoderNames(
        arguments["model"],
        arguments["pretrained"],
        arguments.get("text", OWN),
        arguments.get("head", NO_HEAD),
        arguments.get(REVISION),
        arguments.get("trainer", {}).get("seed", 0),
    )
    built = build_encoder(names)
    clip = built.model
    if method == "ht":
        clip.requires_grad_(False)
    else:
        adapt(clip, method, config=HTConfig(), lora_rank=arguments["lora_rank"], backend="auto")
    own = own_weights(clip, method, arguments.get("train_towers", "none"))
    if own is not None:
        own.keep_base()
    load_weights(clip, method, run, own)  # patches it as it was trained, where that is by HT
    return _finish(built, names.title, method, arguments, sides, run, own)


def results_folder(command: str, data: str, run: Path | None, model: str) -> Path:
    """Return where a command leaves what it finds out: in a run's folder, or in one of its own.

    Args:
        command: its name.
        data: what it is about.
        run: folder of the run, if there is one.
        model: name of the model otherwise.
    """
    return run_folder(command, data, model) if run is None else inner_folder(run, command, data)


def check_folder(out: Path | None) -> None:
    """Raise ``ValueError`` if a folder of results is a file, ``OSError`` if it is read-only."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    check_writable(out)


def _load_model(model: str, pretrained: str, adapter: Path | None) -> ClipRun:
    names = EncoderNames(model, pretrained)
    built = build_encoder(names)
    if adapter is not None:
        load_adapter(built.model, adapter)
    method: Method | None = None if adapter is None else "ht"
    return _finish(built, names.title, method, {}, {})


def _finish(
    built: Encoder,
    name: str,
    method: Method | None,
    arguments: Mapping[str, Any],
    sides: Mapping[str, str],
    run: Path | None = None,
    own: OwnWeights | None = None,
) -> ClipRun:
    model = built.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    # A text tower that is adapted embeds anew what its base has embedded.
    towers = arguments.get("train_towers", "none")
    dual = isinstance(model, DualEncoder)
    cache = None if text_trains(method, towers, dual=dual) else cache_dir()
    plain = TextEmbedder(model, built.tokenizer, cache)
    graph = None
    if run is not None and arguments.get("tagging"):
        graph = build_graph(TagOptions(**arguments["tagging"]), plain)
        load_graph(graph, run)
    embedder = TaggedTexts(plain, graph)
    return ClipRun(model, built.transform, embedder, name, method, arguments, sides, own)


def kept_revision(run: Path) -> str | None:
    """Return the commit of the text tower's repository that a run began with, if it kept one."""
    try:
        found = json.loads((run / ARGUMENTS_NAME).read_text(encoding="utf-8"))
        revision: str | None = found.get(REVISION)
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with the folder is told when it is resumed
    return revision
