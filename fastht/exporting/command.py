"""``fastht.export``: from a model to a file that has been run and compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from fastht.exporting import metadata as about
from fastht.exporting import prepare
from fastht.exporting.errors import ExportError
from fastht.exporting.load import SUFFIXES
from fastht.exporting.onnx import check_installed, data_file, read_onnx, write_onnx
from fastht.exporting.parts import (
    Exported,
    Inputs,
    Outputs,
    Part,
    Sizes,
    choose_part,
    dtype_of,
    make_part,
    sizes_of,
)
from fastht.exporting.program import difference, read_program, trace, write_program
from fastht.files import check_writable, new_files

Format = Literal["torch", "onnx"]
_BATCHES = (1, 2, 5)  # that a file is tried with


@dataclass(frozen=True)
class Export:
    """What :func:`export` wrote.

    Attributes:
        path: the file.
        format: ``"torch"`` or ``"onnx"``.
        data: where an ONNX file has its weights, if they are more than 1.5 GiB: it has to stay
            beside the file and keep its name.
        size_bytes: of the file and its data.
        adapters: HT adapters that were folded.
        error: the largest difference from the model, relative to the model's largest value, over
            the batches and grids that the file was tried with.
        metadata: what the file says of itself.
    """

    path: Path
    format: Format
    data: Path | None
    size_bytes: int
    adapters: int
    error: float
    metadata: Mapping[str, Any]


@torch.no_grad()
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: Format = "torch",
    *,
    part: Part | None = None,
    image_size: int | tuple[int, int] | None = None,
    dynamic_grid: bool = False,
    preprocess: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> Export:
    """Write the inference form of a model to a file that needs no fastht.

    It holds PyTorch's standard operators alone. Of HT adapters whatever is linear in a row is
    multiplied out (:mod:`fastht.exporting.fold`), LoRA is merged. The batch is of any size. The
    file computes in the model's dtype. Before it is put in its place it is run on the CPU at
    several batch sizes and compared with the model. The model stays as it is: a copy is taken.

    Args:
        model: with HT adapters or without, in evaluation mode: a vision transformer of open_clip,
            OpenAI's clip, timm or transformers, or anything around one from images
            ``[B, 3, H, W]`` to tensors.
        path: the file to write; by custom ``.pt2`` or ``.onnx``.
        format: ``"torch"`` for ``torch.export.load`` and AOTInductor; ``"onnx"`` for ONNX Runtime
            and others, not in bfloat16; it needs ``fastht[export]``. More than 1.5 GiB of weights
            go to a second file, ``<path>.data``.
        part: ``"image"``, ``"text"`` or ``"both"`` of a model with ``encode_image`` and
            ``encode_text``; ``None`` takes all that there is. Features are as the model returns
            them, not normalised.
        image_size: ``(height, width)`` in pixels, or the side of a square; ``None`` takes the size
            that the tower was built for.
        dynamic_grid: let images have any number of patches along each side, where the tower can:
            timm's with ``dynamic_img_size=True``.
        preprocess: the transform from pictures to images, whose constants the file then names; see
            :func:`fastht.exporting.metadata.describe_preprocess`. ``None`` takes what models of
            open_clip and timm carry: mean and standard deviation.
        metadata: more to name in the file, of JSON's types.

    Returns:
        What was written, and how far its numbers are from the model's.

    Raises:
        ExportError: the model is in training mode, on the meta device, sharded or unknown; an
            option does not fit it; a package is missing; or the file does not compute what the
            model does. Nothing is written then.
        FileExistsError: the file exists, or one of the name of its data.
        OSError: it cannot be written.
        TypeError: the model is no module.
    """
    target = Path(path)
    if format not in get_args(Format):
        raise ExportError(f"format is {format!r}; choose 'torch' or 'onnx'")
    _check_target(target, format)
    root = prepare.check_model(model)
    if format == "onnx":
        check_installed()
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    made = prepare.copy_model(root)
    backbone = prepare.tower_of(made)
    chosen = choose_part(made, part)
    sizes = sizes_of(made, chosen, backbone, size)
    dtype = dtype_of(made, backbone)
    _check_options(sizes, dtype, format, dynamic_grid, prepare.has_full_filter(backbone))
    known = about.known_preprocess(root)
    constants = known if preprocess is None else about.describe_preprocess(preprocess)

    resized = size is not None or dynamic_grid
    exported = make_part(made, chosen, resized)
    tried = [sizes.examples(batch, dtype) for batch in _BATCHES]
    if dynamic_grid:
        tried.append(sizes.examples(2, dtype, (1, 2)))
    tokens = prepare.watch_tokens(backbone)
    expected = _run_model(exported, tried, sizes)  # the last grid is that of a full filter
    prepare.settle(made)
    folded = prepare.fold_adapters(backbone, tokens)
    outputs = list(expected[0])
    told = about.describe_file(sizes, dtype, dynamic_grid, outputs, folded)
    if chosen != "text":
        told["preprocess"] = constants
    told = about.merge(told | _of_contrastive(root), metadata or {})

    program = trace(make_part(made, chosen, resized), sizes, dtype, dynamic_grid)
    with new_files(target) as path:
        if format == "onnx":
            write_onnx(program, list(tried[0]), outputs, told, path)
            run, _ = read_onnx(path)
        else:
            write_program(program, told, path)
            run, _ = read_program(path)
        error = max(difference(run(i), e, dtype) for i, e in zip(tried, expected, strict=True))
        del run  # some systems do not move a file that somebody reads
        data = data_file(target) if data_file(path).exists() else None
        written = sum(file.stat().st_size for file in path.parent.iterdir())
    return Export(target, format, data, written, folded, error, told)


def _check_target(target: Path, format: Format) -> None:
    if target.is_dir():
        raise ExportError(f"{target} is a folder; name a file in it, as model{SUFFIXES[format]}")
    for path in (target, data_file(target))[: 1 + (format == "onnx")]:
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists; remove it, or give another path")
    if not target.parent.is_dir():
        raise ExportError(f"there is no folder {target.parent}; make it first")
    if (target.suffix.lower() == SUFFIXES["onnx"]) != (format == "onnx"):
        raise ExportError(
            f"{target} is to be of format {format!r}; call it {target.stem}{SUFFIXES[format]}"
        )
    check_writable(target.parent)


def _check_options(
    sizes: Sizes, dtype: torch.dtype, format: Format, dynamic_grid: bool, full: bool
) -> None:
    if format == "onnx" and dtype == torch.bfloat16:
        raise ExportError(
            "ONNX Runtime has no bfloat16 on a CPU, so that the file could not be tried; export "
            "model.float() or model.half(), or format='torch'"
        )
    if sizes.image is not None and sizes.patch is not None:
        sides = tuple(zip(sizes.image[1:], sizes.patch, strict=True))
        if any(side < patch for side, patch in sides):
            raise ExportError(
                f"image_size is {sizes.image[1:]}, less than a patch of {sizes.patch}; give "
                "(height, width) in pixels"
            )
    if not dynamic_grid:
        return
    if sizes.image is None or sizes.patch is None:
        raise ExportError(
            "dynamic_grid is for images that one convolution cuts into patches; leave it out"
        )
    if full:
        raise ExportError(
            'adapters with spectral="full" have one filter a grid; export one file a size of '
            "images (image_size=(height, width))"
        )


def _run_model(exported: Exported, tried: list[Inputs], sizes: Sizes) -> list[Outputs]:
    try:
        return [exported(**inputs) for inputs in tried]
    except ExportError:
        raise
    except Exception as error:  # of the model's own code
        shown = "" if sizes.image is None else f" on images of {sizes.image[1]}x{sizes.image[2]}"
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"{type(exported.model).__name__} does not run{shown}: {reason}; give image_size="
            "(height, width) as it takes them, and dynamic_grid only where it takes several"
        ) from error


def _of_contrastive(model: Any) -> dict[str, Any]:
    """Return what turns the features of a contrastive model into logits."""
    found = {}
    for name in ("logit_scale", "logit_bias"):
        value = getattr(model, name, None)
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            number = value.detach().double()
            found[name] = float(number.exp() if name == "logit_scale" else number)
    return found
