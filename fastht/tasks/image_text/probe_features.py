"""What probes learn from: frozen features of a run, of models of open_clip and of timm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.data.cases import Case
from fastht.tasks.image_text.judged_cases import CaseImages, encode_cases
from fastht.tasks.image_text.judged_records import JudgedModel
from fastht.tasks.image_text.run import ClipRun, load_clip
from fastht.tasks.models.build import TIMM, build_features
from fastht.tasks.results.folders import folder_word
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar

_BRINGING = ("hf-hub:", "local-dir:")  # models that bring their own weights


@dataclass(frozen=True)
class Features:
    """Features of the same images by one model.

    Attributes:
        told: what results say of the model; ``method`` is "base" where nothing adapts it.
        versions: ``[n, D]`` float32 on the CPU, "before" and, where something adapts it, "after".
        folder: a name for files.
    """

    told: dict[str, Any]
    versions: dict[str, Tensor]
    folder: str


def own_features(clip: ClipRun, cases: Sequence[Case], arguments: JudgedModel) -> Features:
    """Return the normalised image embeddings of a run or a model, before and after.

    Raises:
        DataError: an image cannot be read.
    """
    versions = {version: encode_cases(cases, clip, arguments) for version in clip.versions()}
    told = clip.describe()
    del told["seed"], told["percent"]  # those of the probe count
    name = "run" if arguments.run is not None else arguments.model
    return Features(told, versions, folder_word(name))


def baseline_features(name: str, cases: Sequence[Case], arguments: JudgedModel) -> Features:
    """Return the features of a baseline: normalised embeddings, or timm's pooled ones.

    Args:
        name: ``NAME:TAG``, as :func:`parse_baseline` takes it.
        cases: whose images.
        arguments: how images are read.

    Raises:
        DataError: an image cannot be read.
        ValueError: there is no such model, or its weights cannot be had.
    """
    model, pretrained = parse_baseline(name)
    if not model.startswith(TIMM):
        clip = load_clip(None, model, pretrained, None)
        versions = {"before": encode_cases(cases, clip, arguments)}
        return Features({"model": clip.name, "method": "base"}, versions, folder_word(model))
    found = torch.cat(list(_encode_timm(model, pretrained, cases, arguments)))
    told = {"model": f"{model}/{pretrained}", "method": "base"}
    return Features(told, {"before": found}, folder_word(model))


def parse_baseline(name: str) -> tuple[str, str]:
    """Return name and weights of a baseline: ``ViT-B-32:openai``, ``biomedclip``, ``timm:NAME``.

    Without weights they are "openai", timm's own for timm, and those that a model brings; "none"
    are random ones.

    Raises:
        ValueError: the name is empty.
    """
    prefix = next((p for p in (TIMM, *_BRINGING) if name.startswith(p)), "")
    model, _, tag = name.removeprefix(prefix).rpartition(":")
    # A path may have a colon of its own.
    if not model or (prefix in _BRINGING and tag != "none" and not Path(tag).is_file()):
        model, tag = name.removeprefix(prefix), "timm" if prefix == TIMM else "openai"
    if not model or not tag:
        raise ValueError(f"the baseline {name!r} has no name or no weights; give NAME or NAME:TAG")
    return prefix + model, tag


@torch.no_grad()
def _encode_timm(
    name: str, pretrained: str, cases: Sequence[Case], arguments: JudgedModel
) -> Iterator[Tensor]:
    model, transform = build_features(name.removeprefix(TIMM), pretrained)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    images = CaseImages(cases, transform)
    loader = make_loader(images, workers=arguments.workers, batch_size=arguments.batch_size)
    for batch in ProgressBar(read_batches(loader), total=len(loader), title="images"):
        yield model(batch["image"].to(device)).float().cpu()
