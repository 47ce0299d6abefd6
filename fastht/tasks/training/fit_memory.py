"""Fit a training into memory: what is computed again, and the batch where a budget is to choose it.

The batch size is part of what is learnt (of the contrastive loss it is the contrast, of every loss
it goes with the learning rate), and what is computed again is not: gradients are the same to the
bit. So a budget alone changes the second, and ``largest_batch`` asks for the first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import default_collate

from fastht.backbones import UnsupportedModelError, find_backbone
from fastht.budget import BudgetError, Choice, choose, count_costs, held_bytes
from fastht.patch import set_recompute
from fastht.saved_bytes import saved_bytes
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import (
    load_trainable_state,
    rng_state,
    set_rng_state,
    trainable_state,
)
from fastht.tasks.training.trainer import Task


def fit_memory(
    accelerator: Accelerator,
    config: TrainerConfig,
    task: Task,
    tower: nn.Module | None,
    *,
    kept: Mapping[str, Any] | None = None,
    beside: Iterable[Tensor] = (),
) -> tuple[TrainerConfig, Choice | None]:
    """Make a task's step fit the budget; without one it computes again what the config says.

    The step is counted on the task's own first samples. Weights, running statistics and random
    numbers are afterwards as they were.

    Args:
        accelerator: the processes, each of which has the budget, and the precision.
        config: how to train.
        task: what to train; before :class:`Trainer` has prepared it.
        tower: what was patched or given LoRA, whose blocks can compute again; ``None``: nothing.
        kept: the choice of the run that is resumed, in place of a new one.
        beside: tensors that stay on the device and are no parameters.

    Returns:
        The config with the batch size that was chosen, and the choice.

    Raises:
        BudgetError: nothing fits; the tower computes nothing again then.
        ValueError: the model cannot compute again what the config says.
    """
    if config.memory_budget is None:
        if config.recompute != "none":
            if tower is None:
                raise ValueError(
                    f"--recompute {config.recompute}: this model has no vision transformer of "
                    "fastht's; leave it out"
                )
            set_recompute(tower, config.recompute)
        return config, None
    processes = accelerator.num_processes
    blocks: tuple[nn.Module, ...] = ()
    if tower is not None:
        try:
            blocks = find_backbone(tower).blocks
        except UnsupportedModelError:
            tower = None
    if kept is not None:
        choice = Choice.from_plain(kept)
    else:
        counter = _Counter(accelerator, task, list(beside))
        try:
            costs = count_costs(blocks, counter.kept, held_bytes(task.module, counter.beside))
        finally:
            counter.restore()
        samples = len(task.train_data)  # type: ignore[arg-type]
        error: BudgetError | None = None
        found: list[Choice | None] = [None]
        try:
            found[0] = choose(
                costs,
                config.memory_budget,
                batch=None if config.largest_batch else max(1, config.batch_size // processes),
                limit=max(1, samples // processes),
            )
        except BudgetError as raised:
            error = raised
        # Towers are alike in all processes; backends may not be. The first one decides for all.
        chosen = broadcast_object_list(found)[0]
        if chosen is None:
            raise error or BudgetError("the main process found nothing that fits the budget")
        choice = chosen
    if tower is not None:
        set_recompute(tower, choice.recompute)
    return replace(config, batch_size=choice.batch * processes), choice


class _Counter:
    """What autograd keeps of a task's loss on its first samples."""

    def __init__(self, accelerator: Accelerator, task: Task, beside: list[Tensor]) -> None:
        self.accelerator, self.task, self.beside = accelerator, task, beside
        self._random = rng_state()
        self._state = trainable_state(task.module)
        self._training = task.module.training
        task.module.train()

    def kept(self, batch: int) -> int:
        data = self.task.train_data
        count = len(data)  # type: ignore[arg-type]
        collated: dict[str, Any] = default_collate([data[i % count] for i in range(batch)])
        device = self.accelerator.device
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in collated.items()}
        tensors = [v for v in moved.values() if isinstance(v, Tensor)]
        module = self.task.module

        def loss() -> Any:
            with self.accelerator.autocast():
                return module(moved)

        alive = [*module.parameters(), *module.buffers(), *self.beside, *tensors]
        return saved_bytes(loss, alive) + sum(v.nbytes for v in tensors)

    def restore(self) -> None:
        load_trainable_state(self.task.module, self._state)
        self.task.module.train(self._training)
        set_rng_state(self._random)


def kept_choice(file: Path, resume: bool) -> Mapping[str, Any] | None:
    """Return the choice in the file of a run's arguments, if the run is resumed and made one."""
    if not resume:
        return None
    try:
        found: Mapping[str, Any] | None = json.loads(file.read_text(encoding="utf-8")).get("memory")
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with the folder is told when it is resumed
    return found


def memory_record(config: TrainerConfig, choice: Choice | None) -> dict[str, Any]:
    """Return what a run's arguments and results tell of what is computed again, as plain JSON."""
    if choice is not None:
        return {"memory": choice.plain()}
    return {} if config.recompute == "none" else {"recompute": config.recompute}
