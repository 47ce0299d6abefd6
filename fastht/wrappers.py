"""What may be wrapped around a model, or around a part of it, before or after patching."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

# Where torch.compile and torch's checkpoint_wrapper keep the module that they wrap. Either may be
# put around a block, before or after patching; the adapter belongs to the block itself.
_WRAPPED = ("_orig_mod", "_checkpoint_wrapped_module")
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
# Names that tools give to a parameter which they compute anew or wrap: parametrizations, pruning
# and the older weight norms, peft's layers.
_RENAMED = (
    (re.compile(r"(^|\.)parametrizations\.([^.]+)\.original[01]?$"), r"\1\2"),
    (re.compile(r"_orig$"), ""),
    (re.compile(r"(^|\.)base_layer\."), r"\1"),
)


def unwrap_part(module: nn.Module) -> nn.Module:
    """Return what wrappers around a part of a model hold, or ``module`` itself."""
    for name in _WRAPPED:
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return unwrap_part(inner)
    return module


def plain_name(name: str) -> str:
    """Return a parameter's name as it is without wrappers around parts of the model."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


def original_name(name: str) -> str:
    """Return the name that a parameter had before a tool wrapped its module or renamed it."""
    for pattern, plain in _RENAMED:
        name = pattern.sub(plain, name)
    return name


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside of what passes calls on to it.

    That is ``torch.compile``, (distributed) data parallel, averages of weights (torch's
    ``AveragedModel``, timm's ``ModelEma``) and peft's models.
    """
    inner: Any = unwrap_part(model)
    if isinstance(inner, _PARALLEL) or _is_average(inner):
        return unwrap(inner.module)
    if type(inner).__module__.startswith("peft.") and hasattr(inner, "get_base_model"):
        return unwrap(inner.get_base_model())
    return inner


def _is_average(model: nn.Module) -> bool:
    names = {kind.__name__ for kind in type(model).__mro__}
    return bool(names & {"AveragedModel", "ModelEma", "ModelEmaV2", "ModelEmaV3"}) and isinstance(
        getattr(model, "module", None), nn.Module
    )


def device_of(block: nn.Module, parameter: Tensor) -> torch.device:
    """Return where a block computes with one of its parameters.

    One that accelerate offloads is on the meta device between the calls.
    """
    if parameter.is_meta:
        for module in block.modules():
            hook = getattr(module, "_hf_hook", None)
            for part in (hook, *getattr(hook, "hooks", ())):
                device = getattr(part, "execution_device", None)
                if device is not None:
                    return torch.device(device)
    return parameter.device


def has_lora(model: nn.Module) -> bool:
    """Whether layers of peft's stand in a model."""
    return any(type(m).__module__.startswith("peft.tuners") for m in model.modules())


def is_distributed(model: nn.Module) -> bool:
    """Whether the model, or a part, is wrapped for distributed training, or sharded by FSDP2."""
    return any(
        isinstance(m, _PARALLEL) or type(m).__name__ == "FullyShardedDataParallel"
        for m in model.modules()
    ) or any(hasattr(p, "full_tensor") for p in model.parameters())


def refuse_wrapped(model: nn.Module) -> None:
    """Raise ``ValueError`` if the model, or a part, is wrapped for distributed training already."""
    if is_distributed(model):
        raise ValueError(
            f"{type(model).__name__} is wrapped for distributed training already, which would "
            "leave new adapters out of the gradient exchange: patch first, then wrap"
        )
