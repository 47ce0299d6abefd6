"""The hooks by which a patched tower runs its adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastht.backbones import GridReader
from fastht.families import MASK
from fastht.ops.context import composite_reason
from fastht.tower import TowerState

# Hooks are entered under a name of our own: the running numbers that register_forward_hook gives
# restart in every process, so that an unpickled model's hooks could be overwritten unnoticed.
_KEY = "fastht"
_PADDED = (
    "some images of this batch are padded (patch_attention_mask), and HT adapters convolve over "
    "all patches: give images of one size a batch, without padding"
)


def add_hook(module: nn.Module, hook: Any) -> None:
    """Enter a hook of ours into a module."""
    hooks: Any = module._forward_hooks
    hooks[_KEY] = hook
    # First in line: whatever else watches a block's output sees the adapted one.
    hooks.move_to_end(_KEY, last=False)


def add_check(module: nn.Module, check: Any) -> None:
    """Enter a check of a module's arguments, to be called with the keywords too."""
    hooks: Any = module._forward_pre_hooks
    with_keywords: Any = module._forward_pre_hooks_with_kwargs
    hooks[_KEY] = check
    with_keywords[_KEY] = True


def remove_check(module: nn.Module) -> None:
    """Take our check out of a module, where it has one."""
    hooks: Any = module._forward_pre_hooks
    with_keywords: Any = module._forward_pre_hooks_with_kwargs
    hooks.pop(_KEY, None)
    with_keywords.pop(_KEY, None)


def find_hook(module: nn.Module) -> Any:
    """Return our hook of a module, or ``None``."""
    hooks: Any = module._forward_hooks
    return hooks.get(_KEY)


def remove_hook(module: nn.Module) -> None:
    """Take our hook out of a module, where it has one."""
    hooks: Any = module._forward_hooks
    hooks.pop(_KEY, None)


class RecordGrid:
    """Forward hook of the patch projection: remembers the grid of the images in flight."""

    def __init__(self, state: TowerState, read: GridReader) -> None:
        self.state = state
        self.read = read

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Record the grid for the thread that calls."""
        if isinstance(output, torch.fx.Proxy):
            raise RuntimeError(
                f"torch.fx records the inside of {type(module).__name__}, the patch projection, "
                "whose result tells the HT adapters their grid: make it a leaf of the tracer"
            )
        self.state.record(*self.read(args, output))


class RefusePadding:
    """Forward pre-hook of embeddings that are told which patches are padding.

    Attention leaves these out; an adapter's convolutions and its gate would mix them into the
    patches of the image.
    """

    def __init__(self, state: TowerState) -> None:
        self.state = state

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Raise ``ValueError`` if there is padding."""
        mask = kwargs.get(MASK, args[1] if len(args) > 1 else None)
        if not self.state.enabled or not isinstance(mask, Tensor):
            return
        if torch.compiler.is_compiling():  # a branch would break the graph
            torch._assert_async(mask.all(), _PADDED)  # type: ignore[call-arg]
        elif not mask.is_meta and not bool(mask.all()):
            raise ValueError(_PADDED)


class RunAdapter:
    """Forward hook of a block: runs the adapter that the block itself holds.

    It looks the adapter up in the module that it is called for, so that copies of a model use
    their own weights.
    """

    def __init__(self, state: TowerState, index: int) -> None:
        self.state = state
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the block's output with the adapter's update, or ``None`` to leave it."""
        state = self.state
        compiling = torch.compiler.is_compiling()
        recomputing = not compiling and torch._C._current_graph_task_id() != -1
        if compiling:
            enabled = state.enabled
        else:
            enabled = state.enabled_for(getattr(module, "_is_replica", False), recomputing)
        if not enabled:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        if state.sequence_first:
            tokens = tokens.transpose(0, 1)
        adapter: Any = module.ht
        if isinstance(tokens, torch.fx.Proxy):  # what grid the images have shows at run time
            tokens = adapter(tokens)
        else:
            num_patches = tokens.shape[1] - state.num_prefix_tokens
            if compiling:
                grid_size = state.grid_size
            elif recomputing:
                grid_size = state.recomputed_grid(num_patches)
            else:
                grid_size = state.grid_for(num_patches)
            tokens = adapter(tokens, grid_size, state.num_prefix_tokens)
            if not (compiling or recomputing or state.watch.done) and module.training:
                self._watch(adapter, tokens)
        if state.sequence_first:
            tokens = tokens.transpose(0, 1)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    def _watch(self, adapter: nn.Module, output: Tensor) -> None:
        if torch.is_grad_enabled() and not torch.jit.is_tracing() and composite_reason() is None:
            self.state.watch.see(self.index, adapter, output)
