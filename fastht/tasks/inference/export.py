"""``fastht export``: the model of a finished run in one file that needs no fastht."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

import tyro

from fastht.exporting import Export, ExportError
from fastht.exporting import export as write_export
from fastht.hub.card import public_name
from fastht.tasks.image_text.prompts import Prompts
from fastht.tasks.image_text.run import REVISION, load_clip
from fastht.tasks.images.finished import open_run
from fastht.tasks.inference.predictors import class_prompts, embed_classes
from fastht.tasks.models.encoders import OWN
from fastht.tasks.models.text_towers import HUB
from fastht.tasks.training.run_files import ARGUMENTS_NAME


@dataclass(frozen=True)
class ExportArguments:
    """Export the model of a finished run: adapters folded, LoRA merged, standard operators alone.

    The file names how pictures become its images, and its classes. `fastht predict` reads it too.

    Attributes:
        run: folder of one run of fastht segment, classify or train.
        out: the file to write, which must not exist; default: model.pt2 or model.onnx in the run.
        format: torch (torch.export, AOTInductor) or onnx (ONNX Runtime and others).
        part: of a run of fastht train: image, text or both towers.
        prompts: of a run of fastht train: breast, liver, lung, lymph_node, thyroid, sample or a
            YAML file, whose classes and their embeddings the file then holds.
        classes: those of the prompts that count, default all; without prompts each name is its own.
    """

    run: Annotated[Path, tyro.conf.Positional]
    out: Path | None = field(default=None, kw_only=True)
    format: Literal["torch", "onnx"] = field(default="torch", kw_only=True)
    part: Literal["image", "text", "both"] | None = field(default=None, kw_only=True)
    prompts: str | None = field(default=None, kw_only=True)
    classes: tuple[str, ...] = field(default=(), kw_only=True)


def export_run(arguments: ExportArguments) -> int:
    """Export, and say what was written.

    Raises:
        ExportError: the model cannot be exported.
        OSError: the file exists or cannot be written.
        ResumeError, ValueError: the folder holds no finished run.
    """
    run = arguments.run
    suffix = {"torch": ".pt2", "onnx": ".onnx"}[arguments.format]
    out = arguments.out or run / f"model{suffix}"
    if (run / ARGUMENTS_NAME).exists():
        made = _export_clip(arguments, out)
    else:
        if arguments.part or arguments.prompts or arguments.classes:
            raise ValueError(
                "--part, --prompts and --classes are for runs of fastht train; leave them out"
            )
        made = _export_images(arguments, out)
    beside = f", with its weights in {made.data.name}, to be kept beside it" if made.data else ""
    print(
        f"{made.path}: {made.size_bytes / 2**20:,.1f} MiB{beside}, {made.adapters} HT adapters "
        f"folded; its numbers are within {made.error:.1e} of the model's, relative to the largest."
    )
    return 0


def _export_images(arguments: ExportArguments, out: Path) -> Export:
    run = open_run(arguments.run)
    made = run.arguments
    side = made.image_size
    return write_export(
        run.vision.module.eval(),
        out,
        arguments.format,
        image_size=side,
        preprocess={
            "mean": list(run.vision.mean),
            "std": list(run.vision.std),
            "resize": [side, side],
            "interpolation": "bicubic",
            "fit": made.resize,
        },
        metadata={
            "task": run.task,
            "classes": list(run.classes),
            "model": public_name(run.model_name),
            "method": run.description["method"],
            "seed": run.description["seed"],
            "trained_on": _data_name(made.data),
            "temperature": run.temperature,
        },
    )


def _export_clip(arguments: ExportArguments, out: Path) -> Export:
    asked = arguments.prompts is not None or bool(arguments.classes)
    prompts: Prompts = class_prompts(arguments.prompts, arguments.classes) if asked else {}
    clip = load_clip(arguments.run, "", "", None)
    more: dict[str, Any] = {
        "task": "contrastive",
        "model": public_name(clip.name),
        "method": clip.method or "base",
        "trained_on": _data_name(clip.arguments["data"]),
        **_tokenizer(clip.arguments),
        "cleaning": clip.cleaning,
        "caption_part": clip.caption_part,
        "tag_graph_left_out": clip.embedder.graph is not None,
    }
    if prompts:
        more |= {
            "classes": list(prompts),
            "prompts": {name: list(texts) for name, texts in prompts.items()},
            "class_embeddings": embed_classes(clip, prompts).tolist(),
        }
    if more["tag_graph_left_out"]:
        print(
            "NOTE: the run's tag graph is no part of the text tower; the file embeds texts without "
            "their tags, but classes of --prompts with them."
        )
    try:
        return write_export(
            clip.model,
            out,
            arguments.format,
            part=arguments.part,
            preprocess=clip.transform if arguments.part != "text" else None,
            metadata=more,
        )
    except ExportError as error:
        raise ExportError(f"{arguments.run}: {error}") from error


def _data_name(data: str) -> str:
    """Return what data is called, without the folders of the machine that trained on it."""
    return PurePosixPath(PureWindowsPath(data).as_posix()).name


def _tokenizer(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return whose tokens the text tower of a run reads: of a dual encoder no model's of open_clip.

    Args:
        arguments: of the run.
    """
    text = str(arguments.get("text", OWN))
    if text == OWN:
        return {"tokenizer": arguments["model"], "tokenizer_of": "open_clip"}
    if text.startswith(HUB) and (revision := arguments.get(REVISION)):
        text = f"{text.partition('@')[0]}@{revision}"
    return {"tokenizer": text, "tokenizer_of": "transformers"}
