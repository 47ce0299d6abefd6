"""The losses in PyTorch's dispatcher: schema, shapes, autograd.

``fastht::contrastive`` compares the images of a process with the texts of all. What it keeps for
its backward pass are the features, the keys or tags, and a few vectors of their length; or, where
its backend saves products by that, the gradients beside the features (which are kept for nothing
but to be refused a second derivative).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastht.dispatcher import nobody_between
from fastht.losses import exchange
from fastht.losses.registry import implementation
from fastht.losses.sweeps import (
    COLUMNS,
    ROWS,
    Coefficients,
    Form,
    Gradients,
    Operands,
    Statistics,
    sum_dtype,
)
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
    wide_dtype,
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


def run_forward(
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
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``[2]``, the contrastive and the soft-label loss, and what backward needs.

    That is four kinds of statistics, or, where gradients are made at once, those of images and
    texts before their gain, and ``[3]``: those of scale and bias, and the gain.

    images: ``[R, E]``. texts: ``[N, E]``, of all processes. scale, bias: ``[]``. keys: ``[N]``.
    sizes: ``[W]``, images of each process; ``None`` for one process, which has N of them.
    row_targets, column_targets, table: of :class:`fastht.losses.targets.SoftTargets`.
    needs: who will want a gradient: images, texts, scale, bias.
    """
    shape, share = _form(form), exchange.share(sizes, len(images))
    targets = (row_targets, column_targets, table)
    o = operands(images, texts, scale, bias, keys, share, targets, temperature)
    counts = _counts(keys, share)
    statistics: Statistics
    gradients, gain = Gradients(None, None, None, None), None
    if _at_once(shape, backend, images, texts, sizes, needs):
        ones = scale.detach().new_ones(2, 1)
        each = Upstream(ones, ones)

        def k(found: Statistics) -> Coefficients:
            return coefficients(shape, found, Weights(*weights), temperature, each, counts, share)

        statistics, gradients, gain = implementation(backend).forward_and_backward(
            shape, o, k, (*needs[:2], needs[2] and shape.logits, needs[3] and shape.sigmoid)
        )
    else:
        statistics = implementation(backend).forward(shape, o)
    if share.processes > 1:
        statistics = exchange.reduce_columns(statistics)
    parts = own_parts(shape, statistics, o.scale, counts, share)
    losses = weigh(parts, Weights(*weights), share.total)
    if share.processes > 1:
        if reduction == LOCAL:
            losses = losses * share.processes
        else:
            dist.all_reduce(losses)
    rows, columns, *numbers = gradients
    none = o.scale.new_empty(0)
    return (
        losses.to(o.scale.dtype, copy=True),
        *statistics[:4],
        none if rows is None else rows,
        none.clone() if columns is None else columns,
        none.clone() if gain is None else torch.stack(_summed([*numbers, gain], gain)),
    )


contrastive = torch.library.custom_op("fastht::contrastive", mutates_args=())(run_forward)


def _summed(parts: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """Return the sums of gradients of scale and bias over rows, 0 where there is none."""
    dtype = wide_dtype(like)
    return [like.new_zeros((), dtype=dtype) if x is None else x.sum(dtype=dtype) for x in parts]


def _at_once(
    form: Form,
    backend: str,
    images: Tensor,
    texts: Tensor,
    sizes: Tensor | None,
    needs: Sequence[bool],
) -> bool:
    """Whether the forward sweep makes the gradients too."""
    can: Callable[[Form, str, int, int], bool] | None
    can = getattr(implementation(backend), "can_be_at_once", None)
    # The gradients of two losses would have to be held apart; and with several processes a
    # softmax's statistics are known after the sweep.
    if can is None or not any(needs) or (form.logits and form.soft):
        return False
    if sizes is not None and (form.softmax or form.kl):
        return False
    return can(form, images.device.type, images.shape[0], texts.shape[0])


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
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def vectors(height: int, directions: int, direction: int, length: int) -> Tensor:
        return scale.new_empty(height, length if directions & direction else 0)

    shape, r, n = _form(form), images.shape[0], texts.shape[0]
    return (
        scale.new_empty(2),
        vectors(4, shape.softmax, ROWS, r),
        vectors(4, shape.softmax, COLUMNS, n),
        vectors(5, shape.kl, ROWS, r),
        vectors(5, shape.kl, COLUMNS, n),
        *_fake_gradients(shape, backend, images, texts, scale, sizes, needs),
    )


def _fake_gradients(
    form: Form,
    backend: str,
    images: Tensor,
    texts: Tensor,
    scale: Tensor,
    sizes: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    at_once = _at_once(form, backend, images, texts, sizes, needs)
    made = [
        scale.new_empty(x.shape if at_once and needed else (0,))
        for x, needed in ((images, needs[0]), (texts, needs[1]))
    ]
    numbers = scale.new_empty(3 if at_once else 0)
    return made[0], made[1], numbers.to(wide_dtype(scale))


def run_backward(
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
    at_once: bool,
    need_images: bool,
    need_texts: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of images, texts, scale and bias; empty ones where none is needed.

    at_once: whether the statistics end with gradients, which only have to be scaled.
    """
    upstream = _upstream(dlosses, sizes, reduction)
    shape = _form(form)
    softmax_rows, softmax_columns, kl_rows, kl_columns, drows, dcolumns, numbers = statistics
    if at_once:
        factor = upstream.rows[int(shape.soft), 0] * numbers[2]
        dimages, dtexts, numbers = (x * factor.to(x.dtype) for x in (drows, dcolumns, numbers[:2]))
    else:
        share = exchange.share(sizes, len(images))
        targets = (row_targets, column_targets, table)
        o = operands(images, texts, scale, bias, keys, share, targets, temperature)
        absent = scale.new_zeros(0)  # nothing of these two is needed any more
        s = Statistics(softmax_rows, softmax_columns, kl_rows, kl_columns, absent, absent)
        counts = _counts(keys, share)
        k = coefficients(shape, s, Weights(*weights), temperature, upstream, counts, share)
        rows, columns, *each = implementation(backend).backward(
            shape, o, k, need_images, need_texts, need_scale and shape.logits
        )
        dimages = absent if rows is None else rows
        dtexts = absent.clone() if columns is None else columns
        numbers = torch.stack(_summed(each, scale))
    if sizes is not None and need_scale and shape.logits:
        dist.all_reduce(numbers)
        if reduction != OWN:
            numbers = numbers / len(sizes)
    dscale, dbias = (x.to(scale.dtype, copy=True) for x in numbers)
    return (
        dimages.to(images.dtype) if need_images else images.new_empty(0),
        dtexts.to(texts.dtype) if need_texts else texts.new_empty(0),
        dscale,
        dbias,
    )


contrastive_backward = torch.library.custom_op("fastht::contrastive_backward", mutates_args=())(
    run_backward
)


def _upstream(dlosses: Tensor, sizes: Tensor | None, reduction: int) -> Upstream:
    """Return what own rows and all columns count, from what all processes were given."""
    own = dlosses.detach().to(wide_dtype(dlosses))
    if sizes is None:
        every = own[:, None]
        return Upstream(every, every)
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
    at_once: bool,
    need_images: bool,
    need_texts: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        images.new_empty(images.shape if need_images else (0,)),
        texts.new_empty(texts.shape if need_texts else (0,)),
        torch.empty_like(scale),
        torch.empty_like(scale),
    )


def keep(ctx: Any, inputs: tuple[Any, ...], statistics: Sequence[Tensor]) -> None:
    """Keep what :func:`gradients` needs."""
    images, texts, scale, bias, keys, sizes, rows, columns, table, *options = inputs
    form, *_, backend, needs = options
    ctx.at_once = _at_once(_form(form), backend, images, texts, sizes, needs)
    if ctx.at_once:  # the gradients are made
        keys, rows, columns, table = None, [], [], []
    ctx.save_for_backward(
        images, texts, scale, bias, keys, sizes, *rows, *columns, *table, *statistics
    )
    ctx.lengths = len(rows), len(columns), len(table)
    ctx.options = options


def gradients(ctx: Any, dlosses: Tensor) -> list[Tensor | None]:
    """Return the gradients of images, texts, scale and bias, as far as they are needed."""
    images, texts, scale, bias, keys, sizes, *rest = ctx.saved_tensors
    lists = []
    for length in ctx.lengths:
        lists.append(rest[:length])
        rest = rest[length:]
    need_images, need_texts, need_scale, need_bias = ctx.needs_input_grad[:4]
    backward: Any = torch.ops.fastht.contrastive_backward
    if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
        given = [x for x in (dlosses, *ctx.saved_tensors) if x is not None]
        if not torch._C._functorch.is_legacy_batchedtensor(dlosses) and nobody_between(given):
            backward = run_backward
    found = backward(
        dlosses, images, texts, scale, bias, keys, sizes, *lists, rest, *ctx.options[:-1],
        ctx.at_once, need_images, need_texts, need_scale or need_bias,
    )  # fmt: skip
    return [x if need else None for x, need in zip(found, ctx.needs_input_grad[:4], strict=True)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.given = [len(x) for x in inputs[6:9]]
    keep(ctx, inputs, statistics)


def _gradients(ctx: Any, dlosses: Tensor, *_: Any) -> tuple[Any, ...]:
    lists = ([None] * n for n in ctx.given)
    return *gradients(ctx, dlosses), None, None, *lists, *(None for _ in ctx.options)


contrastive.register_autograd(_gradients, setup_context=_keep)


def _no_second_derivative(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the losses without a B x B matrix have no second derivative; "
        'use backend="reference" where gradients of gradients are needed'
    )


contrastive_backward.register_autograd(_no_second_derivative)
