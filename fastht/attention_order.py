"""Tokens in the order in memory in which ``nn.MultiheadAttention`` reads them.

With ``batch_first`` it transposes the tokens to ``[N, B, D]`` and projects that view. Where the
projection is frozen, PyTorch makes a batched product of it, there and again in the backward pass;
in 16-bit numbers on a CPU with a copy of the weights for every image. Of tokens that lie in memory
as they are read it makes one plain product. The values are the same, within the rounding of
another kernel. A training step of ViT-B-16 took a fifth of the time on a CPU, in bfloat16, and
0.96 of it on an H200.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastht.ops.context import composite_reason
from fastht.tower import TowerState

_KEY = "fastht"


class OrderTokens:
    """Forward pre-hook of an ``nn.MultiheadAttention`` in a patched tower.

    It acts in training steps alone, so that without gradients, in evaluation and with the adapters
    disabled the bits are the base's; and not in what is compiled for a GPU, where nobody has
    measured it.
    """

    def __init__(self, state: TowerState) -> None:
        self.state = state

    def __call__(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Return the arguments with the tokens in order, or ``None`` to leave them."""
        if not (module.training and torch.is_grad_enabled() and self.state.enabled):
            return None
        if composite_reason() is not None or torch.jit.is_tracing() or len(args) < 3:
            return None
        tokens = args[0]
        if isinstance(tokens, torch.fx.Proxy) or args[1] is not tokens or args[2] is not tokens:
            return None
        weight = module.in_proj_weight
        if weight is None or weight.requires_grad or tokens.dim() != 3:
            return None
        if not (tokens.is_cpu or (tokens.is_cuda and not torch.compiler.is_compiling())):
            return None
        # The copy is not kept: no gradient is asked of the projection that reads it.
        ordered = tokens.transpose(0, 1).contiguous().transpose(0, 1)
        return (ordered, ordered, ordered, *args[3:])


def install(blocks: tuple[nn.Module, ...], state: TowerState) -> None:
    """Have the attention of the blocks given its tokens in order, where it transposes them."""
    for block in blocks:
        for module in block.modules():
            if type(module) is nn.MultiheadAttention and module.batch_first:
                hooks: Any = module._forward_pre_hooks
                hooks[_KEY] = OrderTokens(state)


def is_installed(module: nn.Module) -> bool:
    """Whether the module itself has :class:`OrderTokens`."""
    hooks: Any = module._forward_pre_hooks
    return _KEY in hooks


def remove(blocks: tuple[nn.Module, ...]) -> None:
    """Take :func:`install` back; blocks without it stay as they are."""
    for block in blocks:
        for module in block.modules():
            hooks: Any = module._forward_pre_hooks
            hooks.pop(_KEY, None)
