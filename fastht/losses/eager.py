"""The losses outside of graphs, with less time spent around the sweeps.

What PyTorch does for an op that takes lists of tensors takes as long, at a batch of a thousand, as
several passes over all pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastht.dispatcher import nobody_between
from fastht.losses.custom_op import gradients, keep, run_forward


def contrastive(*inputs: Any) -> Tensor:
    """Return ``[2]``: the losses of ``fastht::contrastive``, whose arguments these are.

    Raises:
        RuntimeError: forward-mode differentiation is on, whose tangents would be dropped.
    """
    *tensors, rows, columns, table = inputs[:9]
    given = [x for x in tensors if x is not None]
    # A tracer would see nothing of a Python function's, and refuses the op.
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        if forward_ad._current_level >= 0:
            raise RuntimeError(
                "the losses without a B x B matrix have no forward-mode derivative; "
                'use backend="reference" there'
            )
        if any(inputs[-1]) and nobody_between((*given, *rows, *columns, *table)):
            return _ContrastiveLoss.apply(*inputs)
    result: Tensor = torch.ops.fastht.contrastive(*inputs)[0]
    return result


class _ContrastiveLoss(torch.autograd.Function):
    """The same derivative as the op's."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        losses, *statistics = run_forward(*inputs)
        keep(ctx, inputs, statistics)
        return losses

    @staticmethod
    def backward(ctx: Any, dlosses: Tensor) -> tuple[Any, ...]:
        return *gradients(ctx, dlosses), *(None for _ in ctx.needs_input_grad[4:])
