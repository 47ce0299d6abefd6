"""The state of a training run on disk: enough to go on with the same bits."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastht.files import write_atomically

STATE_VERSION = 2


class ResumeError(RuntimeError):
    """A run cannot be resumed; the message says why and what to do."""


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: batches of it that are done.
        step: optimizer steps done in all.
        loss_sum: sum of the losses of this epoch's batches.
        history: one row of named numbers for each finished epoch.
        best: the best monitored value so far; ``None`` before the first finite one.
        best_epoch: the epoch that it is of.
        bad_epochs: epochs since then.
        finished: whether the run has come to its end.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    best_epoch: int | None = None
    bad_epochs: int = 0
    finished: bool = False


def rng_state() -> dict[str, Any]:
    """Return the states of this process's random number generators as plain types."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put this process's random number generators where :func:`rng_state` found them."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def save_state(path: Path, content: dict[str, Any]) -> None:
    """Write a run's state in one step; ``content`` holds tensors and plain types only."""
    buffer = io.BytesIO()
    torch.save({"version": STATE_VERSION} | content, buffer)
    write_atomically(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read a run's state.

    Raises:
        ResumeError: the file is not there, damaged, or of another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ResumeError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("version") != STATE_VERSION:
        raise ResumeError(f"{path} is not a run state of this version of fastht")
    return content


def trainable_state(module: torch.nn.Module, without: Collection[str] = ()) -> dict[str, Tensor]:
    """Return copies of what training changes: trainable parameters and buffers, by name.

    Buffers are running statistics above all; those of frozen parts come along.

    Args:
        module: that trains.
        without: names that are left out.
    """
    return {name: tensor.cpu().clone() for name, tensor in _changing(module, without).items()}


def check_trainable_state(
    module: torch.nn.Module, state: dict[str, Tensor], without: Collection[str] = ()
) -> None:
    """Check that :func:`trainable_state` returned a state of a module that is built alike.

    Raises:
        ResumeError: the names or shapes are not those of the module.
    """
    targets = _changing(module, without)
    if targets.keys() != state.keys():
        different = sorted(targets.keys() ^ state.keys())[:3]
        raise ResumeError(f"the saved run trains other parameters: {', '.join(different)}, ...")
    for name, tensor in targets.items():
        if tensor.shape != state[name].shape:
            raise ResumeError(f"the saved run has another shape for {name}")


def load_trainable_state(
    module: torch.nn.Module, state: dict[str, Tensor], without: Collection[str] = ()
) -> None:
    """Put back what :func:`trainable_state` returned; all or nothing.

    Raises:
        ResumeError: as :func:`check_trainable_state`.
    """
    check_trainable_state(module, state, without)
    targets = _changing(module, without)
    with torch.no_grad():
        for name, tensor in targets.items():
            tensor.copy_(state[name])


def _changing(module: torch.nn.Module, without: Collection[str]) -> dict[str, Tensor]:
    """Return what training changes, sharing its memory."""
    frozen = {
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    left_out = frozen.union(without)
    return {name: t.detach() for name, t in module.state_dict().items() if name not in left_out}
