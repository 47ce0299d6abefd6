"""Contrastive fine-tuning: what adapts a model learns to match images to captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from fastht.data import ImageTextDataset, Record
from fastht.losses import ClipLoss, SigLipLoss
from fastht.tasks.image_text.held_out import HeldOut
from fastht.tasks.image_text.positives import Positives, loss_floor, positive_keys
from fastht.tasks.image_text.run import Method, save_weights
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar

Loss = Literal["clip", "siglip"]

# A class's embedding is the mean over these sentences.
PROMPTS = (
    "Ultrasound image of a {}.",
    "Ultrasound showing a {}.",
    "B-mode ultrasound image with a {}.",
)


class ContrastiveModule(nn.Module):
    """An open_clip model whose call returns the contrastive loss of a batch.

    Each process compares its images with the texts of all, and the averaged gradient is exactly
    that of the global batch's loss. The symmetric InfoNCE loss is returned for the global batch,
    the sigmoid loss for the own images.

    Args:
        model: an open_clip model.
        texts: captions by sample index: ``[n, E]`` their normalised embeddings, or, for a text
            tower that trains, ``[n, L]`` their token numbers.
        accelerator: tells the processes apart.
        flip: mirror each training image left to right with probability 1/2.
        loss: symmetric InfoNCE, or the sigmoid loss, for models with a logit bias.
        keys: by sample index ``[n]``: samples of equal keys are positives of each other; default:
            none are.

    Raises:
        ValueError: the model has no logit bias, and the loss is the sigmoid loss.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Tensor,
        accelerator: Accelerator,
        *,
        flip: bool = False,
        loss: Loss = "clip",
        keys: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.flip = flip
        # No buffer: DDP would send it round at every step.
        self.texts = texts.to(accelerator.device)
        self.keys = None if keys is None else keys.to(accelerator.device)
        processes = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        self.loss: nn.Module
        if loss == "clip":
            self.loss = ClipLoss(gather_with_grad=True, **processes)
        else:
            self.loss = SigLipLoss(**processes)
            logit_bias(model)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of ``batch["image"]`` against the captions of ``batch["index"]``."""
        pixels: Tensor = batch["image"]
        if self.flip and self.training:
            # Drawn here and not in the loader's workers: this generator is part of the run's state.
            chosen = torch.rand(len(pixels)).lt(0.5).to(pixels.device)
            pixels = torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)
        images: Tensor = self.model.encode_image(pixels, normalize=True)  # type: ignore[operator]
        texts = self.texts[batch["index"]]
        if not texts.is_floating_point():
            texts = self.model.encode_text(texts, normalize=True).float()  # type: ignore[operator]
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        bias = logit_bias(self.model) if isinstance(self.loss, SigLipLoss) else None
        keys = None if self.keys is None else self.keys[batch["index"]]
        # The similarities are compared in float32 whatever the tower computes in.
        with torch.autocast(images.device.type, enabled=False):
            loss: Tensor = self.loss(images.float(), texts, scale.float(), bias, keys=keys)
        return loss


def logit_bias(model: nn.Module) -> Tensor:
    """Return the bias of a model's logits, which the sigmoid loss needs.

    Raises:
        ValueError: it has none.
    """
    bias = getattr(model, "logit_bias", None)
    if bias is None:
        raise ValueError(
            "the sigmoid loss needs a model with a logit bias, and this has none: take a SigLIP "
            "model (--model ViT-B-16-SigLIP, for instance), or --loss clip"
        )
    return bias.float()


class ContrastiveTask:
    """The trainer's view of contrastive fine-tuning.

    Args:
        model: an adapted open_clip model on the accelerator's device.
        method: how it is adapted.
        embedder: embeds captions and class prompts with the model's text tower; it may keep
            embeddings unless the method trains that tower.
        train_records: samples to learn from.
        val_records: samples held out.
        transform: image -> ``[3, H, W]`` tensor.
        accelerator: the processes and the precision.
        batch_size: contrast of the held-out loss, as in training.
        workers: processes that load images.
        out: folder of the run, where the best weights go.
        base_model: name of the base for an adapter's config.
        flip: mirror training images at random.
        loss: what is minimised.
        positives: what samples have in common that are positives of each other.
    """

    monitor = "val_loss"
    larger_is_better = False

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        embedder: TextEmbedder,
        train_records: Sequence[Record],
        val_records: Sequence[Record],
        transform: Any,
        accelerator: Accelerator,
        *,
        batch_size: int,
        workers: int,
        out: Path,
        base_model: str,
        flip: bool,
        loss: Loss = "clip",
        positives: Positives = "none",
    ) -> None:
        self.model = model
        self.method = method
        self.embedder = embedder
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.workers = workers
        self.out = out
        self.base_model = base_model
        self.val_records = val_records
        self.train_data: Dataset[Any] = ImageTextDataset(train_records, transform)
        self.val_data: Dataset[Any] = ImageTextDataset(val_records, transform)
        labels = {record.label for record in [*train_records, *val_records]} - {None}
        self.classes = sorted(map(str, labels)) if len(labels) > 1 else []
        captions = [record.caption for record in train_records]
        self._loader: DataLoader[Any] | None = None
        self._held_out_texts: tuple[Tensor, Tensor | None] | None = None
        if method == "lora-text":
            texts = embedder.tokenizer(captions)
        else:
            # One process embeds and keeps the texts, the others find them kept.
            with accelerator.main_process_first():
                texts = embedder(captions)
                self._held_out_texts = self._embed_held_out()
        self.keys = positive_keys(train_records, positives)
        self.val_keys = positive_keys(val_records, positives)
        self.loss = loss
        self.module = ContrastiveModule(
            model, texts, accelerator, flip=flip, loss=loss, keys=self.keys
        )

    def evaluate(self) -> dict[str, float]:
        """Return loss, recalls and, where the data has labels, zero-shot accuracy, held out."""
        loss, held_out = self.judge()
        floor = self.held_out_floor()
        floors = {} if floor is None else {"val_loss_floor": floor}
        return {"val_loss": loss} | floors | held_out.scores()

    def held_out_floor(self) -> float | None:
        """Return below which the held-out loss cannot fall, where there are several positives."""
        if self.val_keys is None or self.loss != "clip":
            return None
        return loss_floor(self.val_keys, self.batch_size)

    def judge(self) -> tuple[float, HeldOut]:
        """Return the loss over the held-out samples, and how well each of them is told apart."""
        images = self._encode_held_out()
        texts, class_features = self._held_out_texts or self._embed_held_out()
        right = None
        if class_features is not None:
            rows = [i for i, r in enumerate(self.val_records) if r.label is not None]
            labels = [self.classes.index(str(self.val_records[i].label)) for i in rows]
            predicted = (images[rows] @ class_features.T).argmax(dim=1).cpu()
            right = torch.full((len(images),), torch.nan, dtype=torch.float64)
            right[rows] = (predicted == torch.tensor(labels)).double()
        return self._loss(images, texts), HeldOut(self.val_records, images, texts, right)

    def save_best(self) -> None:
        """Save what adapts the model as the best so far."""
        save_weights(self.model, self.method, self.out, self.base_model)

    def files(self, batch: Any) -> list[str]:
        """Name the images of a training batch."""
        return [self.train_data.file(int(i)) for i in batch["index"]]  # type: ignore[attr-defined]

    def _embed_held_out(self) -> tuple[Tensor, Tensor | None]:
        """Embed the held-out captions, and the classes where there are any."""
        texts = self.embedder([record.caption for record in self.val_records])
        return texts, _class_features(self.classes, self.embedder)

    @torch.no_grad()
    def _encode_held_out(self) -> Tensor:
        """Encode the held-out images, each process a share; ``[n, E]`` on the CPU in order."""
        data = self.val_data
        accelerator = self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        total = len(data)  # type: ignore[arg-type]
        share = -(-total // world)
        # The last process's share is filled up with copies, which are cut off again below.
        indices = [min(i, total - 1) for i in range(rank * share, (rank + 1) * share)]
        if self._loader is None:  # its workers live as long as the task
            self._loader = make_loader(
                Subset(data, indices), workers=self.workers, batch_size=self.batch_size
            )
        loader = self._loader
        training = self.model.training
        self.model.eval()
        parts = []
        for batch in ProgressBar(
            read_batches(loader),
            total=len(loader),
            title="held out",
            shown=accelerator.is_main_process,
        ):
            with accelerator.autocast():
                images = batch["image"].to(accelerator.device)
                features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
            parts.append(features.float())
        self.model.train(training)
        gathered: Tensor = accelerator.gather(torch.cat(parts))
        return gathered[:total].cpu()

    def _loss(self, images: Tensor, texts: Tensor) -> float:
        """Average the contrastive loss over held-out batches of the training's size."""
        scale = self.model.logit_scale.exp().float().cpu()  # type: ignore[operator]
        bias = logit_bias(self.model).cpu() if self.loss == "siglip" else None
        loss = ClipLoss() if self.loss == "clip" else SigLipLoss()
        total = 0.0
        for rows in torch.arange(len(images)).split(self.batch_size):
            keys = None if self.val_keys is None else self.val_keys[rows]
            total += loss(images[rows], texts[rows], scale, bias, keys=keys).item() * len(rows)
        return total / len(images)


def _class_features(classes: Sequence[str], embedder: TextEmbedder) -> Tensor | None:
    if not classes:
        return None
    texts = [prompt.format(name) for name in classes for prompt in PROMPTS]
    features = embedder(texts).unflatten(0, (len(classes), len(PROMPTS))).mean(dim=1)
    return nn.functional.normalize(features, dim=-1)
