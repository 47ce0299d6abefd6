"""What predicts: a finished run, or a file of ``fastht export``, behind one face."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fastht.data.captions import Cleaning, clean_caption
from fastht.data.cases import Case
from fastht.data.preprocess import Preprocess, SquarePreprocess
from fastht.exporting import ExportedModel, ExportError, load_exported
from fastht.exporting.load import SUFFIXES
from fastht.tasks.image_text.prompts import (
    Prompts,
    class_embeddings,
    load_prompts,
    prompt_labels,
    zero_shot_logits,
)
from fastht.tasks.image_text.run import ClipRun, load_clip
from fastht.tasks.images.finished import open_run
from fastht.tasks.images.run import RUN_NAME
from fastht.tasks.models.build import model_source
from fastht.tasks.models.text_towers import build_text_tokenizer
from fastht.tasks.training.run_files import ARGUMENTS_NAME
from fastht.tasks.training.seen import count_trained
from fastht.tasks.training.state import ResumeError

PredictTask = Literal["segment", "classify", "zeroshot"]
_FILTERS = {filter_.name.lower(): int(filter_) for filter_ in Image.Resampling}


@dataclass(frozen=True)
class Predictor:
    """A model in use.

    Attributes:
        task: what it does: masks, or probabilities of classes.
        classes: names of the classes, in the order of the logits; of no use to segmentation.
        prepare: picture -> ``[3, H, W]``; of segmentation a :class:`SquarePreprocess`.
        logits: images ``[B, 3, H, W]`` -> ``[B, 2, H, W]`` of masks or ``[B, classes]``, on the
            CPU, where the softmax of the second is the probabilities.
        told: what predictions are of, as plain JSON types.
        trained: how many of some cases are of files that it was trained on; ``None``: not known.
        temperature: by which logits are divided for calibrated probabilities; ``None``: not fitted.
    """

    task: PredictTask
    classes: tuple[str, ...]
    prepare: Callable[[Image.Image], Tensor]
    logits: Callable[[Tensor], Tensor]
    told: Mapping[str, Any]
    trained: Callable[[Sequence[Case]], int | None]
    temperature: float | None = None

    def notes(self) -> list[str]:
        """Return what the reader of predictions has to know of the model."""
        found = []
        if str(self.told.get("model", "")).endswith("/none"):
            found.append("The base has RANDOM weights.")
        if self.told.get("trained_on") == "sample":
            found.append("It was trained on SIMULATED images: nothing clinical follows from them.")
        return found


def open_predictor(source: Path, prompts: str | None, classes: Sequence[str]) -> Predictor:
    """Return what a run's folder or an exported file predicts.

    Args:
        source: folder of one run, or a file of ``fastht export``.
        prompts: of classes, for contrastive models; see :func:`class_prompts`.
        classes: likewise.

    Raises:
        CheckpointError, DataError, ExportError, ResumeError, ValueError: it is neither, cannot be
            read, or the options do not fit it.
    """
    if source.is_file():
        return _of_file(source, prompts, classes)
    if (source / RUN_NAME).exists():
        _refuse_classes(source, prompts, classes)
        return _of_images(source)
    if (source / ARGUMENTS_NAME).exists():
        return _of_clip(source, prompts, classes)
    inside = sorted(path.parent for path in source.glob(f"*/**/{RUN_NAME}"))
    hint = f"; it holds runs, give one: {', '.join(map(str, inside[:3]))}" if inside else ""
    what = "is no run of fastht" if source.exists() else "does not exist"
    raise ResumeError(
        f"{source} {what}{hint or '; give the folder of a run, or a file of fastht export'}"
    )


def class_prompts(prompts: str | None, classes: Sequence[str]) -> Prompts:
    """Return the prompts of each class that a contrastive model is to tell apart.

    Args:
        prompts: one of those that come with fastht, or a YAML file; ``None``: each class is its own
            one prompt.
        classes: those of the file that count; none: all.

    Raises:
        DataError: the prompts cannot be used.
        ValueError: fewer than two classes are given.
    """
    if prompts is None:
        made: Prompts = {name: (name,) for name in classes}
    else:
        made = load_prompts(prompts, tuple(classes) or prompt_labels(prompts))
    if len(made) < 2:
        raise ValueError(
            "a contrastive model tells classes apart by prompts: give --prompts (breast, liver, "
            "lung, lymph_node, thyroid, sample or a YAML file), or two or more --classes"
        )
    return made


def _refuse_classes(source: Path, prompts: str | None, classes: Sequence[str]) -> None:
    if prompts is not None or classes:
        raise ValueError(
            f"{source} has classes of its own, or none; leave out --prompts and --classes, which "
            "are for contrastive models"
        )


def _of_images(folder: Path) -> Predictor:
    run = open_run(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = run.vision.module.eval().to(device)
    made = run.arguments

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        return model(images.to(device)).float().cpu()  # type: ignore[no-any-return]

    told = {
        "source": str(folder),
        "model": run.model_name,
        "method": run.description["method"],
        "trained_on": made.data,
    }
    prepare = SquarePreprocess(
        made.image_size, tuple(run.vision.mean), tuple(run.vision.std), made.resize
    )

    def trained(cases: Sequence[Case]) -> int | None:
        return count_trained(folder, cases)

    return Predictor(run.task, run.classes, prepare, logits, told, trained, run.temperature)


def _of_clip(folder: Path, prompts: str | None, classes: Sequence[str]) -> Predictor:
    wanted = class_prompts(prompts, classes)
    clip = load_clip(folder, "", "", None)
    embeddings = embed_classes(clip, wanted)
    scale = clip.scale
    device = next(clip.model.parameters()).device

    @torch.no_grad()
    def logits(images: Tensor) -> Tensor:
        found: Any = clip.model.encode_image(images.to(device), normalize=True)  # type: ignore[operator]
        return zero_shot_logits(found.float().cpu(), embeddings, scale)

    told = {
        "source": str(folder),
        "model": clip.name,
        "method": clip.method or "base",
        "trained_on": clip.arguments.get("data"),
        "prompts": {name: list(texts) for name, texts in wanted.items()},
    }

    def trained(cases: Sequence[Case]) -> int:
        return sum(clip.trained_on(case.image) for case in cases)

    return Predictor("zeroshot", tuple(wanted), clip.transform, logits, told, trained)


def embed_classes(clip: ClipRun, prompts: Prompts) -> Tensor:
    """Return the embedding of each class, ``[classes, E]``, its prompts cleaned as the run's."""
    cleaned = {name: tuple(map(clip.clean, texts)) for name, texts in prompts.items()}
    return class_embeddings(clip.embedder, cleaned)


def _of_file(path: Path, prompts: str | None, classes: Sequence[str]) -> Predictor:
    if path.suffix.lower() not in SUFFIXES.values():
        raise ExportError(f"{path} is no folder of a run, and no .pt2 or .onnx; give one of these")
    file = load_exported(path)
    about = file.metadata
    task = about.get("task")
    if task not in ("segment", "classify", "contrastive") or "image" not in about["inputs"]:
        raise ExportError(
            f"{path} does not say what it predicts from images; export the run by fastht export"
        )
    constants, size = about["preprocess"], about["inputs"]["image"]
    dtype = getattr(torch, about["dtype"])
    told = {"source": str(path), **{name: about.get(name) for name in ("model", "method")}}
    told["trained_on"] = about.get("trained_on")
    if task != "contrastive":
        _refuse_classes(path, prompts, classes)
        prepare = SquarePreprocess(
            size["height"], constants["mean"], constants["std"], constants.get("fit", "squash")
        )

        def logits(images: Tensor) -> Tensor:
            return file(image=images.to(dtype))[about["outputs"][0]].float()

        return Predictor(
            task,
            tuple(about["classes"]),
            prepare,
            logits,
            told,
            _not_known,
            about.get("temperature"),
        )
    names, embeddings, wanted = _classes_of_file(path, file, prompts, classes)
    scale = about["logit_scale"]

    def zero_shot(images: Tensor) -> Tensor:
        found = _run_one_side(file, image=images.to(dtype))["image_features"]
        return zero_shot_logits(F.normalize(found.float(), dim=-1), embeddings, scale)

    told["prompts"] = wanted
    return Predictor("zeroshot", names, _preprocess(constants), zero_shot, told, _not_known)


def _classes_of_file(
    path: Path, file: ExportedModel, prompts: str | None, classes: Sequence[str]
) -> tuple[tuple[str, ...], Tensor, Any]:
    """Return names, embeddings and prompts of classes: the file's own, or those that are given."""
    about = file.metadata
    kept = about.get("class_embeddings")
    if prompts is None and kept is not None:
        names = tuple(classes) or tuple(about["classes"])
        if missing := [name for name in names if name not in about["classes"]]:
            raise ValueError(
                f"{path} has no class {missing[0]!r}; choose of {', '.join(about['classes'])}, or "
                "give --prompts"
            )
        rows = torch.tensor(kept)[[about["classes"].index(name) for name in names]]
        return names, rows, {name: about["prompts"][name] for name in names}
    if "text" not in about["inputs"]:
        raise ValueError(
            f"{path} holds no text tower, and so no classes but its own"
            f"{' (none)' if kept is None else ''}; export the run with --part both, or with "
            "--prompts"
        )
    wanted = class_prompts(prompts, classes)
    tokenizer = _tokenizer(about)
    cleaning: Cleaning = about.get("cleaning", "letters")

    def embed(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer([clean_caption(text, cleaning) for text in texts])
        found = _run_one_side(file, text=tokens)["text_features"]
        return F.normalize(found.float(), dim=-1)

    return tuple(wanted), class_embeddings(embed, wanted), {n: list(t) for n, t in wanted.items()}


def _tokenizer(about: Mapping[str, Any]) -> Callable[[list[str]], Tensor]:
    """Return what makes token numbers for a file's text tower, as long as it takes them."""
    name, length = about["tokenizer"], about["inputs"]["text"]["context_length"]
    # Files of older versions do not say of which library it is.
    if about.get("tokenizer_of", "open_clip") == "open_clip":
        found: Callable[[list[str]], Tensor]
        found = open_clip.get_tokenizer(model_source(name), context_length=length)
        return found
    return functools.partial(build_text_tokenizer(name), context_length=length)


def _run_one_side(file: ExportedModel, **given: Tensor) -> dict[str, Tensor]:
    """Run a file of both towers for one of them; the other gets a single input of zeros."""
    inputs = dict(given)
    about = file.metadata["inputs"]
    if "image" in about and "image" not in inputs:
        sides = (about["image"][name] for name in ("channels", "height", "width"))
        inputs["image"] = torch.zeros(1, *sides, dtype=getattr(torch, file.metadata["dtype"]))
    if "text" in about and "text" not in inputs:
        inputs["text"] = torch.zeros(1, about["text"]["context_length"], dtype=torch.int64)
    return file(**inputs)


def _preprocess(constants: Mapping[str, Any]) -> Preprocess:
    resize, crop = constants["resize"], constants.get("crop")
    return Preprocess(
        resize=resize if isinstance(resize, int) else (resize[0], resize[1]),
        resample=_FILTERS[constants.get("interpolation", "bicubic")],
        crop=None if crop is None else (crop[0], crop[1]),
        mean=tuple(constants["mean"]),
        std=tuple(constants["std"]),
    )


def _not_known(cases: Sequence[Case]) -> None:
    """Stand for what a file does not keep: what the model was trained on."""
    return None
