"""Between processes: sizes of batches, features of texts, statistics of columns.

A process owns its images and compares them with the texts of all, so that every pair is computed
once. Each exchange is an operator of its own, or inside of one, so that graphs can hold it, and
what goes wrong in one process is told to all before any of them waits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastht.losses.sweeps import Statistics
from fastht.losses.terms import Share, wide_dtype


def check_processes(rank: int, world_size: int) -> None:
    """Raise where ``rank`` and ``world_size`` are not those of torch.distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            f"world_size is {world_size}, but torch.distributed is not initialised: call "
            "init_process_group first, or leave world_size at 1"
        )
    if (rank, world_size) != (dist.get_rank(), dist.get_world_size()):
        raise ValueError(
            f"rank and world_size are {rank} and {world_size}, and torch.distributed says "
            f"{dist.get_rank()} and {dist.get_world_size()}"
        )


def share(sizes: Tensor | None, rows: int) -> Share:
    """Return which part of the whole batch this process has, from the sizes of all."""
    if sizes is None:
        return Share(rows, 0, rows)
    numbers = sizes.tolist()
    return Share(sum(numbers), sum(numbers[: dist.get_rank()]), rows, len(numbers))


@torch.library.custom_op("fastht::batch_sizes", mutates_args=())
def batch_sizes(images: Tensor, description: list[int]) -> Tensor:
    """Return how many images each process has, ``[W]`` int64 on the CPU.

    ``description`` is whether this process found a problem, and what else has to be the same in all
    processes, by number. A process with a problem raises it itself, after this.
    """
    own = torch.tensor([len(images), *description], dtype=torch.int64, device=images.device)
    every = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(every, own)
    every = every.view(-1, len(own)).cpu()
    if description[0]:
        return every[:, 0].contiguous()
    if bool(every[:, 1].any()):
        wrong = every[:, 1].nonzero().flatten().tolist()
        raise ValueError(f"processes {wrong} have batches without a loss; see their errors")
    if not bool((every[:, 1:] == every[0, 1:]).all()):
        raise ValueError(
            "processes call the loss with features of different width or dtype, or some with keys "
            f"or targets and some without (by process: {every[:, 2:].tolist()})"
        )
    return every[:, 0].contiguous()


@batch_sizes.register_fake
def _(images: Tensor, description: list[int]) -> Tensor:
    return torch.empty(dist.get_world_size(), dtype=torch.int64)


@torch.library.custom_op("fastht::gather_rows", mutates_args=())
def gather_rows(x: Tensor, sizes: Tensor) -> Tensor:
    """Return the rows of all processes, ``[N, ...]``; gradients come back as their sums."""
    numbers = sizes.tolist()
    largest = max(numbers)
    padded = x.new_zeros(largest, *x.shape[1:])
    padded[: len(x)] = x
    every = x.new_empty(len(numbers) * largest, *x.shape[1:])
    dist.all_gather_into_tensor(every, padded)
    if min(numbers) == largest:
        return every
    parts = every.split(largest)
    return torch.cat([part[:n] for part, n in zip(parts, numbers, strict=True)])


@gather_rows.register_fake
def _(x: Tensor, sizes: Tensor) -> Tensor:
    total = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(total, *x.shape[1:])


@torch.library.custom_op("fastht::scatter_rows", mutates_args=())
def scatter_rows(x: Tensor, sizes: Tensor, own: int) -> Tensor:
    """Return the sum over processes of this process's rows, ``[own, ...]``."""
    numbers = sizes.tolist()
    largest = max(numbers)
    if min(numbers) != largest:
        padded = x.new_zeros(len(numbers), largest, *x.shape[1:])
        for place, part in zip(padded, x.split(numbers), strict=True):
            place[: len(part)] = part
        x = padded.flatten(0, 1)
    out = x.new_empty(largest, *x.shape[1:])
    dist.reduce_scatter_tensor(out, x.contiguous())
    return out[:own].contiguous() if own != largest else out


@scatter_rows.register_fake
def _(x: Tensor, sizes: Tensor, own: int) -> Tensor:
    return x.new_empty(own, *x.shape[1:])


def _keep_sizes(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, sizes = inputs
    ctx.save_for_backward(sizes)
    ctx.own = len(x)


def _scatter(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return torch.ops.fastht.scatter_rows(gradient, ctx.saved_tensors[0], ctx.own), None


gather_rows.register_autograd(_scatter, setup_context=_keep_sizes)


def reduce_columns(statistics: Statistics) -> Statistics:
    """Return statistics whose columns have been reduced over all processes.

    Sums and gaps are added up in float64 (where the device has it): divergences are differences of
    what they give.
    """
    softmax, kl = statistics.softmax_columns, statistics.kl_columns
    if softmax.numel() == 0 and kl.numel() == 0:
        return statistics
    shifts = torch.cat([softmax[0], kl[0], kl[2]])
    largest = shifts.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    wide = wide_dtype(shifts)
    moves = shifts.to(wide) - largest.to(wide)
    sizes = [softmax.shape[1], kl.shape[1], kl.shape[1]]
    _, by_logits, by_targets = moves.split(sizes)
    first, logit, target = moves.exp().split(sizes)
    _, own_logits, _, own_targets, divergence = kl.to(wide)
    gap = divergence - (own_logits / own_targets).log() + (by_targets - by_logits)
    weight = own_targets * target
    sums = torch.cat(
        [softmax[1] * first, softmax[2] * first, softmax[3].to(wide), own_logits * logit, weight,
         weight * gap]
    )  # fmt: skip
    dist.all_reduce(sums)
    others, own, dot, logit_sum, target_sum, gap = sums.split(sizes[:1] * 3 + sizes[1:2] * 3)
    divergence = gap / target_sum + (logit_sum / target_sum).log()
    first, logit, target = largest.split(sizes)
    dtype = shifts.dtype
    return statistics._replace(
        softmax_columns=torch.stack([first, others.to(dtype), own.to(dtype), dot.to(dtype)]),
        kl_columns=torch.stack(
            [logit, logit_sum.to(dtype), target, target_sum.to(dtype), divergence.to(dtype)]
        ),
    )
