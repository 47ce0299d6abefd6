"""Adapters on disk: a folder with ``adapter_config.json`` and ``adapter_model.safetensors``.

The config holds the SHA-256 of the weights, so the two files always belong together or do not
load. While an adapter is replaced, the config describes both the new weights and, under
``previous``, the old ones; the rename of the weights file is then the one moment at which the new
adapter takes the old one's place.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from fastht.adapter import HTAdapter
from fastht.backbones import Backbone, find_backbone
from fastht.config import HTConfig
from fastht.files import write_atomically
from fastht.patch import (
    adapter_state_dict,
    adapters,
    attach,
    make_adapters,
    patched_config,
    unwrap,
)
from fastht.version import __version__

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FORMAT = "fastht-adapter"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A saved adapter is damaged, foreign, or does not fit the model."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter outside a model.

    Attributes:
        config: what the adapters are made of.
        base: the shape of the tower that it was trained in (``dim``, ``depth``, ``grid_size``,
            ``num_prefix_tokens``; a value is ``None`` where it is not known), the ``name`` of the
            model and a ``fingerprint`` of its weights, both perhaps ``None``.
        weights: tensors by the names of :func:`fastht.adapter_state_dict`.
    """

    config: HTConfig
    base: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def save_adapter(
    model: nn.Module, path: str | os.PathLike[str], *, base_model: str | None = None
) -> None:
    """Save a patched model's adapters to a folder, made if needed.

    An adapter that stood there is replaced in one step; other files in the folder are left alone.
    With sharded parameters (FSDP2) every rank has to call this; rank 0 writes.

    Args:
        model: a patched model.
        path: the folder.
        base_model: what the base is called, e.g. ``"ViT-B-16/openai"``, for the readers of the
            config.

    Raises:
        NotPatchedError: the model has no adapters.
        CheckpointError: a weight is not finite, or the path is a file.
        OSError: the folder cannot be written.
    """
    weights = adapter_state_dict(model)
    backbone = find_backbone(unwrap(model))
    base = backbone.shape() | {"name": base_model, "fingerprint": _fingerprint(backbone)}
    if _is_sharded_elsewhere(backbone):
        return
    write_adapter(SavedAdapter(patched_config(model), base, weights), path)


def write_adapter(adapter: SavedAdapter, path: str | os.PathLike[str]) -> None:
    """Write an adapter to a folder; see :func:`save_adapter`."""
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; an adapter is saved to a folder")
    _require_finite(adapter.weights, "the adapter")
    contiguous = {name: t.cpu().contiguous() for name, t in adapter.weights.items()}
    data = safetensors.torch.save(contiguous, metadata={"format": "pt"})
    entry = {
        "base_model": dict(adapter.base),
        "config": adapter.config.to_dict(),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fastht_version": __version__,
    }
    folder.mkdir(parents=True, exist_ok=True)
    old = _whole_entry(folder)
    if old is not None:
        write_atomically(folder / CONFIG_NAME, _json(header | entry | {"previous": old}))
    write_atomically(folder / WEIGHTS_NAME, data)
    write_atomically(folder / CONFIG_NAME, _json(header | entry))


def read_adapter(path: str | os.PathLike[str]) -> SavedAdapter:
    """Read an adapter from a folder without a model; nothing is unpickled.

    Raises:
        CheckpointError: the folder is not there or is no whole fastht adapter.
    """
    folder = Path(path)
    config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise CheckpointError(f"{folder} is {what}; an adapter is a folder with {CONFIG_NAME}")
    content = _read_config(config_path)
    try:
        data = weights_path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"cannot read {weights_path}: {error.strerror}; the adapter is incomplete"
        ) from error
    digest = hashlib.sha256(data).hexdigest()
    entries = [content, content.get("previous") or {}]
    entry = next((entry for entry in entries if entry.get("sha256") == digest), None)
    if entry is None:
        raise CheckpointError(
            f"{weights_path} does not match the SHA-256 in {CONFIG_NAME}: it is truncated, damaged "
            "or of another adapter; copy the folder again"
        )
    weights = _parse_weights(data, weights_path)
    try:
        config = HTConfig.from_dict(entry["config"])
        base = dict(entry["base_model"])
        for key in ("dim", "depth", "grid_size", "num_prefix_tokens"):
            base[key]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config_path} is not a valid adapter config: {error}") from error
    _require_finite(weights, str(weights_path))
    return SavedAdapter(config, base, weights)


def load_adapter(
    model: nn.Module, path: str | os.PathLike[str], *, backend: str = "auto"
) -> nn.Module:
    """Load saved adapters into a model, patching it first if needed; all or nothing.

    Args:
        model: the base that the adapter was trained on, or a model patched with the same config.
        path: the folder that :func:`save_adapter` wrote.
        backend: used where the model is not patched yet.

    Returns:
        ``model``.

    Raises:
        CheckpointError: the folder is damaged or foreign, or does not fit; no byte of the model
            has changed then. A base of the right shape with other weights only warns.
        UnsupportedModelError: there is no vision transformer in the model.
    """
    saved = read_adapter(path)
    root = unwrap(model)
    backbone = find_backbone(root)
    for key in ("dim", "depth", "num_prefix_tokens"):
        expected, found = saved.base[key], backbone.shape()[key]
        if expected is not None and expected != found:
            raise CheckpointError(
                f"{path} was made for another base ({_base_name(saved)}): "
                f"{key} is {expected} there and {found} in this model"
            )
    patched = any(isinstance(getattr(block, "ht", None), HTAdapter) for block in backbone.blocks)
    if patched:
        targets = _existing_adapters(root, saved, path)
    else:
        grid = saved.base["grid_size"]
        try:
            targets = make_adapters(
                backbone, saved.config, backend, tuple(grid) if grid else backbone.grid_size
            )
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from error
    _require_fit(saved, targets, path)
    _warn_of_other_base(saved, backbone, path)

    with torch.no_grad():
        for index, adapter in targets.items():
            for name, parameter in adapter.named_parameters():
                parameter.copy_(saved.weights[f"blocks.{index}.{name}"])
    if not patched:
        attach(root, backbone, targets, saved.config, backend)
    return model


def _existing_adapters(
    root: nn.Module, saved: SavedAdapter, path: str | os.PathLike[str]
) -> dict[int, HTAdapter]:
    here, there = patched_config(root), saved.config
    for name in ("variant", "spectral", "bottleneck_dim", "layers"):
        ours, theirs = getattr(here, name), getattr(there, name)
        if name == "layers":
            depth = len(find_backbone(root).blocks)
            ours, theirs = here.layer_indices(depth), there.layer_indices(depth)
        if ours != theirs:
            raise CheckpointError(
                f"{path} has {name}={theirs!r} and the model was patched with {ours!r}; "
                "call fastht.unpatch(model) first, load_adapter then patches it to fit"
            )
    found = adapters(root)
    if any(hasattr(p, "full_tensor") for adapter in found.values() for p in adapter.parameters()):
        raise CheckpointError("the model is sharded: load the adapter first, then shard")
    return found


def _require_fit(
    saved: SavedAdapter, targets: Mapping[int, HTAdapter], path: str | os.PathLike[str]
) -> None:
    expected = {
        f"blocks.{index}.{name}": tuple(parameter.shape)
        for index, adapter in targets.items()
        for name, parameter in adapter.named_parameters()
    }
    missing = sorted(expected.keys() - saved.weights.keys())
    extra = sorted(saved.weights.keys() - expected.keys())
    if missing or extra:
        parts = [
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in (("missing", missing), ("unexpected", extra))
            if names
        ]
        raise CheckpointError(f"{path} has the wrong weights for its config: {'; '.join(parts)}")
    for name, shape in expected.items():
        found = tuple(saved.weights[name].shape)
        if found != shape:
            raise CheckpointError(f"{path}: {name} has shape {found}; the model needs {shape}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"cannot read {path}: {error.strerror}; is this the folder of an adapter?"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON text: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        peft = isinstance(content, dict) and "peft_type" in content
        origin = "peft wrote it" if peft else f'it has no "format": "{FORMAT}"'
        raise CheckpointError(f"{path} is not of a fastht adapter: {origin}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version!r}; fastht {__version__} reads {FORMAT_VERSION}: "
            "upgrade fastht"
        )
    return content


def _whole_entry(folder: Path) -> dict[str, Any] | None:
    """Return the config entry of the adapter that stands in ``folder``, if a whole one does."""
    try:
        content = _read_config(folder / CONFIG_NAME)
        digest = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
    except (CheckpointError, OSError):
        return None
    for entry in (content, content.get("previous") or {}):
        if entry.get("sha256") == digest:
            return {key: entry[key] for key in ("base_model", "config", "sha256")}
    return None


def _parse_weights(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a safetensors file: {error}") from error


def _require_finite(weights: Mapping[str, Tensor], owner: str) -> None:
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{owner}: {name} has dtype {tensor.dtype}, not a floating one")
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{owner}: {name} holds NaN or Inf; its training diverged")


def _fingerprint(backbone: Backbone) -> list[float] | None:
    """Return a few of the base's weights: enough to tell two sets of one shape apart.

    Values, not a hash, so that a base cast to half precision is still recognised.
    """
    weight = next(backbone.patch_projection.parameters(), None)
    if weight is None or weight.is_meta:
        return None
    full = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    flat = full.detach().flatten()
    return [float(v) for v in flat[:: max(1, flat.numel() // 16)][:16]]


def _warn_of_other_base(
    saved: SavedAdapter, backbone: Backbone, path: str | os.PathLike[str]
) -> None:
    here, there = _fingerprint(backbone), saved.base.get("fingerprint")
    if here is None or there is None:
        return
    scale = max(abs(v) for v in there) + 1e-12
    if len(here) != len(there) or any(
        abs(a - b) > 0.01 * scale for a, b in zip(here, there, strict=False)
    ):
        warnings.warn(
            f"{path} was trained on a base of this shape but with other weights "
            f"({_base_name(saved)}); its features will be off unless that is meant",
            stacklevel=3,
        )


def _base_name(saved: SavedAdapter) -> str:
    return saved.base.get("name") or "base model not named"


def _is_sharded_elsewhere(backbone: Backbone) -> bool:
    sharded = any(hasattr(p, "full_tensor") for p in backbone.tower.parameters())
    return sharded and torch.distributed.get_rank() != 0


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
