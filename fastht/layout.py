"""Whether blocks take ``[B, N, D]`` or ``[N, B, D]``, told by what they do."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastht.seeded import seeded

TRIAL = (2, 3)  # of both sizes, so that they cannot be mistaken for each other


def declared_sequence_first(block: nn.Module) -> bool | None:
    """Return what the attention inside a block says of its layout; ``None`` where it is silent."""
    for module in block.modules():
        batch_first = getattr(module, "batch_first", None)
        if isinstance(batch_first, bool):
            return not batch_first
    return None


def observed_sequence_first(block: nn.Module, dim: int) -> bool | None:
    """Find out by trial along which dimension a block mixes tokens; ``None`` if it cannot be told.

    A copy with random weights runs, on the CPU: the block may have no memory (meta device), hooks,
    or weights of zero that mix nothing yet.
    """
    with seeded(0), torch.device("cpu"), torch.no_grad():
        trial = copy.deepcopy(block).eval()
        if any(p.is_meta for p in (*trial.parameters(), *trial.buffers())):
            trial.to_empty(device="cpu")
            for buffer in trial.buffers():
                buffer.zero_()
        trial.cpu().float()
        for module in trial.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        for parameter in trial.parameters():
            parameter.normal_(std=dim**-0.5)
        tokens = torch.randn(*TRIAL, dim)
        changed = tokens.clone()
        changed[0, 0] += torch.randn(dim)
        try:
            before, after = (_first(trial(x)) for x in (tokens, changed))
        except Exception:  # a block may take more than tokens
            return None
        if before.shape != tokens.shape:
            return None
        moved = (after - before).abs().amax(dim=2) > 0
    along_second, along_first = bool(moved[0, 1:].any()), bool(moved[1, :].any())
    return None if along_first == along_second else along_first


def _first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
