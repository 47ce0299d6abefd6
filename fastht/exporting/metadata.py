"""What an exported file says of itself: its inputs, how pictures become them, and whose it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fastht.exporting.errors import ExportError
from fastht.exporting.parts import Sizes
from fastht.version import __version__

FORMAT, FORMAT_VERSION = "fastht-export", 1
_CONSTANTS = {"mean", "std", "resize", "interpolation", "crop", "fit"}
# Numbers of Pillow's filters, by which torchvision and transformers name them too.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def describe_file(
    sizes: Sizes, dtype: torch.dtype, dynamic_grid: bool, outputs: Sequence[str], folded: int
) -> dict[str, Any]:
    """Return what a reader has to know of a file's inputs and outputs, as plain JSON types."""
    told: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fastht_version": __version__,
        "torch_version": str(torch.__version__),
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": {},
        "outputs": list(outputs),
        "adapters_folded": folded,
    }
    if sizes.image is not None:
        channels, height, width = sizes.image
        told["inputs"]["image"] = {
            "channels": channels,
            "height": height,
            "width": width,
            "dynamic_grid": dynamic_grid,
            "multiple_of": list(sizes.patch) if dynamic_grid and sizes.patch else None,
        }
    if sizes.text is not None:
        told["inputs"]["text"] = {"context_length": sizes.text[0], "vocabulary": sizes.text[1]}
    return told


def describe_preprocess(preprocess: Any) -> dict[str, Any]:
    """Return the constants of a transform from pictures to images, as plain JSON types.

    Args:
        preprocess: torchvision's ``Compose`` of Resize, CenterCrop and Normalize, as open_clip and
            timm make it; an image processor of transformers; fastht's own; or a mapping of
            ``mean``, ``std`` and, where they are known, ``resize`` (of the shorter side, or height
            and width), ``interpolation``, ``crop`` (height and width) and ``fit`` (``"squash"`` or
            ``"letterbox"``, where a square is made of any shape).

    Raises:
        ExportError: it is none of these, or has no mean and standard deviation.
    """
    if isinstance(preprocess, Mapping):
        found = dict(preprocess)
    elif isinstance(steps := getattr(preprocess, "transforms", None), Sequence):
        found = _of_steps(steps)
    elif hasattr(preprocess, "image_mean"):
        found = _of_processor(preprocess)
    else:
        found = {
            "mean": getattr(preprocess, "mean", None),
            "std": getattr(preprocess, "std", None),
            "resize": getattr(preprocess, "resize", None),
            "interpolation": getattr(preprocess, "resample", None),
            "crop": getattr(preprocess, "crop", None),
        }
    if unknown := sorted(found.keys() - _CONSTANTS):
        raise ExportError(
            f"preprocess has {', '.join(map(str, unknown))}; it takes "
            f"{', '.join(sorted(_CONSTANTS))}"
        )
    if found.get("mean") is None or found.get("std") is None:
        raise ExportError(
            f"the mean and standard deviation of {type(preprocess).__name__} are not found; give "
            "preprocess={'mean': [...], 'std': [...], 'resize': ..., 'crop': ...}"
        )
    return {name: _plain(name, value) for name, value in found.items() if value is not None}


def known_preprocess(model: Any) -> dict[str, Any] | None:
    """Return the constants that open_clip's and timm's models carry; ``None`` for others."""
    visual = getattr(model, "visual", model)
    mean, std = getattr(visual, "image_mean", None), getattr(visual, "image_std", None)
    told = getattr(visual, "pretrained_cfg", None) or {}
    if mean is None and isinstance(told, Mapping):
        mean, std = told.get("mean"), told.get("std")
    if mean is None or std is None:
        return None
    return {"mean": _plain("mean", mean), "std": _plain("std", std)}


def read_metadata(text: str, name: str) -> dict[str, Any]:
    """Return the metadata of a file.

    Raises:
        ExportError: it is none of fastht's, or of a later version.
    """
    try:
        found = json.loads(text)
        version = found["format_version"] if found["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError):
        version = None
    if version is None:
        raise ExportError(f"{name} was not written by fastht.export; export the model with it")
    if version > FORMAT_VERSION:
        raise ExportError(
            f"{name} is of version {version} of exported files, and this fastht reads up to "
            f"{FORMAT_VERSION}; update it"
        )
    return dict(found)


def merge(told: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's metadata with the caller's own.

    Raises:
        ExportError: a key is taken, or a value is no plain JSON type.
    """
    if taken := sorted(told.keys() & more.keys()):
        raise ExportError(f"metadata has {', '.join(taken)}, which fastht sets; rename them")
    try:
        return told | dict(json.loads(json.dumps(dict(more), allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"metadata is no JSON ({error}); give texts, numbers, lists and mappings of them"
        ) from error


def _of_steps(steps: Sequence[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize":
            found["resize"] = step.size
            found["interpolation"] = getattr(step.interpolation, "value", step.interpolation)
        elif kind == "CenterCrop":
            found["crop"] = step.size
        elif kind == "Normalize":
            found["mean"], found["std"] = step.mean, step.std
    return found


def _of_processor(processor: Any) -> dict[str, Any]:
    size = dict(getattr(processor, "size", None) or {})
    crop = dict(getattr(processor, "crop_size", None) or {})
    pair = [size["height"], size["width"]] if {"height", "width"} <= size.keys() else None
    return {
        "mean": processor.image_mean,
        "std": processor.image_std,
        "resize": size.get("shortest_edge", pair),
        "interpolation": getattr(processor, "resample", None),
        "crop": [crop["height"], crop["width"]]
        if getattr(processor, "do_center_crop", False) and {"height", "width"} <= crop.keys()
        else None,
    }


def _plain(name: str, value: Any) -> Any:
    if name == "interpolation":
        number = getattr(value, "value", value)
        return _FILTERS.get(number, str(number)) if isinstance(number, int) else str(number)
    if isinstance(value, int | str):
        return value
    number = float if name in ("mean", "std") else int
    plain = [number(v) for v in value]
    return plain[0] if name == "resize" and len(plain) == 1 else plain
