"""Reading the adapters that NextGen-UIA, the paper's published code, saves as ``.pth`` files.

Two layouts exist. Fine-tuning saves a flat mapping of the model's parameters whose names contain
``mona``; the downstream tasks save a mapping with ``reduces``, ``blocks``, ``seg_head`` or
``cls_head``, and the same flat mapping under ``mona``, its names prefixed with ``clip_model.``.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.checkpoint import CheckpointError, SavedAdapter, write_adapter
from fastht.config import HTConfig, Variant

_PARAMETER = re.compile(r"(?:^|\.)(?:resblocks|blocks)\.(\d+)\.mona\.(?:clip_mona\.)?(.+)$")

# Their module -> ours, below <block>.mona[.clip_mona].
_MODULES = {
    "norm": "norm",
    "project1": "down",
    "project2": "up",
    "adapter_conv.conv1": "conv3",
    "adapter_conv.conv2": "conv5",
    "adapter_conv.conv3": "conv7",
    "adapter_conv.projector": "pointwise",
    "adapter_conv.noise_estimator.1": "noise_gate.0",
    "adapter_conv.noise_estimator.3": "noise_gate.2",
}
_NAMES = {
    "gamma": "gamma",
    "gammax": "gammax",
    "adapter_conv.freq_filter": "spectral_filter",
} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in _MODULES.items()
    for kind in ("weight", "bias")
}
# They keep these linear maps as 1x1 convolutions.
_POINTWISE = ("pointwise.weight", "noise_gate.0.weight", "noise_gate.2.weight")
_VARIANTS: dict[tuple[bool, bool], Variant] = {
    (True, True): "hybrid",
    (False, True): "noise_aware",
    (True, False): "freq_enhanced",
    (False, False): "baseline",
}


def import_nextgen_uia(
    path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None
) -> SavedAdapter:
    """Convert a NextGen-UIA ``.pth`` file into a fastht adapter.

    Args:
        path: their file, of fine-tuning or of a downstream task, whose heads are left out.
        out: where given, the folder to write the adapter to, for :func:`fastht.load_adapter`.

    Returns:
        The adapter's config and weights.

    Raises:
        CheckpointError: the file is not there, is not theirs, holds a pickled object other than
            tensors, or its adapters are incomplete or not alike.
    """
    flat = _mona_tensors(_load(Path(path)), path)
    layers: dict[int, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in flat.items():
        match = _PARAMETER.search(name)
        if match is None or match[2] not in _NAMES:
            unknown.append(name)
            continue
        ours = _NAMES[match[2]]
        if ours in _POINTWISE:
            tensor = tensor.flatten(1)
        layers.setdefault(int(match[1]), {})[ours] = tensor
    if unknown:
        raise CheckpointError(f"{path} has {len(unknown)} names not of NextGen-UIA: {unknown[:3]}")

    names = {frozenset(layer) for layer in layers.values()}
    if len(names) != 1:
        raise CheckpointError(f"{path} has adapters of different variants, or incomplete ones")
    present = next(iter(names))
    variant = _VARIANTS["spectral_filter" in present, "noise_gate.0.weight" in present]
    first = next(iter(layers.values()))
    config = _config(variant, first, sorted(layers), present, path)
    base = {
        "dim": first["norm.weight"].shape[0],
        "depth": None,
        "grid_size": None,
        "num_prefix_tokens": 1,
        "name": None,
        "fingerprint": None,
    }
    weights = {
        f"blocks.{index}.{name}": tensor.clone()
        for index, layer in sorted(layers.items())
        for name, tensor in layer.items()
    }
    adapter = SavedAdapter(config, base, weights)
    if out is not None:
        write_adapter(adapter, out)
    return adapter


def _config(
    variant: Variant,
    first: Mapping[str, Tensor],
    indices: list[int],
    present: frozenset[str],
    path: str | os.PathLike[str],
) -> HTConfig:
    expected = {
        name
        for name in _NAMES.values()
        if (variant in ("hybrid", "freq_enhanced") or name != "spectral_filter")
        and (variant in ("hybrid", "noise_aware") or not name.startswith("noise_gate"))
    }
    missing = sorted(expected - present)
    if missing:
        raise CheckpointError(f"{path} has incomplete adapters: {', '.join(missing)} not there")
    channels = first["down.weight"].shape[0]
    return HTConfig(variant=variant, bottleneck_dim=channels, init="paper", layers=indices)


def _load(path: Path) -> Any:
    try:
        # weights_only: a .pth file is a pickle, and must not run code of its author's.
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no .pth file of plain tensors; fastht does not unpickle anything else"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a readable .pth file: {error}") from error


def _mona_tensors(content: Any, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and isinstance(content.get("mona"), Mapping):
        content = content["mona"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors")
    found = {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and "mona" in name and isinstance(value, Tensor)
    }
    if not found:
        raise CheckpointError(
            f"{path} has no parameter whose name contains 'mona': it holds no Mona or HT adapters"
        )
    return found
