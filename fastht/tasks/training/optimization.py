"""How parameters are optimised: in groups, and by a learning rate that rises and falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are optimised alike.

    Attributes:
        parameters: the parameters.
        lr_scale: their learning rate relative to that of the run.
        decays: whether weight decay acts on them.
    """

    parameters: Sequence[nn.Parameter]
    lr_scale: float = 1.0
    decays: bool = True


def optimizer_groups(
    parameters: Sequence[nn.Parameter],
    groups: Sequence[ParameterGroup],
    lr: float,
    weight_decay: float,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups of all parameters.

    Args:
        parameters: all that train; those that no group has come first, in a group as the run says.
        groups: of some of them.
        lr: of the run.
        weight_decay: of the run.
    """
    grouped = {id(p) for group in groups for p in group.parameters}
    rest = ParameterGroup([p for p in parameters if id(p) not in grouped])
    return [
        {
            "params": list(group.parameters),
            "lr": lr * group.lr_scale,
            "weight_decay": weight_decay if group.decays else 0.0,
        }
        for group in (rest, *groups)
        if group.parameters
    ]


def warmup_steps(
    steps: int, epochs: int, asked_steps: int | None, asked_epochs: float | None, share: float
) -> int:
    """Return the optimizer steps of a warm-up.

    Args:
        steps: of the whole run.
        epochs: of the whole run.
        asked_steps: what is asked for, in steps.
        asked_epochs: likewise, in epochs.
        share: of the run that warms up where nothing is asked for.

    Raises:
        ValueError: what is asked for takes the whole run.
    """
    if asked_steps is None and asked_epochs is None:
        return min(math.ceil(share * steps), steps - 1)
    found = round((asked_epochs or 0) * steps / epochs) if asked_steps is None else asked_steps
    if found and found >= steps:
        raise ValueError(
            f"the warm-up is {found} steps and the run {steps}: shorten it, or train longer"
        )
    return found


def make_schedule(
    optimizer: Optimizer, lr: float, lr_min: float, steps: int, warmup: int, held: int = 1
) -> LRScheduler:
    """Return a cosine from the learning rate to the least one, after a line from 0.

    Args:
        optimizer: whose groups have learning rates.
        lr: of the run.
        lr_min: of the run at its end; with a warm-up, groups end at the same share of theirs.
        steps: of the run.
        warmup: steps of the line; 0: none.
        held: steps after which the cosine falls: those of an epoch, or each one.
    """
    if not warmup and held == 1:
        return CosineAnnealingLR(optimizer, T_max=steps, eta_min=lr_min)
    least = lr_min / lr if lr else 0.0

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        fallen = max(step - step % held, warmup)
        done = min((fallen - warmup) / (steps - warmup), 1.0)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2

    return LambdaLR(optimizer, factor)
