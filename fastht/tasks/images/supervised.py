"""Training a head, and what a method adds to the tower under it, on images with masks or labels."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from fastht.data.task_dataset import TaskDataset
from fastht.files import write_atomically
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar
from fastht.tasks.training.state import ResumeError, load_trainable_state, trainable_state

Scores = dict[str, float]


class Goal(Protocol):
    """What is learnt: how far predictions are from the truth, in training and in evaluation.

    Attributes:
        monitor: the score by which the best epoch is chosen; larger is better.
    """

    monitor: str

    def loss(self, logits: Tensor, batch: dict[str, Any]) -> Tensor:
        """Return the loss of a batch, a scalar."""

    def judge(self, logits: Tensor, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Return named lists with an entry for each image of a batch."""

    def summarise(self, judged: dict[str, list[Any]]) -> Scores:
        """Return the scores of all images from their entries in the order of the images."""

    def resampled(self, judged: dict[str, list[Any]], weights: Tensor) -> dict[str, Tensor]:
        """Return scores ``[r]`` of resamples that count each image ``[r, n]`` times."""


class SupervisedModule(nn.Module):
    """A model whose call on a batch returns its loss, as the trainer wants it."""

    def __init__(self, model: nn.Module, goal: Goal) -> None:
        super().__init__()
        self.model = model
        self.goal = goal

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of ``batch["image"]``."""
        logits = self.model(batch["image"])
        # In float32 whatever the model computes in: losses sum over many pixels.
        with torch.autocast(logits.device.type, enabled=False):
            return self.goal.loss(logits.float(), batch)


class SupervisedTask:
    """The trainer's view of segmentation and classification.

    Args:
        model: images ``[B, 3, H, W]`` to logits, on the accelerator's device; what has
            ``requires_grad`` trains.
        goal: the loss and the scores.
        train_data: samples to learn from.
        val_data: held-out samples for the choice of the best epoch.
        accelerator: the processes and the precision.
        batch_size: of evaluation.
        workers: processes that load images.
        best_path: file of the best weights.
    """

    larger_is_better = True

    def __init__(
        self,
        model: nn.Module,
        goal: Goal,
        train_data: TaskDataset,
        val_data: TaskDataset,
        accelerator: Accelerator,
        *,
        batch_size: int,
        workers: int,
        best_path: Path,
    ) -> None:
        self.model = model
        self.goal = goal
        self.module = SupervisedModule(model, goal)
        self.train_data: Dataset[Any] = train_data
        self.val_data = val_data
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.workers = workers
        self.best_path = best_path
        self._val_loader: DataLoader[Any] | None = None
        self.monitor = f"val_{goal.monitor}"

    def evaluate(self) -> Scores:
        """Score the model as it is on the held-out samples."""
        scores = self.score(self.val_data)[0]
        # Those of single classes are many, and told at the end.
        return {f"val_{name}": value for name, value in scores.items() if "/" not in name}

    def score(
        self, data: TaskDataset, goal: Goal | None = None
    ) -> tuple[Scores, dict[str, list[Any]]]:
        """Score the model on a data set; every process calls it and gets the same.

        Args:
            data: samples without augmentation.
            goal: how to judge; default: as in training.

        Returns:
            The scores, and the entries of all images in the order of the data.
        """
        goal = goal or self.goal
        loader = None
        if data is self.val_data:  # scored every epoch: its workers live as long as the task
            if self._val_loader is None:
                self._val_loader = make_share(data, self.accelerator, self.batch_size, self.workers)
            loader = self._val_loader
        judged = predict(
            self.model, goal, data, self.accelerator, self.batch_size, self.workers, loader
        )
        return goal.summarise(judged), judged

    def save_best(self) -> None:
        """Write what trains as it is: parameters and running statistics."""
        save_trained(self.model, self.best_path)

    def files(self, batch: Any) -> list[str]:
        """Name the images of a training batch."""
        return [self.train_data.file(int(i)) for i in batch["index"]]  # type: ignore[attr-defined]


def make_share(
    data: TaskDataset, accelerator: Accelerator, batch_size: int, workers: int
) -> DataLoader[Any]:
    """Return a loader of this process's share of a data set."""
    share = range(accelerator.process_index, len(data), accelerator.num_processes)
    return make_loader(Subset(data, share), workers=workers, batch_size=batch_size)


@torch.no_grad()
def predict(
    model: nn.Module,
    goal: Goal,
    data: TaskDataset,
    accelerator: Accelerator,
    batch_size: int,
    workers: int,
    loader: DataLoader[Any] | None = None,
) -> dict[str, list[Any]]:
    """Judge all images of a data set, each process a share of them; see ``SupervisedTask.score``.

    Every image is judged once, however many processes there are, so that their scores are those
    of one.
    """
    if loader is None:
        loader = make_share(data, accelerator, batch_size, workers)
    training = model.training
    model.eval()
    judged: list[tuple[int, dict[str, Any]]] = []
    bar = ProgressBar(
        read_batches(loader),
        total=len(loader),
        title="held out",
        shown=accelerator.is_main_process,
    )
    for batch in bar:
        with accelerator.autocast():
            logits = model(batch["image"].to(accelerator.device))
        logits = logits.float().cpu()
        entries = goal.judge(logits, batch)
        for row, index in enumerate(batch["index"].tolist()):
            judged.append((index, {name: values[row] for name, values in entries.items()}))
    model.train(training)
    everything = sorted(gather_object(judged), key=lambda pair: pair[0])
    names = everything[0][1]
    return {name: [entry[name] for _, entry in everything] for name in names}


def save_trained(model: nn.Module, path: Path, without: Collection[str] = ()) -> None:
    """Write what training changes in a model, save some names, into a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(trainable_state(model, without)))


def load_trained(model: nn.Module, path: Path, without: Collection[str] = ()) -> None:
    """Put what :func:`save_trained` wrote into a model that was built alike; all or nothing.

    Raises:
        ResumeError: the file is not there, damaged, or of another model.
    """
    if not path.exists():
        raise ResumeError(
            f"{path.parent} holds no finished epoch ({path.name} is not there); go on with its "
            "training by --resume"
        )
    try:
        state = from_safetensors(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"{path} cannot be read: {error}") from error
    load_trainable_state(model, state, without)
