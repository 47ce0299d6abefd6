"""What one process of a memory budget's test does: ``python budget_worker.py FOLDER RANK``.

Both processes count the same step, but the second one holds more beside it, as another backend or
device might. Each leaves what it found as JSON; tests/tasks/training/test_fit_memory.py compares.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from vits import VITS, loss, timm_vit

import fastht
from fastht.budget import MIB, BudgetError
from fastht.patch import patch_record
from fastht.tasks.training import fit_memory as module
from fastht.tasks.training.config import TrainerConfig

WORLD_SIZE = 2


class Step(nn.Module):
    """The loss of a patched tower on a batch of images."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return loss(self.tower(batch["image"]))


def main(folder: str, rank: str) -> None:
    count = str(WORLD_SIZE)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=WORLD_SIZE)
    accelerator = Accelerator(cpu=True)
    assert (accelerator.num_processes, accelerator.process_index) == (WORLD_SIZE, int(rank))
    # Of several blocks one is rebuilt at a time, and the rest is what computing again saves.
    vit = timm_vit("vit_small_patch14_reg4_dinov2", depth=5)
    tower = fastht.patch(vit, fastht.HTConfig(dropout=0.0))
    data = [{"image": image} for image in VITS["registers"].image(batch=12)]
    task: Any = SimpleNamespace(module=Step(tower), train_data=data)
    config = TrainerConfig(batch_size=8, memory_budget=1e6)

    def fit(beside: int = 0, **options: Any) -> dict[str, Any]:
        held = [torch.empty(beside, dtype=torch.uint8)]
        chosen = dataclasses.replace(config, **options)
        try:
            made, choice = module.fit_memory(accelerator, chosen, task, tower, beside=held)
        except BudgetError as error:
            return {"error": str(error)}
        assert choice is not None
        return choice.plain() | {
            "batch_size": made.batch_size,
            "set": patch_record(tower).recompute,  # type: ignore[union-attr]
        }

    free = fit()
    more = int(rank) * (free["counted"]["none"] - free["counted"]["block"]) // 2
    budget = (free["counted"]["none"] + 1) / MIB
    found = {
        "free": free,
        "tight": fit(more, memory_budget=budget),
        "largest": fit(more, memory_budget=1e6, largest_batch=True),
        "nothing": fit(more, memory_budget=0.001),
    }
    # The control: what a process would choose that nobody tells.
    broadcast, module.broadcast_object_list = module.broadcast_object_list, lambda held: held
    found["alone"] = fit(more, memory_budget=budget)
    module.broadcast_object_list = broadcast
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
