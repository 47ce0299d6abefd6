"""Putting HT adapters into a model, taking them out again, and asking a patched model."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastht import attention_order
from fastht.adapter import HTAdapter
from fastht.backbones import Backbone, UnsupportedModelError, find_backbone
from fastht.config import HTConfig
from fastht.hooks import (
    RecordGrid,
    RefusePadding,
    RunAdapter,
    add_check,
    add_hook,
    find_hook,
    remove_check,
    remove_hook,
)
from fastht.modules_to_save import resolve_modules
from fastht.recompute import check_blocks, install, parse_recompute, reinstall, remove
from fastht.releases import tell_unknown_releases
from fastht.scriptable import allow_script, forget_script
from fastht.tower import TowerState
from fastht.wrappers import (
    device_of,
    has_lora,
    is_distributed,
    original_name,
    plain_name,
    refuse_wrapped,
    unwrap,
    unwrap_part,
)

ModelT = TypeVar("ModelT", bound=nn.Module)

ADAPTER_NAME = "ht"
_PATCH_ATTRIBUTE = "_fastht_patch"


class NotPatchedError(ValueError):
    """The model has no HT adapters (of its own)."""


@dataclass
class PatchRecord:
    """What :func:`unpatch` needs to give back exactly the base. Kept on the patched model.

    Attributes:
        config: the config that the model was patched with.
        backend: the backend that was asked for.
        requires_grad: the flag that each of the base's parameters had before, by name.
        modules_to_save: paths of the modules that train beside the adapters.
        had_lora: whether layers of peft's stood in the model before.
        keep: which tokens the adapters keep, as it was asked for.
        recompute: what the blocks compute again in the backward pass.
    """

    config: HTConfig
    backend: str
    requires_grad: dict[str, bool]
    modules_to_save: tuple[str, ...] = ()
    had_lora: bool = False
    keep: str = "auto"
    recompute: str = "none"

    @property
    def asked(self) -> tuple[Any, ...]:
        """What :func:`patch` was called with."""
        return self.config, self.backend, self.modules_to_save, self.keep, self.recompute


def patch(
    model: ModelT,
    config: HTConfig | None = None,
    *,
    backend: str = "auto",
    modules_to_save: Sequence[str] = (),
    keep: str = "auto",
    recompute: str = "none",
) -> ModelT:
    """Freeze a model and put one trainable HT adapter after each of its vision blocks.

    The adapters sit at ``<block>.ht``; the base's own parameter names do not change. They are made
    on each block's device, in float32 (float64 in a float64 base). Patching again with the same
    arguments changes nothing, inside DDP or FSDP too. Patch before wrapping in either.

    Args:
        model: any model with one vision transformer inside: open_clip, OpenAI's clip, timm or
            transformers; changed in place.
        config: what the adapters are made of; the default is the paper's hybrid in every block.
        backend: ``"auto"`` or one of :func:`fastht.backends`.
        modules_to_save: modules that stay trainable, such as a classifier's head, and that
            :func:`fastht.save_adapter` keeps too; each by its path in ``model`` or the end of it.
        keep: which of its tokens an adapter keeps for the backward pass: ``"auto"``, ``"output"``
            (of which the input is made again) or ``"input"``; see :func:`fastht.ops.ht_adapter`.
        recompute: what the backward pass computes again instead of keeping it: ``"none"``;
            ``"mlp"``, the input of each MLP's activation, for one more product a block; or
            ``"block"``, each block without its adapter. ``"mlp:6"`` and ``"block:6"`` do so in six
            blocks alone, the first of which anything is kept. Results are the same to the bit.

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
    record = patch_record(root)
    if record is None:
        refuse_wrapped(model)
    backbone = find_backbone(root)
    if _adapters(backbone):
        if record is None:
            raise ValueError(
                f"{type(root).__name__} has HT adapters already, put in through another module "
                "around or inside it; call fastht.unpatch with that one first"
            )
        kept = resolve_modules(root, modules_to_save)
        parse_recompute(recompute)
        asked = (config, backend, kept, keep, recompute)
        if asked == record.asked:
            tower_state(root)
            return model
        raise ValueError(
            f"{type(root).__name__} has HT adapters already ({record.config}, "
            f"backend={record.backend!r}, modules_to_save={list(record.modules_to_save)}, "
            f"keep={record.keep!r}, recompute={record.recompute!r}); "
            f"call fastht.unpatch first to change them{_before_wrapping(model)}"
        )
    refuse_bereft(root)
    kept = resolve_modules(root, modules_to_save)
    check_blocks(backbone.blocks, recompute)
    made = make_adapters(backbone, config, backend, backbone.grid_size, keep)
    attach(root, backbone, made, config, backend, kept, keep, recompute)
    return model


def unpatch(model: ModelT) -> ModelT:
    """Take the adapters out again: the model is exactly the base that :func:`patch` was given.

    All or nothing, and through wrappers (compiled, parallel, averaged, peft's) too. LoRA that peft
    has put in after :func:`patch` stays, and the base under it stays frozen.

    Returns:
        ``model``.

    Raises:
        NotPatchedError: the model has no adapters, or was patched through a larger model.
    """
    root = unwrap(model)
    record = patch_record(root)
    if record is None:
        _patched_backbone(root)
        raise NotPatchedError(
            f"{type(root).__name__} was patched through another module: "
            "unpatch the model that was given to fastht.patch"
        )
    backbone = find_backbone(root)  # its adapters may be gone, with the blocks that held them
    # Nothing below fails.
    remove_hook(backbone.patch_projection)
    if backbone.masked is not None:
        remove_check(backbone.masked)
    for index in _adapters(backbone):
        block = backbone.blocks[index]
        block._modules.pop(ADAPTER_NAME, None)  # one block may stand in several places by now
        remove_hook(block)
    remove(backbone.blocks)
    attention_order.remove(backbone.blocks)
    for module in _lockable(root, backbone):
        vars(module).pop("lock", None)
    forget_script(root)
    del vars(root)[_PATCH_ATTRIBUTE]
    if record.had_lora or not has_lora(root):
        flags = record.requires_grad
        # A tool may have come since, or gone, and have renamed parameters either way.
        flags = {original_name(name): flag for name, flag in flags.items()} | flags
        for name, parameter in root.named_parameters():
            name = plain_name(name)
            before = flags.get(name, flags.get(original_name(name)))
            if before is None:  # it came after patch, as a new head does
                continue
            with torch.inference_mode(parameter.is_inference()):  # where alone such a one has flags
                parameter.requires_grad_(before)
    _forget_compiled_code()
    return model


def set_recompute(model: nn.Module, recompute: str) -> None:
    """Change what the backward pass of a patched model, or of one with LoRA, computes again.

    Args:
        model: has one vision transformer inside.
        recompute: as :func:`patch` takes it.

    Raises:
        ValueError: there is no such setting, or the blocks cannot have it, which have ``"none"``
            then.
    """
    root = unwrap(model)
    record = patch_record(root)
    try:
        reinstall(find_backbone(root).blocks, recompute)
    except ValueError:
        recompute = "none"
        raise
    finally:
        if record is not None:
            record.recompute = recompute
        _forget_compiled_code()


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Run the model without its adapters inside the context: bitwise the frozen base.

    This holds in the thread that enters the context; others go on with the adapters.

    Raises:
        NotPatchedError: the model has no adapters.
        ValueError: another tool has taken their hooks out.
    """
    state = tower_state(unwrap(model))
    before = state.disable(True)
    try:
        yield
    finally:
        state.disable(before)


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
    backbone: Backbone,
    config: HTConfig,
    backend: str,
    grid_size: tuple[int, int],
    keep: str = "auto",
) -> dict[int, HTAdapter]:
    """Make the adapters that ``config`` asks for, by block, without touching the model.

    ``grid_size`` is that of a full spectral filter.
    """
    made = {}
    for index in config.layer_indices(len(backbone.blocks)):
        block = backbone.blocks[index]
        places = [place for place, other in enumerate(backbone.blocks) if other is block]
        if len(places) > 1:
            raise UnsupportedModelError(
                f"blocks {places} are one module, which can hold one adapter: make copies of it "
                "(copy.deepcopy) or share its weights alone"
            )
        if hasattr(block, ADAPTER_NAME):
            raise ValueError(
                f"block {index} ({type(block).__name__}) has an attribute {ADAPTER_NAME!r} of its "
                "own, where fastht would keep its adapter"
            )
        # A block may have no parameters of its own: where layers are dropped, nn.Identity stays.
        own = (*block.parameters(), *backbone.tower.parameters())
        example = next(p for p in own if p.is_floating_point())
        with torch.inference_mode(False):  # they are to train, wherever they are made
            made[index] = HTAdapter(
                backbone.dim,
                config,
                grid_size=grid_size,
                backend=backend,
                keep=keep,
                device=device_of(block, example),
                dtype=torch.float64 if example.dtype == torch.float64 else torch.float32,
            )
    return made


def attach(
    root: nn.Module,
    backbone: Backbone,
    made: dict[int, HTAdapter],
    config: HTConfig,
    backend: str,
    modules_to_save: tuple[str, ...] = (),
    keep: str = "auto",
    recompute: str = "none",
) -> None:
    """Freeze ``root`` and put the adapters of :func:`make_adapters` into its blocks."""
    state = TowerState(backbone.grid_size, backbone.num_prefix_tokens, backbone.sequence_first)
    state.modules_to_save = modules_to_save
    tell_unknown_releases(backbone.tower)
    flags = {plain_name(name): p.requires_grad for name, p in root.named_parameters()}
    lora = has_lora(root)
    record = PatchRecord(config, backend, flags, modules_to_save, lora, keep, recompute)
    if record.had_lora and any(flags.values()):
        warnings.warn(
            f"fastht.patch freezes the {sum(flags.values())} parameters that LoRA trains in this "
            "model; to train them beside the adapters, call requires_grad_(True) on them",
            stacklevel=3,
        )
    root.requires_grad_(False)
    for path in modules_to_save:
        root.get_submodule(path).requires_grad_(True)
    add_hook(backbone.patch_projection, RecordGrid(state, backbone.read_grid))
    if backbone.masked is not None:
        add_check(backbone.masked, RefusePadding(state))
    for index, adapter in made.items():
        block = backbone.blocks[index]
        adapter.tower = state
        block.add_module(ADAPTER_NAME, adapter.train(block.training))
        add_hook(block, RunAdapter(state, index))
    install(backbone.blocks, recompute)
    attention_order.install(backbone.blocks, state)
    for module in _lockable(root, backbone):
        module.lock = functools.partial(_lock_base, module)  # type: ignore[assignment]
    allow_script(root)
    setattr(root, _PATCH_ATTRIBUTE, record)
    _forget_compiled_code()


def patch_record(root: nn.Module) -> PatchRecord | None:
    """Return what was noted when this very module was patched, or ``None``."""
    return vars(root).get(_PATCH_ATTRIBUTE)


def tower_state(root: nn.Module) -> TowerState:
    """Return what the adapters of a patched model share.

    Raises:
        NotPatchedError: the model has no adapters.
        ValueError: another tool has taken their hooks out.
    """
    backbone = _patched_backbone(root)
    hooked = (backbone.patch_projection, *(backbone.blocks[index] for index in _adapters(backbone)))
    hooks = [find_hook(module) for module in hooked]
    if None in hooks:
        raise ValueError(
            f"{type(root).__name__} has HT adapters that do not run, since another tool has taken "
            "forward hooks out of it: save them, call fastht.unpatch, and load them again"
        )
    state: TowerState = hooks[0].state
    return state


def refuse_bereft(root: nn.Module) -> None:
    """Raise ``ValueError`` if a model without adapters was patched and has lost them since."""
    if patch_record(root) is not None:
        raise ValueError(
            f"{type(root).__name__} was patched, and the blocks with its HT adapters were taken "
            "out of it since; call fastht.unpatch first, which gives the base its flags back"
        )


def _before_wrapping(model: nn.Module) -> str:
    if not is_distributed(model):
        return ""
    return ", on a model that is not wrapped for distributed training yet, as this one is"


def _adapters(backbone: Backbone) -> dict[int, HTAdapter]:
    held = enumerate(adapter_of(block) for block in backbone.blocks)
    return {index: adapter for index, adapter in held if adapter is not None}


def adapter_of(block: nn.Module) -> HTAdapter | None:
    """Return a block's adapter: inside of what peft's ``modules_to_save`` wraps it in, too."""
    child: Any = getattr(block, ADAPTER_NAME, None)
    copies = getattr(child, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict) and copies:
        child = dict(copies.items()).get(child.active_adapter) or next(iter(copies.values()))
    return child if isinstance(child, HTAdapter) else None


def _patched_backbone(root: nn.Module) -> Backbone:
    backbone = find_backbone(root)
    if not _adapters(backbone):
        raise NotPatchedError(
            f"{type(root).__name__} has no HT adapters; call fastht.patch(model) first"
        )
    return backbone


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
