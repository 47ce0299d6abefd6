"""Reading the adapters that NextGen-UIA, the paper's published code, saves as ``.pth`` files.

Two layouts exist. Fine-tuning saves a flat mapping of the model's parameters whose names contain
``mona``; the downstream tasks save a mapping with ``reduces``, ``blocks``, ``seg_head`` or
``cls_head``, and the same flat mapping under ``mona``, its names prefixed with ``clip_model.``.

Their first release ran one adapter twice a block, doubled the class token, and had adapters in
the text tower as well. Its files have the same names but mean another operator: they are refused.
"""

from __future__ import annotations

import io
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastht.config import HTConfig, Variant
from fastht.saved import CheckpointError, SavedAdapter, write_adapter

# <wrappers>visual.<tower>.<block>.mona.[clip_mona.]<parameter>
_PARAMETER = re.compile(
    r"(?P<tower>(?:.+\.)?visual\.(?:transformer\.resblocks|trunk\.blocks))"
    r"\.(?P<block>\d{1,6})\.mona\.(?:clip_mona\.)?(?P<parameter>.+)"
)
_TEXT_TOWER = re.compile(r"(?:.+\.)?(?<!visual\.)transformer\.resblocks\.\d+\.mona\.")

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
    owner = os.fspath(path)
    layers = _layers(_mona_tensors(_load(Path(path)), owner), owner)
    if sorted(layers) != list(range(len(layers))):
        raise CheckpointError(
            f"{owner} has adapters for blocks {sorted(layers)}; NextGen-UIA saves them from block "
            "0 on without gaps, so the file is incomplete"
        )
    first = layers[0]
    variant = _VARIANTS["spectral_filter" in first, "noise_gate.0.weight" in first]
    _require_alike(layers, variant, owner)
    dim, channels = (first[name].shape[:1].numel() for name in ("gamma", "down.bias"))
    try:
        config = HTConfig(
            variant=variant, bottleneck_dim=channels, init="paper", layers=range(len(layers))
        )
    except ValueError as error:
        raise CheckpointError(f"{owner} is not of NextGen-UIA: {error}") from error
    base = {
        "dim": dim,
        "depth": None,
        "grid_size": None,
        "num_prefix_tokens": 1,
        "name": None,
        "fingerprint": None,
    }
    weights = {
        f"blocks.{index}.{name}": tensor.detach().clone()
        for index, layer in sorted(layers.items())
        for name, tensor in layer.items()
    }
    adapter = SavedAdapter(config, base, weights)
    adapter.check(owner)
    if out is not None:
        write_adapter(adapter, out)
    return adapter


def _load(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path} ({error.strerror or error})") from error
    try:
        # weights_only: a .pth file is a pickle, and must not run code of its author's.
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is no .pth file of plain tensors; fastht does not unpickle anything else"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{path} is damaged or no .pth file ({error}); copy it again"
        ) from error


def _mona_tensors(content: Any, owner: str) -> dict[str, Any]:
    if isinstance(content, Mapping) and isinstance(content.get("mona"), Mapping):
        content = content["mona"]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{owner} holds a {type(content).__name__}, not named tensors as NextGen-UIA saves them"
        )
    found = {n: t for n, t in content.items() if isinstance(n, str) and "mona" in n.lower()}
    if not found:
        raise CheckpointError(
            f"{owner} has no parameter whose name contains 'mona': it holds no Mona or HT adapters"
        )
    return found


def _layers(named: Mapping[str, Any], owner: str) -> dict[int, dict[str, Tensor]]:
    """Sort their tensors by block, under our names."""
    layers: dict[int, dict[str, Tensor]] = {}
    towers = set()
    for theirs, tensor in named.items():
        if _TEXT_TOWER.match(theirs):
            raise CheckpointError(
                f"{owner} has adapters in the text tower ({theirs}): it is of NextGen-UIA's first "
                "release, which computes something else; only later files can be imported"
            )
        match = _PARAMETER.fullmatch(theirs)
        name = _NAMES.get(match["parameter"]) if match else None
        if match is None or name is None:
            raise CheckpointError(f"{owner} has {theirs}, which is no name of NextGen-UIA's")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{owner}: {theirs} is a {type(tensor).__name__}, not a tensor")
        if name in _POINTWISE and tensor.layout == torch.strided and tensor.shape[2:] == (1, 1):
            tensor = tensor[:, :, 0, 0]
        layer = layers.setdefault(int(match["block"]), {})
        towers.add(match["tower"])
        if name in layer or len(towers) > 1:
            raise CheckpointError(
                f"{owner} holds the adapters of more than one model ({', '.join(sorted(towers))}); "
                "keep those of one"
            )
        layer[name] = tensor
    return layers


def _require_alike(
    layers: Mapping[int, Mapping[str, Tensor]], variant: Variant, owner: str
) -> None:
    """Raise unless every block has the variant's parameters and no others."""
    expected = {
        name
        for name in _NAMES.values()
        if (variant in ("hybrid", "freq_enhanced") or name != "spectral_filter")
        and (variant in ("hybrid", "noise_aware") or not name.startswith("noise_gate"))
    }
    for index, layer in sorted(layers.items()):
        for kind, names in (("lacks", expected - set(layer)), ("also has", set(layer) - expected)):
            if names:
                raise CheckpointError(
                    f"{owner} has adapters that are incomplete or of several variants: block "
                    f"{index} {kind} {', '.join(sorted(names))}, which variant {variant!r} of "
                    f"block 0 {'needs' if kind == 'lacks' else 'does not have'}"
                )
