"""Putting HT adapters into a model, taking them out again, and asking a patched model."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastht.adapter import HTAdapter
from fastht.backbones import Backbone, find_backbone, plain_name, unwrap_part
from fastht.config import HTConfig

ModelT = TypeVar("ModelT", bound=nn.Module)

ADAPTER_NAME = "ht"
# Hooks are entered under a name of our own: the running numbers that register_forward_hook gives
# restart in every process, so that an unpickled model's hooks could be overwritten unnoticed.
_HOOK_KEY = "fastht"
_PATCH_ATTRIBUTE = "_fastht_patch"
_PARALLEL_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


class NotPatchedError(ValueError):
    """The model has no HT adapters (of its own)."""


@dataclass
class TowerState:
    """What the adapters of one tower share at run time.

    Attributes:
        grid_size: ``(H, W)`` of the images in flight; the built size before the first ones.
        num_prefix_tokens: class and register tokens before the patches.
        sequence_first: whether the blocks take ``[N, B, D]``.
        enabled: whether the adapters run.
        grids: every grid that a backward may still ask for, by its number of patches.
    """

    grid_size: tuple[int, int]
    num_prefix_tokens: int
    sequence_first: bool
    enabled: bool = True
    grids: dict[int, set[tuple[int, int]]] = field(default_factory=dict)

    def recomputed_grid(self, num_patches: int) -> tuple[int, int]:
        """Return the grid of a block that gradient checkpointing runs again in the backward.

        By then other images may have gone through the tower, so the grid is told by the number
        of patches, or not at all. Blocks that are compiled one by one inside a checkpoint do not
        ask: they take the grid of the latest images.

        Raises:
            RuntimeError: images of several grids of that many patches went through the tower.
        """
        grids = self.grids.get(num_patches, set())
        if len(grids) != 1:
            shown = ", ".join(f"{height}x{width}" for height, width in sorted(grids)) or "none"
            raise RuntimeError(
                f"gradient checkpointing recomputes a block of {num_patches} patches, but which of "
                f"the grids of that many patches it had is unknown (seen in training: {shown}). "
                "Train on one aspect ratio per number of patches, or without gradient checkpointing"
            )
        return next(iter(grids))


@dataclass
class PatchRecord:
    """What :func:`unpatch` needs to give back exactly the base. Kept on the patched model.

    Attributes:
        config: the config that the model was patched with.
        backend: the backend that was asked for.
        requires_grad: the flag that each of the base's parameters had before, by name.
    """

    config: HTConfig
    backend: str
    requires_grad: dict[str, bool]


class _RecordGrid:
    """Forward hook of the patch projection: remembers the grid of the images in flight."""

    def __init__(self, state: TowerState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        height, width = output.shape[-2:]
        self.state.grid_size = (height, width)
        # A forward without gradients is never recomputed. Compiled code does not come here for its
        # recomputation, and to trace the set would recompile for every new grid.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.state.grids.setdefault(height * width, set()).add((height, width))


class _RunAdapter:
    """Forward hook of a block: runs the adapter that the block itself holds.

    It looks the adapter up in the module that it is called for, so that copies of a model use
    their own weights.
    """

    def __init__(self, state: TowerState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        state = self.state
        if not state.enabled:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        if state.sequence_first:
            tokens = tokens.transpose(0, 1)
        grid_size = state.grid_size
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            grid_size = state.recomputed_grid(tokens.shape[1] - state.num_prefix_tokens)
        adapter: Any = module.ht
        tokens = adapter(tokens, grid_size, state.num_prefix_tokens)
        if state.sequence_first:
            tokens = tokens.transpose(0, 1)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens


def patch(model: ModelT, config: HTConfig | None = None, *, backend: str = "auto") -> ModelT:
    """Freeze a model and put one trainable HT adapter after each of its vision blocks.

    The adapters sit at ``<block>.ht``; the base's own parameter names do not change. They are made
    on each block's device, in float32 (float64 in a float64 base). Patching again with the same
    arguments changes nothing. Patch before wrapping in DDP or FSDP.

    Args:
        model: any model with one vision transformer inside: open_clip, OpenAI's clip, timm or
            transformers; changed in place.
        config: what the adapters are made of; the default is the paper's hybrid in every block.
        backend: ``"auto"`` or one of :func:`fastht.backends`.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module, or ``config`` no :class:`fastht.HTConfig`.
        UnsupportedModelError: there is no vision transformer in the model, or it drops patches.
        ValueError: the model is patched with another config or backend already, is wrapped for
            distributed training, or the config does not fit it. The model is untouched then.
        BackendUnavailableError: the backend cannot run here, or not with so wide a bottleneck.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; fastht.patch takes a torch.nn.Module")
    config = HTConfig() if config is None else config
    if not isinstance(config, HTConfig):
        raise TypeError(f"config is a {type(config).__name__}; give a fastht.HTConfig")
    root = unwrap(model)
    refuse_wrapped(model)
    backbone = find_backbone(root)
    if _adapters(backbone):
        record = getattr(root, _PATCH_ATTRIBUTE, None)
        if record is None:
            raise ValueError(
                f"{type(root).__name__} has HT adapters already, put in through another module "
                "around or inside it; call fastht.unpatch with that one first"
            )
        if (record.config, record.backend) == (config, backend):
            return model
        raise ValueError(
            f"{type(root).__name__} has HT adapters already ({record.config}, "
            f"backend={record.backend!r}); call fastht.unpatch first to change them"
        )
    made = make_adapters(backbone, config, backend, backbone.grid_size)
    attach(root, backbone, made, config, backend)
    return model


def unpatch(model: ModelT) -> ModelT:
    """Take the adapters out again: the model is exactly the base that :func:`patch` was given.

    Returns:
        ``model``.

    Raises:
        NotPatchedError: the model has no adapters, or was patched through a larger model.
    """
    root = unwrap(model)
    backbone = _patched_backbone(root)
    record: PatchRecord | None = getattr(root, _PATCH_ATTRIBUTE, None)
    if record is None:
        raise NotPatchedError(
            f"{type(root).__name__} was patched through another module: "
            "unpatch the model that was given to fastht.patch"
        )
    _remove_hook(backbone.patch_projection)
    for index in _adapters(backbone):
        block = backbone.blocks[index]
        delattr(block, ADAPTER_NAME)
        _remove_hook(block)
    for module in _lockable(root, backbone):
        del module.lock
    delattr(root, _PATCH_ATTRIBUTE)
    for name, parameter in root.named_parameters():
        # Parameters that came after patch, such as a new head, are not the base's.
        flag = record.requires_grad.get(plain_name(name), parameter.requires_grad)
        parameter.requires_grad_(flag)
    _forget_compiled_code()
    return model


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Run the model without its adapters inside the context: bitwise the frozen base.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    state = _tower_state(_patched_backbone(unwrap(model)))
    before, state.enabled = state.enabled, False
    try:
        yield
    finally:
        state.enabled = before


def adapters(model: nn.Module) -> dict[int, HTAdapter]:
    """Return a patched model's adapters by the index of their block.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    return _adapters(_patched_backbone(unwrap(model)))


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a patched model's adapters, as an optimizer takes them.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    return [p for adapter in adapters(model).values() for p in adapter.parameters()]


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a patched model's adapters.

    The names, ``blocks.{index}.{parameter}``, do not depend on where a library keeps its vision
    tower. Sharded parameters (FSDP2) are gathered, so every rank has to call this.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    weights = {}
    for index, adapter in adapters(model).items():
        for name, tensor in adapter.state_dict().items():
            full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            weights[f"blocks.{index}.{name}"] = full.detach()
    return weights


def print_trainable_parameters(model: nn.Module) -> None:
    """Print how many of the model's parameters train, as peft does."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    share = 100 * trainable / total if total else 0.0
    print(f"trainable params: {trainable:,} || all params: {total:,} || trainable%: {share:.4f}")


def patched_config(model: nn.Module) -> HTConfig:
    """Return the config that a model was patched with.

    Raises:
        NotPatchedError: the model has no adapters.
    """
    return next(iter(adapters(model).values())).config


def make_adapters(
    backbone: Backbone, config: HTConfig, backend: str, grid_size: tuple[int, int]
) -> dict[int, HTAdapter]:
    """Make the adapters that ``config`` asks for, by block, without touching the model.

    ``grid_size`` is that of a full spectral filter.
    """
    made = {}
    for index in config.layer_indices(len(backbone.blocks)):
        block = backbone.blocks[index]
        if hasattr(block, ADAPTER_NAME):
            raise ValueError(
                f"block {index} ({type(block).__name__}) has an attribute {ADAPTER_NAME!r} of its "
                "own, where fastht would keep its adapter"
            )
        example = next(p for p in block.parameters() if p.is_floating_point())
        made[index] = HTAdapter(
            backbone.dim,
            config,
            grid_size=grid_size,
            backend=backend,
            device=example.device,
            dtype=torch.float64 if example.dtype == torch.float64 else torch.float32,
        )
    return made


def attach(
    root: nn.Module,
    backbone: Backbone,
    made: dict[int, HTAdapter],
    config: HTConfig,
    backend: str,
) -> None:
    """Freeze ``root`` and put the adapters of :func:`make_adapters` into its blocks."""
    requires_grad = {plain_name(name): p.requires_grad for name, p in root.named_parameters()}
    root.requires_grad_(False)
    state = TowerState(backbone.grid_size, backbone.num_prefix_tokens, backbone.sequence_first)
    _add_hook(backbone.patch_projection, _RecordGrid(state))
    for index, adapter in made.items():
        block = backbone.blocks[index]
        block.add_module(ADAPTER_NAME, adapter.train(block.training))
        _add_hook(block, _RunAdapter(state))
    for module in _lockable(root, backbone):
        module.lock = functools.partial(_lock_base, module)  # type: ignore[assignment]
    setattr(root, _PATCH_ATTRIBUTE, PatchRecord(config, backend, requires_grad))
    _forget_compiled_code()


def _adapters(backbone: Backbone) -> dict[int, HTAdapter]:
    children = enumerate(getattr(block, ADAPTER_NAME, None) for block in backbone.blocks)
    return {index: child for index, child in children if isinstance(child, HTAdapter)}


def _patched_backbone(root: nn.Module) -> Backbone:
    backbone = find_backbone(root)
    if not _adapters(backbone):
        raise NotPatchedError(
            f"{type(root).__name__} has no HT adapters; call fastht.patch(model) first"
        )
    return backbone


def _tower_state(backbone: Backbone) -> TowerState:
    hooks: Any = backbone.patch_projection._forward_hooks
    return hooks[_HOOK_KEY].state


def _add_hook(module: nn.Module, hook: Any) -> None:
    hooks: Any = module._forward_hooks
    hooks[_HOOK_KEY] = hook
    # First in line: whatever else watches a block's output sees the adapted one.
    hooks.move_to_end(_HOOK_KEY, last=False)


def _remove_hook(module: nn.Module) -> None:
    hooks: Any = module._forward_hooks
    del hooks[_HOOK_KEY]


def _forget_compiled_code() -> None:
    """Make ``torch.compile`` look at the hooks again.

    It does not guard on modules without hooks (``skip_nnmodule_hook_guards``), so code compiled
    before would run on without the adapters. Other models' code goes too and is compiled again.
    """
    if "torch._dynamo" in sys.modules:  # else nothing has been compiled
        torch.compiler.reset()


def _lockable(root: nn.Module, backbone: Backbone) -> list[nn.Module]:
    """Return the modules between the model and its tower that open_clip's ``lock`` is called on."""
    parts = backbone.path.split(".") if backbone.path else []
    chain = [root.get_submodule(".".join(parts[:i])) for i in range(len(parts) + 1)]
    # A wrapper passes attributes on to the module inside, which is in the chain itself.
    return [m for m in chain if hasattr(m, "lock") and unwrap_part(m) is m]


def _lock_base(module: Any, *args: Any, **kwargs: Any) -> None:
    """Stand in for a tower's ``lock``: the base is locked as asked, the adapters go on training."""
    own = [p for m in module.modules() if isinstance(m, HTAdapter) for p in m.parameters()]
    flags = [p.requires_grad for p in own]
    type(module).lock(module, *args, **kwargs)
    for parameter, flag in zip(own, flags, strict=True):
        parameter.requires_grad_(flag)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside ``torch.compile`` and (distributed) data parallel wrappers."""
    model = unwrap_part(model)
    return unwrap(model.module) if isinstance(model, _PARALLEL_WRAPPERS) else model


def refuse_wrapped(model: nn.Module) -> None:
    """Raise ``ValueError`` if the model, or a part, is wrapped for distributed training already."""
    wrapped = any(
        isinstance(m, _PARALLEL_WRAPPERS) or type(m).__name__ == "FullyShardedDataParallel"
        for m in model.modules()
    )
    if wrapped or any(hasattr(p, "full_tensor") for p in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} is wrapped for distributed training already, which would "
            "leave new adapters out of the gradient exchange: patch first, then wrap"
        )
