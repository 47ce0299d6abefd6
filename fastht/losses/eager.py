"""The losses outside of graphs, with less time spent around the sweeps.

What PyTorch does for an op that takes lists of tensors takes as long, at a batch of a thousand, as
several passes over all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastht.dispatcher import nobody_between
from fastht.losses.custom_op import gradients, keep, run_forward


def contrastive(*inputs: Any) -> Tensor:
    """Return ``[2]``: the losses of ``fastht::contrastive``, whose arguments these are."""
    needs = inputs[-1]
    # A tracer records operators of the dispatcher, and nothing of a Python function's.
    graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if any(needs) and not graph and nobody_between(inputs[:3]):
        return _Differentiable.apply(*inputs)
    result: Tensor = torch.ops.fastht.contrastive(*inputs)[0]
    return result


class _Differentiable(torch.autograd.Function):
    """The same derivative as the op's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        losses, *statistics = run_forward(*inputs)
        keep(ctx, inputs, statistics)
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Any, ...]:
        return *gradients(ctx, dlosses), *(None for _ in ctx.needs_input_grad[4:])
