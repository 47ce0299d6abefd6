"""A copy of a model as it runs in use: adapters folded, LoRA merged, nothing left of training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastht.adapter import HTAdapter
from fastht.backbones import Backbone, UnsupportedModelError, find_backbone
from fastht.exporting.errors import ExportError
from fastht.exporting.fold import FoldedAdapter
from fastht.patch import ADAPTER_NAME, adapter_of
from fastht.recompute import remove
from fastht.spectral import resample_spectral_filter
from fastht.tower import TowerState
from fastht.wrappers import unwrap

# What libraries call the switch of gradient checkpointing.
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")


def check_model(model: nn.Module) -> nn.Module:
    """Return the model inside of its wrappers, if it can be exported.

    Raises:
        ExportError: it is in training mode, has no memory, is sharded, or its adapters are off.
        TypeError: it is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; fastht.export takes a torch.nn.Module")
    root = unwrap(model)
    if isinstance(root, torch.jit.ScriptModule | torch.fx.GraphModule):
        raise ExportError(
            f"{type(root).__name__} is a graph that was made of a model; export the model itself"
        )
    for name, module in root.named_modules():
        if module.training:
            where = f"{name} of {type(root).__name__}" if name else type(root).__name__
            raise ExportError(
                f"{where} is in training mode, with its dropout; call model.eval() first"
            )
    for name, tensor in (*root.named_parameters(), *root.named_buffers()):
        if tensor.is_meta:
            raise ExportError(
                f"{name} is on the meta device and has no values; give the model memory and its "
                "weights first (model.to_empty, load_state_dict)"
            )
        if hasattr(tensor, "full_tensor"):
            raise ExportError(
                f"{name} is sharded; save the weights, load them into a model in one process and "
                "export that"
            )
    return root


def copy_model(root: nn.Module) -> nn.Module:
    """Return a copy on the CPU that shares no memory with the model.

    Raises:
        ExportError: it cannot be copied.
    """
    try:
        made = copy.deepcopy(root).to("cpu")
    except (RuntimeError, TypeError) as error:
        raise ExportError(
            f"{type(root).__name__} cannot be copied ({error}); export it before hooks or tensors "
            "of a training step are put into it"
        ) from error
    for tensor in (*made.parameters(), *made.buffers()):
        # A part of a larger tensor would be written with all of it.
        own = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        if not (own and tensor.is_contiguous()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return made


def settle(made: nn.Module) -> None:
    """Make single weights of those that a copy computes of several ones, LoRA and the like.

    Nor does it compute anything anew to save memory any more.
    """
    _merge_lora(made)
    for module in list(made.modules()):
        if parametrize.is_parametrized(module):
            _fix_parametrized(module)
        for switch in _CHECKPOINTING:
            if getattr(module, switch, False) is True:
                setattr(module, switch, False)


def _fix_parametrized(module: Any) -> None:
    """Make parameters of what a module of a copy computes anew at each access.

    Not by ``remove_parametrizations``, which changes the class, and that is the original's too.
    """
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))


def tower_of(made: nn.Module) -> Backbone | None:
    """Return the vision transformer of a copy; ``None`` where there is none.

    Raises:
        ExportError: its adapters are switched off, or it takes no images.
    """
    try:
        backbone = find_backbone(made)
    except UnsupportedModelError as error:
        if any(isinstance(module, HTAdapter) for module in made.modules()):
            raise ExportError(f"{error}; export the part that was patched") from error
        return None
    if backbone.family == "siglip2":
        raise ExportError(
            f"{type(backbone.tower).__name__} takes patches that are cut out already, of several "
            "numbers; export a SigLIP 2 of fixed resolution (SiglipModel)"
        )
    state = _state_of(backbone)
    if state is not None and not state.enabled:
        raise ExportError(
            "fastht.export was called while the HT adapters are disabled; call it outside of "
            "fastht.disable_adapter, or export the base after fastht.unpatch"
        )
    return backbone


def watch_tokens(backbone: Backbone | None) -> dict[nn.Module, torch.dtype]:
    """Return what will hold the dtype of the tokens that each adapter of a copy gets."""
    seen: dict[nn.Module, torch.dtype] = {}

    def note(module: nn.Module, args: Any) -> None:
        seen[module] = args[0].dtype

    for block in () if backbone is None else backbone.blocks:
        if (adapter := adapter_of(block)) is not None:
            adapter.register_forward_pre_hook(note)
    return seen


def fold_adapters(backbone: Backbone | None, tokens: dict[nn.Module, torch.dtype]) -> int:
    """Replace a copy's adapters by their inference form; return how many there are.

    Args:
        backbone: of the copy, which has seen the images that tell its grid.
        tokens: of :func:`watch_tokens`; adapters that got none stay as they are.
    """
    state = None if backbone is None else _state_of(backbone)
    if backbone is None or state is None:
        return 0
    remove(backbone.blocks)
    count = 0
    for block in backbone.blocks:
        adapter = adapter_of(block)
        if adapter is None or adapter not in tokens:
            continue
        params = {name: p.detach().double() for name, p in adapter.read_parameters().items()}
        if adapter.filter_grid_size is not None:
            params["spectral_filter"] = resample_spectral_filter(
                params["spectral_filter"], adapter.filter_grid_size, state.grid_size
            )
        folded = FoldedAdapter(params, tokens[adapter], state.grid_size)
        block._modules[ADAPTER_NAME] = folded
        count += 1
    return count


def has_full_filter(backbone: Backbone | None) -> bool:
    """Whether an adapter filters frequencies, and so belongs to one grid once it is folded."""
    blocks = () if backbone is None else backbone.blocks
    found = (adapter_of(block) for block in blocks)
    return any(adapter is not None and adapter.filter_grid_size is not None for adapter in found)


def _state_of(backbone: Backbone) -> TowerState | None:
    found = (adapter_of(block) for block in backbone.blocks)
    return next((adapter.tower for adapter in found if adapter is not None), None)


def _merge_lora(made: nn.Module) -> None:
    """Put the layers that peft has wrapped back in their places, with what it adds to them."""
    done: list[str] = []
    part: Any
    for name, part in list(made.named_modules()):
        if not type(part).__module__.startswith("peft.") or name.startswith(tuple(done)):
            continue
        if hasattr(part, "unload_and_optionally_merge_module"):  # layers with layers inside
            inner = part.unload_and_optionally_merge_module(
                merge=not part.disable_adapters, safe_merge=True, adapter_names=None
            )
        elif hasattr(part, "merge") and hasattr(part, "get_base_layer"):
            if not part.disable_adapters:
                part.merge(safe_merge=True)
            inner = part.get_base_layer()
        elif isinstance(copies := getattr(part, "modules_to_save", None), nn.ModuleDict):
            own = dict(copies.items())
            inner = own.get(part.active_adapter, part.original_module)
        else:
            continue
        done.append(f"{name}.")
        path, _, leaf = name.rpartition(".")
        setattr(made.get_submodule(path), leaf, inner)
