"""The losses in PyTorch's dispatcher: schema, shapes, autograd.

``fastht::contrastive`` compares the images of a process with the texts of all. What it keeps for
its backward pass are the features, the keys or tags, and a few vectors of their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastht.losses import exchange
from fastht.losses.registry import implementation
from fastht.losses.sweeps import COLUMNS, ROWS, Form, Operands, Statistics, sum_dtype
from fastht.losses.targets import factors
from fastht.losses.terms import (
    Counts,
    Share,
    Upstream,
    Weights,
    coefficients,
    count_positives,
    own_parts,
    weigh,
)

# What a process's loss is, where there are several, and whose gradients it makes.
LOCAL = 0  # its own rows' and columns' mean; gradients of the sum of all processes' losses
GLOBAL = 1  # the whole batch's mean; gradients of the sum of all processes' losses
OWN = 2  # the whole batch's mean; gradients of one process's loss


def form_numbers(form: Form) -> list[int]:
    """Return a form as the op takes it."""
    return [form.softmax, form.sigmoid, form.kl, form.mse, form.keys, form.shares]


def _form(numbers: Sequence[int]) -> Form:
    softmax, sigmoid, kl, mse, keys, shares = numbers
    return Form(softmax, bool(sigmoid), kl, bool(mse), bool(keys), bool(shares))


def operands(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    share: Share,
    targets: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]],
    temperature: float,
) -> Operands:
    """Return the sweeps' operands; ``keys`` are those of all texts."""
    q, p, u, w = factors(*targets, sum_dtype(images.dtype))
    return Operands(
        images.detach().contiguous(), texts.detach().contiguous(), scale.detach(),
        None if bias is None else bias.detach(), share.first,
        None if keys is None else keys[share.own].contiguous(),
        None if keys is None else keys.contiguous(), q, p, u, w, temperature,
    )  # fmt: skip


def _counts(keys: Tensor | None, share: Share) -> Counts | None:
    return None if keys is None else count_positives(keys, share)


@torch.library.custom_op("fastht::contrastive", mutates_args=())
def contrastive(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    sizes: Tensor | None,
    row_targets: Sequence[Tensor],
    column_targets: Sequence[Tensor],
    table: Sequence[Tensor],
    form: Sequence[int],
    weights: Sequence[float],
    temperature: float,
    reduction: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``[2]``, the contrastive and the soft-label loss, and the statistics for backward.

    images: ``[R, E]``. texts: ``[N, E]``, of all processes. scale, bias: ``[]``. keys: ``[N]``.
    sizes: ``[W]``, images of each process; ``None`` for one process, which has N of them.
    row_targets, column_targets, table: of :class:`fastht.losses.targets.SoftTargets`.
    """
    shape, share = _form(form), exchange.share(sizes, len(images))
    targets = (row_targets, column_targets, table)
    o = operands(images, texts, scale, bias, keys, share, targets, temperature)
    statistics: Statistics = implementation(backend).forward(shape, o)
    if share.processes > 1:
        statistics = exchange.reduce_columns(statistics)
    parts = own_parts(shape, statistics, o.scale, _counts(keys, share), share)
    losses = weigh(parts, Weights(*weights), share.total)
    if share.processes > 1:
        if reduction == LOCAL:
            losses = losses * share.processes
        else:
            dist.all_reduce(losses)
    return losses.to(o.scale.dtype), *statistics[:4]


@contrastive.register_fake
def _(
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    sizes: Tensor | None,
    row_targets: Sequence[Tensor],
    column_targets: Sequence[Tensor],
    table: Sequence[Tensor],
    form: Sequence[int],
    weights: Sequence[float],
    temperature: float,
    reduction: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def vectors(height: int, directions: int, direction: int, length: int) -> Tensor:
        return scale.new_empty(height, length if directions & direction else 0)

    shape, r, n = _form(form), images.shape[0], texts.shape[0]
    return (
        scale.new_empty(2),
        vectors(4, shape.softmax, ROWS, r),
        vectors(4, shape.softmax, COLUMNS, n),
        vectors(5, shape.kl, ROWS, r),
        vectors(5, shape.kl, COLUMNS, n),
    )


@torch.library.custom_op("fastht::contrastive_backward", mutates_args=())
def contrastive_backward(
    dlosses: Tensor,
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    sizes: Tensor | None,
    row_targets: Sequence[Tensor],
    column_targets: Sequence[Tensor],
    table: Sequence[Tensor],
    statistics: Sequence[Tensor],
    form: Sequence[int],
    weights: Sequence[float],
    temperature: float,
    reduction: int,
    backend: str,
    need_images: bool,
    need_texts: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of images, texts, scale and bias; empty ones where none is needed."""
    shape, share = _form(form), exchange.share(sizes, len(images))
    targets = (row_targets, column_targets, table)
    o = operands(images, texts, scale, bias, keys, share, targets, temperature)
    softmax_rows, softmax_columns, kl_rows, kl_columns = statistics
    absent = scale.new_zeros(0)  # nothing of these two is needed any more
    s = Statistics(softmax_rows, softmax_columns, kl_rows, kl_columns, absent, absent)
    upstream = _upstream(dlosses, sizes, reduction)
    k = coefficients(
        shape, s, Weights(*weights), temperature, upstream, _counts(keys, share), share
    )
    gradients = implementation(backend).backward(
        shape, o, k, need_images, need_texts, need_scale and shape.logits
    )
    none = images.new_empty(0)
    dscale, dbias = torch.zeros_like(scale), torch.zeros_like(scale)
    if gradients.scale is not None:
        both = (
            [gradients.scale, gradients.bias] if gradients.bias is not None else [gradients.scale]
        )
        sums = torch.stack([x.sum(dtype=upstream.rows.dtype) for x in both])
        if share.processes > 1:
            dist.all_reduce(sums)
            if reduction != OWN:
                sums = sums / share.processes
        dscale = sums[0].to(scale.dtype, copy=True)
        dbias = sums[-1].to(scale.dtype, copy=True) if len(both) > 1 else dbias
    return (
        none if gradients.rows is None else gradients.rows.to(images.dtype),
        none.clone() if gradients.columns is None else gradients.columns.to(texts.dtype),
        dscale,
        dbias,
    )


def _upstream(dlosses: Tensor, sizes: Tensor | None, reduction: int) -> Upstream:
    """Return what own rows and all columns count, from what all processes were given."""
    own = dlosses.detach() if dlosses.device.type == "mps" else dlosses.detach().double()
    if sizes is None:
        return Upstream(own[:, None], own[:, None])
    world = len(sizes)
    every = own.new_empty(world * 2)
    dist.all_gather_into_tensor(every, own.contiguous())
    every = every.view(world, 2).T
    if reduction == LOCAL:
        owners = torch.arange(world).repeat_interleave(sizes).to(own.device)
        return Upstream(world * own[:, None], world * every[:, owners])
    total = every.sum(1, keepdim=True)
    total = total / world if reduction == OWN else total
    return Upstream(total, total)


@contrastive_backward.register_fake
def _(
    dlosses: Tensor,
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    keys: Tensor | None,
    sizes: Tensor | None,
    row_targets: Sequence[Tensor],
    column_targets: Sequence[Tensor],
    table: Sequence[Tensor],
    statistics: Sequence[Tensor],
    form: Sequence[int],
    weights: Sequence[float],
    temperature: float,
    reduction: int,
    backend: str,
    need_images: bool,
    need_texts: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(images, memory_format=torch.contiguous_format)
        if need_images
        else images.new_empty(0),
        torch.empty_like(texts, memory_format=torch.contiguous_format)
        if need_texts
        else texts.new_empty(0),
        torch.empty_like(scale),
        torch.empty_like(scale),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    images, texts, scale, bias, keys, sizes, rows, columns, table, *options = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(
        images, texts, scale, bias, keys, sizes, *rows, *columns, *table, *statistics
    )
    ctx.lengths = len(rows), len(columns), len(table)
    ctx.options = options


def _gradients(ctx: Any, dlosses: Tensor, *_: Any) -> tuple[Any, ...]:
    images, texts, scale, bias, keys, sizes, *rest = ctx.saved_tensors
    lists = []
    for length in ctx.lengths:
        lists.append(rest[:length])
        rest = rest[length:]
    need_images, need_texts, need_scale, need_bias = ctx.needs_input_grad[:4]
    dimages, dtexts, dscale, dbias = torch.ops.fastht.contrastive_backward(
        dlosses, images, texts, scale, bias, keys, sizes, *lists, rest, *ctx.options,
        need_images, need_texts, need_scale or need_bias,
    )  # fmt: skip
    return (
        dimages if need_images else None,
        dtexts if need_texts else None,
        dscale if need_scale else None,
        dbias if need_bias else None,
        None, None, *([None] * n for n in ctx.lengths), *(None for _ in ctx.options),
    )  # fmt: skip


contrastive.register_autograd(_gradients, setup_context=_keep)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the losses without a B x B matrix have no second derivative; "
        'use backend="reference" where gradients of gradients are needed'
    )


contrastive_backward.register_autograd(_no_second_derivative)
