"""How a training runs: its epochs, steps, rates and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastht.budget import check_budget


@dataclass(frozen=True)
class TrainerConfig:
    """How to train; the defaults are the paper's (arXiv 2506.08849, section IV).

    Attributes:
        epochs: passes over the training data.
        batch_size: samples a step, over all processes together.
        accumulate: batches whose gradients make one optimizer step. Each batch is contrasted
            within itself.
        lr: learning rate at the start.
        lr_min: learning rate at the end of the cosine.
        weight_decay: of AdamW.
        beta1: of AdamW.
        beta2: of AdamW.
        clip_grad_norm: largest norm of the gradient; 0 does not clip.
        precision: of the forward pass; parameters and optimizer stay in float32.
        patience: epochs without improvement after which training stops; 0 never stops.
        seed: of the split, the order and the dropout.
        workers: processes that load images, for each training process.
        checkpoint_steps: batches between two states for --resume; 0 writes one an epoch.
        recompute: what the backward pass computes again instead of keeping it: none, mlp or block,
            or in six blocks alone mlp:6, block:6 (see fastht.patch). It changes no result.
        memory_budget: MiB that a step may hold in each process (counted, working memory of single
            operations apart); it chooses what is computed again, in place of --recompute.
        largest_batch: take the largest batch that fits --memory-budget in place of --batch-size.
            It changes what is learnt: of the contrastive loss the batch is the contrast.
        warmup_steps: optimizer steps in which the learning rate rises from 0 on a line; default: 0,
            or a twentieth of the run where whole towers train.
        warmup_epochs: the same in epochs, which need not be whole.
        lr_schedule: the cosine falls at each of the steps, or between epochs alone.
    """

    epochs: int = 32
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 1e-4
    lr_min: float = 1e-8
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip_grad_norm: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    patience: int = 10
    seed: int = 0
    workers: int = 2
    checkpoint_steps: int = 0
    recompute: str = "none"
    memory_budget: float | None = None
    largest_batch: bool = False
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    lr_schedule: Literal["steps", "epochs"] = "steps"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "lr_min", "weight_decay", "clip_grad_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")
        for name in ("patience", "workers", "checkpoint_steps", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        check_budget(self.memory_budget, self.recompute)
        if self.largest_batch and self.memory_budget is None:
            raise ValueError("largest_batch needs a budget: give --memory-budget too")
        if self.warmup_steps is not None and self.warmup_epochs is not None:
            raise ValueError("--warmup-steps and --warmup-epochs are both given; leave out one")
        for name in ("warmup_steps", "warmup_epochs"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")
