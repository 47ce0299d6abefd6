"""Telling, at the first training step, of adapters that do not learn."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import Tensor, nn


class FirstStep:
    """Watch the first backward pass of a patched model, and warn of adapters that it leaves out.

    What the loss reads need not come through every block: some models take an earlier block's
    output. And a tool may have frozen the adapters after ``fastht.patch``.
    """

    def __init__(self) -> None:
        self.done = False
        self._watched: set[int] = set()
        self._reached: set[int] = set()

    def see(self, index: int, adapter: nn.Module, output: Any) -> None:
        """Take note of an adapter's output in training."""
        if not any(p.requires_grad for p in adapter.parameters()):
            if "peft" in sys.modules:
                self.done = True
                warnings.warn(
                    "the HT adapters run in training and all of their parameters are frozen: "
                    "peft's get_peft_model freezes what stands in a model before it. To train "
                    "both, call requires_grad_(True) on fastht.adapter_parameters(model)",
                    stacklevel=2,
                )
            return
        if isinstance(output, Tensor) and output.requires_grad:
            self._watched.add(index)
            output.register_hook(lambda _: self._reach(index))

    def _reach(self, index: int) -> None:
        if self.done:
            return
        if not self._reached:
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(self._finish)
        self._reached.add(index)

    def _finish(self) -> None:
        if self.done:
            return
        self.done = True
        unreached = sorted(self._watched - self._reached)
        if unreached:
            warnings.warn(
                f"the HT adapters of blocks {unreached} got no gradient in the first backward "
                "pass: what the loss is computed of does not come through these blocks. Leave "
                f"them out by HTConfig(layers=...); {sorted(self._reached)} are reached",
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, bool]:
        return {"done": self.done}

    def __setstate__(self, state: dict[str, bool]) -> None:
        self.__init__()  # type: ignore[misc]
        self.done = state["done"]
