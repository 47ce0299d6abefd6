"""Groups of parameters and the learning rate's course, against formulas written out."""

import math

import pytest
import torch
from torch import nn

from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.optimization import (
    ParameterGroup,
    make_schedule,
    optimizer_groups,
    warmup_steps,
)


def rates(warmup, steps=20, lr=0.4, lr_min=0.02, scale=0.1):
    groups = [ParameterGroup([nn.Parameter(torch.ones(2))], s) for s in (1.0, scale)]
    every = [p for group in groups for p in group.parameters]
    optimizer = torch.optim.SGD(optimizer_groups(every, groups, lr, 0.0))
    schedule = make_schedule(optimizer, lr, lr_min, steps, warmup)
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return found, schedule.get_last_lr()


def test_the_rate_rises_on_a_line_and_falls_on_a_cosine_for_each_group():
    found, last = rates(warmup=4)
    rest = [row[0] for row in found]
    assert rest[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    middle = 0.02 + 0.38 * (1 + math.cos(math.pi * 8 / 16)) / 2
    assert rest[12] == pytest.approx(middle)
    assert [row[1] / row[0] for row in found] == pytest.approx([0.1] * 20)
    assert last == pytest.approx([0.02, 0.002])
    # A control: without a warm-up it starts at the top.
    assert rates(warmup=0)[0][0] == pytest.approx([0.4, 0.04])


def test_groups_partition_what_trains():
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    found = optimizer_groups([a, b, c], [ParameterGroup([b], 0.1, decays=False)], 1e-2, 0.3)
    assert [[id(p) for p in group["params"]] for group in found] == [[id(a), id(c)], [id(b)]]
    assert [group["lr"] for group in found] == pytest.approx([1e-2, 1e-3])
    assert [group["weight_decay"] for group in found] == [0.3, 0.0]
    assert len(optimizer_groups([b], [ParameterGroup([b])], 1e-2, 0.3)) == 1


def test_a_warm_up_is_in_steps_or_epochs_or_a_share():
    assert warmup_steps(100, 10, None, None, 0.05) == 5
    assert warmup_steps(100, 10, None, None, 0.0) == 0
    assert warmup_steps(1, 1, None, None, 0.05) == 0
    assert warmup_steps(100, 10, 7, None, 0.05) == 7
    assert warmup_steps(100, 10, 0, None, 0.05) == 0
    assert warmup_steps(100, 10, None, 1.5, 0.05) == 15
    with pytest.raises(ValueError, match="the warm-up is 100 steps and the run 100"):
        warmup_steps(100, 10, None, 10, 0.05)
    with pytest.raises(ValueError, match="--warmup-steps and --warmup-epochs are both given"):
        TrainerConfig(warmup_steps=1, warmup_epochs=1.0)
    with pytest.raises(ValueError, match="warmup_epochs is nan"):
        TrainerConfig(warmup_epochs=math.nan)
