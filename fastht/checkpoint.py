"""Saving a patched model's adapters, and loading them into a model: all or nothing."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from fastht.adapter import HTAdapter
from fastht.backbones import Backbone, find_backbone
from fastht.fingerprint import differences, fingerprint, same_weights, settings
from fastht.hub.download import address_in, fetch_adapter
from fastht.ops import resolve_backend
from fastht.patch import (
    ModelT,
    adapter_of,
    adapter_state_dict,
    adapters,
    attach,
    make_adapters,
    patch_record,
    patched_config,
    refuse_bereft,
    tower_state,
)
from fastht.saved import CheckpointError, SavedAdapter, read_adapter, write_adapter
from fastht.wrappers import refuse_wrapped, unwrap

__all__ = ["CheckpointError", "adapter_source", "load_adapter", "save_adapter"]


def save_adapter(
    model: nn.Module, path: str | os.PathLike[str], *, base_model: str | None = None
) -> None:
    """Save a patched model's adapters to a folder, made if needed.

    What ``modules_to_save`` of :func:`fastht.patch` named is saved with them. An adapter that
    stood there is replaced in one step; other files in the folder are left alone. With sharded
    parameters (FSDP2) every rank has to call this; rank 0 writes.

    Args:
        model: a patched model.
        path: the folder; ``~`` is not expanded.
        base_model: what the base is called, e.g. ``"ViT-B-16/openai"``, for the readers of the
            config.

    Raises:
        NotPatchedError: the model has no adapters.
        CheckpointError: a weight is not finite, the path is a file, the folder holds an adapter
            of another library, or ``model`` is a part that lacks ``modules_to_save``. What stood
            in the folder still does.
        OSError: the folder cannot be written.
    """
    weights = adapter_state_dict(model)
    backbone = find_backbone(unwrap(model))
    base = backbone.shape() | {
        "name": base_model,
        "fingerprint": fingerprint(backbone),
        "settings": settings(backbone),
    }
    modules = _module_states(model)
    if _is_sharded_elsewhere(backbone):
        return
    # Not the tower's own grid: the filter may have come from a model of another image size.
    filter_grid_size = next(iter(adapters(model).values())).filter_grid_size
    saved = SavedAdapter(patched_config(model), base, weights, filter_grid_size, modules)
    write_adapter(saved, path)


def load_adapter(model: ModelT, path: str | os.PathLike[str], *, backend: str = "auto") -> ModelT:
    """Load saved adapters into a model, patching it first if needed; all or nothing.

    After an error no byte of the model has changed.

    Args:
        model: the base that the adapter was trained on, or a model patched with a config that
            differs in ``dropout`` and ``init`` alone, which are kept.
        path: the folder that :func:`save_adapter` wrote; ``~`` is not expanded. Or a repository of
            the Hugging Face Hub, ``"hf://ORG/REPO"`` or ``"hf://ORG/REPO@REVISION"``, of which the
            adapter's two files are fetched and nothing else; :func:`adapter_source` then tells the
            commit.
        backend: used where the model is not patched yet.

    Returns:
        ``model``.

    Raises:
        CheckpointError: the folder is damaged or foreign, or does not fit. A base of the right
            shape with other weights only warns.
        HubError: the repository is not there, or the Hub does not answer and its cache does not
            hold the adapter. Where the cache does, that only warns.
        ImportError: ``path`` is of the Hub and huggingface_hub is not installed.
        UnsupportedModelError: there is no vision transformer in the model.
        ValueError: there is no such backend, or the model is wrapped for distributed training
            and not patched.
        BackendUnavailableError: the backend cannot run here, or not with so wide a bottleneck.
    """
    source = os.path.abspath(path)
    if (asked := address_in(path)) is not None:
        path, address = fetch_adapter(asked)
        source = str(address)
    saved = read_adapter(path)
    root = unwrap(model)
    backbone = find_backbone(root)
    _require_shape(saved, backbone, path)
    patched = any(adapter_of(block) is not None for block in backbone.blocks)
    if patched:
        tower_state(root)
        targets = _existing_adapters(root, backbone, saved, path)
    else:
        refuse_wrapped(model)
        refuse_bereft(root)
        resolve_backend(backend, channels=saved.config.bottleneck_dim)
        grid = saved.filter_grid_size or backbone.grid_size
        try:
            targets = make_adapters(backbone, saved.config, backend, grid)
        except ValueError as error:
            raise CheckpointError(f"{path} does not fit the model: {error}") from error
    staged = _stage(saved, targets, path) + _stage_modules(saved, root, patched, path)
    _warn_of_other_base(saved, backbone, path)

    with torch.no_grad():
        for parameter, value in staged:
            parameter.copy_(value)
    if not patched:
        attach(root, backbone, targets, saved.config, backend, tuple(sorted(saved.modules)))
    tower_state(root).source = source
    return model


def adapter_source(model: nn.Module) -> str | None:
    """Return from where a patched model's adapters were loaded last; they may have trained since.

    That is a folder, or ``"hf://ORG/REPO@COMMIT"`` with the commit's full hash; ``None`` for
    adapters that were not loaded.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    return tower_state(unwrap(model)).source


def _module_states(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Return the states of what ``modules_to_save`` named, gathered if they are sharded."""
    root = unwrap(model)
    holder = next((m for m in root.modules() if patch_record(m) is not None), None)
    record = None if holder is None else patch_record(holder)
    if holder is None or record is None:
        state = next(iter(adapters(model).values())).tower
        if state is not None and state.modules_to_save:
            raise CheckpointError(
                f"{type(root).__name__} is a part of the model that was patched, whose modules "
                f"{', '.join(state.modules_to_save)} train too: save the model that was given to "
                "fastht.patch"
            )
        return {}
    states = {}
    for path in record.modules_to_save:
        tensors = holder.get_submodule(path).state_dict()
        states[path] = {
            name: t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in tensors.items()
        }
    return states


def _require_shape(saved: SavedAdapter, backbone: Backbone, path: str | os.PathLike[str]) -> None:
    shape = backbone.shape()
    for key in ("dim", "depth", "num_prefix_tokens"):
        expected, found = saved.base[key], shape[key]
        if expected is not None and expected != found:
            raise CheckpointError(
                f"{path} was made for another base ({_base_name(saved)}): {key} is {expected} "
                f"there and {found} in this model; load it into that base"
            )


def _existing_adapters(
    root: nn.Module, backbone: Backbone, saved: SavedAdapter, path: str | os.PathLike[str]
) -> dict[int, HTAdapter]:
    found = adapters(root)
    if any(hasattr(p, "full_tensor") for adapter in found.values() for p in adapter.parameters()):
        raise CheckpointError("the model is sharded: load the adapter first, then shard")
    here, there = patched_config(root), saved.config
    pairs: dict[str, tuple[Any, Any]] = {
        "variant": (here.variant, there.variant),
        "bottleneck_dim": (here.bottleneck_dim, there.bottleneck_dim),
        "layers": (tuple(found), there.layer_indices(len(backbone.blocks))),
    }
    if there.has_filter:
        grid = next(iter(found.values())).filter_grid_size
        pairs["spectral"] = (here.spectral, there.spectral)
        pairs["filter_grid_size"] = (grid, saved.filter_grid_size)
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise CheckpointError(
                f"{path} has {name}={theirs!r} and the model was patched with {ours!r}; "
                "call fastht.unpatch(model) first, load_adapter then patches it to fit"
            )
    return found


def _stage_modules(
    saved: SavedAdapter, root: nn.Module, patched: bool, path: str | os.PathLike[str]
) -> list[tuple[Tensor, Tensor]]:
    """Pair the tensors of saved modules with the model's."""
    record = patch_record(root)
    kept = () if record is None else record.modules_to_save
    if patched and kept != tuple(sorted(saved.modules)):
        raise CheckpointError(
            f"{path} has modules_to_save={sorted(saved.modules)} and the model was patched with "
            f"{list(kept)}; call fastht.unpatch(model) first, load_adapter then patches it to fit"
        )
    staged = []
    for name, state in saved.modules.items():
        try:
            own = root.get_submodule(name).state_dict()
        except AttributeError:
            own = {}
        theirs = {key: tuple(t.shape) for key, t in state.items()}
        ours = {key: tuple(t.shape) for key, t in own.items()}
        if theirs != ours:
            raise CheckpointError(
                f"{path} keeps the module {name!r} with the tensors {theirs}, and in this model "
                f"it has {ours or 'no such module'}; build the model as it was"
            )
        staged += [
            (own[key], value.to(own[key].device, own[key].dtype)) for key, value in state.items()
        ]
    return staged


def _stage(
    saved: SavedAdapter, targets: dict[int, HTAdapter], path: str | os.PathLike[str]
) -> list[tuple[Tensor, Tensor]]:
    """Bring each weight to its parameter's device and dtype: whatever can fail, fails here."""
    parameters = {
        f"blocks.{index}.{name}": parameter
        for index, adapter in targets.items()
        for name, parameter in adapter.named_parameters()
    }
    if {n: p.shape for n, p in parameters.items()} != {
        n: w.shape for n, w in saved.weights.items()
    }:
        raise CheckpointError(
            f"{path} does not fit the adapters in the model, whose parameters were changed after "
            "fastht.patch; call fastht.unpatch(model) first"
        )
    staged: list[tuple[Tensor, Tensor]] = []
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise CheckpointError(
                f"the model is on the meta device, so that {path} cannot be loaded into it: give "
                "it memory and its base weights first (model.to_empty, load_state_dict)"
            )
        value = saved.weights[name].to(parameter.device, parameter.dtype)
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{path}: {name} is too large for the model's {parameter.dtype} adapters; "
                "give them a wider one"
            )
        staged.append((parameter, value))
    return staged


def _warn_of_other_base(
    saved: SavedAdapter, backbone: Backbone, path: str | os.PathLike[str]
) -> None:
    if not same_weights(fingerprint(backbone), saved.base["fingerprint"]):
        warnings.warn(
            f"{path} was trained on a base of this shape but with other weights "
            f"({_base_name(saved)}); its features will be off unless that is meant",
            stacklevel=3,
        )
    told = differences(settings(backbone), saved.base.get("settings", {}))
    if told:
        warnings.warn(
            f"{path} was trained on a base of this shape with other settings "
            f"({_base_name(saved)}): {'; '.join(told)}. Build the model with the same, or its "
            "features will be off",
            stacklevel=3,
        )


def _base_name(saved: SavedAdapter) -> str:
    return saved.base["name"] or "base model not named"


def _is_sharded_elsewhere(backbone: Backbone) -> bool:
    sharded = any(hasattr(p, "full_tensor") for p in backbone.tower.parameters())
    return sharded and torch.distributed.get_rank() != 0
