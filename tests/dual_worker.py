"""What each process of a test of dual encoders does: ``main``."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastht import cli
from fastht.tasks.image_text import contrastive_module
from fastht.tasks.image_text.contrastive_module import ContrastiveModule
from fastht.tasks.training.trainer import Trainer


def main(command: Sequence[str], seen: str, stop: int | None = None, whole: bool = True) -> int:
    """Train, and write which samples were in each batch of this process.

    Args:
        command: of ``fastht``.
        seen: folder for a file of each process.
        stop: the step before which the training is interrupted; default: none.
        whole: whether the gradient reaches what other processes embed, as it has to.
    """
    batches: list[list[int]] = []

    def forward(
        self: ContrastiveModule, batch: dict[str, Any], call: Any = ContrastiveModule.forward
    ) -> Any:
        batches.append(batch["index"].tolist())
        return call(self, batch)

    def interrupt(self: Trainer, batch: Any, call: Any = Trainer._batch) -> float:
        if self.progress.step == stop:
            raise KeyboardInterrupt
        value: float = call(self, batch)
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveModule, "forward", forward)
        patch.setattr(Trainer, "_batch", interrupt)
        if not whole:
            loss = contrastive_module.ClipLoss
            patch.setattr(
                contrastive_module,
                "ClipLoss",
                lambda **options: loss(**options | {"gather_with_grad": False}),
            )
        try:
            status = cli.main(command)
        except KeyboardInterrupt:
            status = 130
    path = Path(seen) / f"{os.environ.get('RANK', 'alone')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(batches))
    return 0 if (status != 0) == (stop is not None) else 1
