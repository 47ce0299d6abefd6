"""The one training loop that every task shares, on top of accelerate."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fastht.files import write_atomically
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.optimization import (
    ParameterGroup,
    make_schedule,
    optimizer_groups,
    warmup_steps,
)
from fastht.tasks.training.progress import ProgressBar
from fastht.tasks.training.sampler import Alike, GlobalBatchSampler
from fastht.tasks.training.state import (
    Progress,
    ResumeError,
    check_trainable_state,
    load_state,
    load_trainable_state,
    rng_state,
    save_state,
    set_rng_state,
    trainable_state,
)

STATE_NAME = "state.pt"
HISTORY_NAME = "history.csv"

# What accelerate's configurations set for other ways than data parallelism.
_UNKNOWN_PLUGINS = (
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
_YES = ("1", "true", "yes", "y", "on", "t")


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became NaN or infinite; the message names the batch's files."""


class Task(Protocol):
    """What the trainer needs to know of a task.

    Attributes:
        module: called with a batch of ``train_data`` it returns the loss, a scalar tensor. Its
            trainable parameters are what is trained.
        train_data: the training samples; a batch is what the loader's default collation makes.
        monitor: the key of :meth:`evaluate`'s result by which the best epoch is chosen.
        larger_is_better: the direction of ``monitor``.
    """

    train_data: Dataset[Any]
    monitor: str
    larger_is_better: bool

    @property
    def module(self) -> nn.Module:
        """The module described above."""

    def evaluate(self) -> dict[str, float]:
        """Measure the module as it is on held-out data; every process calls it."""

    def save_best(self) -> None:
        """Keep the module as it is as the best so far; the main process calls it."""

    def files(self, batch: Any) -> list[str]:
        """Name the files that a batch was read from."""


class Trainer:
    """Train a :class:`Task`, keeping enough on disk to resume to the same bits.

    Args:
        accelerator: made by the caller with ``config.precision``.
        config: how to train.
        task: what to train.
        out: folder of the run, shared by all processes.
        signature: what a resumed run must have been started with, as plain JSON types.
        resume: go on from the folder's last state instead of starting.
        watch: called with each epoch's row of the history, those before a resumption too; what it
            returns is told at once.
        groups: how the trainable parameters of the module are optimised; those that no group has
            are optimised as the run says. Default: all are.
        warmup_share: of the run's steps, where the configuration says nothing of a warm-up.
        alike: samples that are spread over the batches; see :class:`GlobalBatchSampler`.

    Raises:
        ResumeError: the folder holds a run already, or none that can be resumed.
        ValueError: the batch size does not fit the data or the processes, or the warm-up the run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrainerConfig,
        task: Task,
        out: Path,
        signature: dict[str, Any],
        resume: bool = False,
        watch: Callable[[Mapping[str, float]], str | None] | None = None,
        groups: Sequence[ParameterGroup] = (),
        warmup_share: float = 0.0,
        alike: Alike | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.config = config
        self.task = task
        self.out = out
        self.signature = signature
        self.watch = watch
        self.progress = Progress()
        self.sampler = GlobalBatchSampler(
            len(task.train_data),  # type: ignore[arg-type]
            config.batch_size,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            alike,
        )
        parameters = [p for p in task.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            optimizer_groups(parameters, groups, config.lr, config.weight_decay),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )
        of_epoch = math.ceil(len(self.sampler) / config.accumulate)
        steps = config.epochs * of_epoch
        warmup = warmup_steps(
            steps, config.epochs, config.warmup_steps, config.warmup_epochs, warmup_share
        )
        held = of_epoch if config.lr_schedule == "epochs" else 1
        self.scheduler = make_schedule(optimizer, config.lr, config.lr_min, steps, warmup, held)
        self.module, self.optimizer = accelerator.prepare(task.module, optimizer)
        self.parameters = parameters
        self._resume = resume
        if resume:
            # What is wrong with the state is told before anything is done.
            self.progress = Progress(**self._read_state()["progress"])

    def fit(self) -> Progress:
        """Train to the end, or until the monitored value stops improving.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite. Nothing of that batch has
                reached the weights, and the last state on disk is of before it.
            ResumeError: the state that the run goes on from is not of this module.
        """
        if self._resume:
            # Not before: until training begins, the module is as it was before any.
            self._restore()
            self._resume = False
        main = self.accelerator.is_main_process
        loader = make_loader(
            self.task.train_data,
            workers=self.config.workers,
            batch_sampler=self.sampler,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        with contextlib.ExitStack() as stack:
            writer = None
            if main:
                # Events after the state that a run resumes from would otherwise stand twice.
                writer = SummaryWriter(
                    str(self.out / "tensorboard"), purge_step=self.progress.step + 1
                )
                stack.callback(writer.close)
            while not self.progress.finished:
                self._epoch(loader, writer)
        return self.progress

    def _epoch(self, loader: DataLoader[Any], writer: SummaryWriter | None) -> None:
        progress, config = self.progress, self.config
        started = time.monotonic()
        _set_training(self.module)
        self.sampler.set_position(progress.epoch, progress.batch)
        for part in (self.task, self.task.train_data):
            if hasattr(part, "set_epoch"):  # what it learns from differs by epoch
                part.set_epoch(progress.epoch)
        bar = ProgressBar(
            read_batches(loader),
            total=len(self.sampler),
            title=f"epoch {progress.epoch + 1}/{config.epochs}",
            initial=progress.batch,
            shown=self.accelerator.is_main_process,
        )
        for batch in bar:
            loss = self._batch(_to_device(batch, self.accelerator.device))
            progress.loss_sum += loss
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if writer is not None:
                writer.add_scalar("train/loss", loss, progress.step)
                writer.add_scalar("train/lr", self.scheduler.get_last_lr()[0], progress.step)
            boundary = progress.batch % config.accumulate == 0
            due = config.checkpoint_steps and progress.batch % config.checkpoint_steps == 0
            if due and boundary and progress.batch < len(self.sampler):
                self._save()
        self._finish_epoch(writer, time.monotonic() - started)

    def _batch(self, batch: Any) -> float:
        """Run one batch forward and backward, and the optimizer where a step is complete."""
        progress, config = self.progress, self.config
        first = progress.batch - progress.batch % config.accumulate
        group = min(config.accumulate, len(self.sampler) - first)
        last = progress.batch == first + group - 1
        context = contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)
        with context:
            loss = self.module(batch)
            value = loss.item()
            if not math.isfinite(value):
                self._stop_on_non_finite("loss", value, batch)
            self.accelerator.backward(loss / group)
        if last:
            if config.clip_grad_norm:
                norm = self.accelerator.clip_grad_norm_(self.parameters, config.clip_grad_norm)
            else:
                self.accelerator.unscale_gradients(self.optimizer)
                norm = torch.nn.utils.get_total_norm(
                    [p.grad for p in self.parameters if p.grad is not None]
                )
            # In fp16 the scaler leaves out such a step by itself, and lowers its scale.
            if self.accelerator.scaler is None and not bool(torch.isfinite(norm)):
                self._stop_on_non_finite("gradient's norm", float(norm), batch)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if not self.accelerator.optimizer_step_was_skipped:
                self.scheduler.step()
            progress.step += 1
        progress.batch += 1
        return value

    def _finish_epoch(self, writer: SummaryWriter | None, seconds: float) -> None:
        progress, config = self.progress, self.config
        measured = self.task.evaluate()
        sums = gather_object([progress.loss_sum])  # each process has seen its share of each batch
        row: dict[str, float] = {
            "epoch": float(progress.epoch + 1),
            "train_loss": statistics.fmean(sums) / len(self.sampler),
            "lr": float(self.scheduler.get_last_lr()[0]),
            "seconds": seconds,
        } | measured
        value = measured[self.task.monitor]
        # Rounding differs between processes; one of them decides for all.
        better = broadcast_object_list([self._is_better(value)])[0]
        if better:
            progress.best, progress.best_epoch, progress.bad_epochs = value, progress.epoch + 1, 0
            if self.accelerator.is_main_process:
                self.task.save_best()
        else:
            progress.bad_epochs += 1
        progress.history.append(row)
        progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0
        out_of_patience = bool(config.patience) and progress.bad_epochs >= config.patience
        progress.finished = progress.epoch >= config.epochs or out_of_patience
        if writer is not None:
            for name, number in measured.items():
                writer.add_scalar(f"val/{name.removeprefix('val_')}", number, progress.step)
            writer.flush()
            tqdm.write(_line(row, config.epochs, self.task.monitor, better))
            write_atomically(self.out / HISTORY_NAME, _table(progress.history))
        if self.watch is not None and (warning := self.watch(row)) and writer is not None:
            tqdm.write(warning)
        self._save()

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False  # NaN compares false with everything: never let it be the best
        best = self.progress.best
        if best is None:
            return True
        return value > best if self.task.larger_is_better else value < best

    def _stop_on_non_finite(self, what: str, value: float, batch: Any) -> None:
        files = self.task.files(batch)
        shown = ", ".join(files[:8]) + (f" and {len(files) - 8} more" if len(files) > 8 else "")
        raise NonFiniteLossError(
            f"the {what} is {value} in epoch {self.progress.epoch + 1}, batch "
            f"{self.progress.batch + 1}. Files: {shown}. Nothing of this batch was learned; look "
            "at these images, or lower --lr, then go on with --resume"
        )

    def _save(self) -> None:
        """Write the state; every process calls it, the main one writes."""
        states = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            save_state(
                self.out / STATE_NAME,
                {
                    "signature": self.signature,
                    "world_size": self.accelerator.num_processes,
                    "progress": asdict(self.progress),
                    "trainable": trainable_state(self.task.module),
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "scaler": None if scaler is None else scaler.state_dict(),
                    "rng": states,
                },
            )
        self.accelerator.wait_for_everyone()

    def _read_state(self) -> dict[str, Any]:
        """Read the state of a run that is this one."""
        state = load_state(self.out / STATE_NAME)
        differing = sorted(
            name
            for name in self.signature.keys() | state["signature"].keys()
            if self.signature.get(name) != state["signature"].get(name)
        )
        if differing:
            name = differing[0]
            raise ResumeError(
                f"{self.out} was started with other settings ({', '.join(differing)}): {name} was "
                f"{state['signature'].get(name)!r} and is {self.signature.get(name)!r} now; "
                "resume with the same, or start anew in another --out"
            )
        if state["world_size"] != self.accelerator.num_processes:
            raise ResumeError(
                f"{self.out} was started with {state['world_size']} processes and is resumed with "
                f"{self.accelerator.num_processes}; use the same number"
            )
        check_trainable_state(self.task.module, state["trainable"])
        return state

    def _restore(self) -> None:
        state = self._read_state()
        load_trainable_state(self.task.module, state["trainable"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        if self.watch is not None:
            for row in self.progress.history:
                self.watch(row)  # told already
        set_rng_state(state["rng"][self.accelerator.process_index])


def make_accelerator(config: TrainerConfig) -> Accelerator:
    """Return the processes and the precision of a run.

    Of what accelerate reads from the environment, only that counts which says where to run: the
    loop divides gradients itself, and compiles nothing unasked.

    Raises:
        ValueError: the precision needs a GPU and there is none, or accelerate's configuration asks
            for a way to spread a model that this loop does not know.
    """
    asked = [name for name in _UNKNOWN_PLUGINS if os.environ.get(name, "").lower() in _YES]
    if asked:
        raise ValueError(
            f"{asked[0]} is set, by accelerate's configuration: fastht trains by data parallelism "
            "alone; use torchrun, or a configuration without it"
        )
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[config.precision]
    if precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("--precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    # Without cpu=True accelerate leaves torchrun's processes on a CPU alone with themselves.
    return Accelerator(
        mixed_precision=precision,
        cpu=not torch.cuda.is_available(),
        # The number alone would give way to the environment.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
    )


def _set_training(module: nn.Module) -> None:
    """Set a module to training, but not frozen batch norms: their statistics are the base's."""
    module.train()
    for part in module.modules():
        if isinstance(part, _BatchNorm) and not any(p.requires_grad for p in part.parameters()):
            part.eval()


def _to_device(batch: Any, device: torch.device) -> Any:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _line(row: dict[str, float], epochs: int, monitor: str, better: bool) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  train loss {row['train_loss']:.4f}  "
        f"{monitor.replace('_', ' ')} {row[monitor]:.4f}{'  (best)' if better else ''}"
    )


def _table(history: list[dict[str, float]]) -> bytes:
    text = io.StringIO()
    # A run that an older version began may have fewer scores in its first epochs.
    names = list(dict.fromkeys(name for row in history for name in row))
    table = csv.DictWriter(text, fieldnames=names)
    table.writeheader()
    table.writerows(history)
    return text.getvalue().encode()
