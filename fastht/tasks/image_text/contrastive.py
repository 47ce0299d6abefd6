"""Contrastive fine-tuning: what adapts a model learns to match images to captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from fastht.tasks.image_text.run import Method, as_base, save_weights
from fastht.tasks.image_text.semantic import TagOptions, TagTargets
from fastht.tasks.image_text.tagged_texts import TaggedTexts, apply_graph, save_graph
from fastht.tasks.image_text.tags import RecordTags
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.image_text.titles import EpochCaptions
from fastht.tasks.image_text.towers import OwnWeights, text_trains
from fastht.tasks.training.loading import make_loader, read_batches
from fastht.tasks.training.progress import ProgressBar
from fastht.taxonomy.graph import TagGraph

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
        texts: captions: ``[m, E]`` their normalised embeddings, or, for a text tower that trains,
            ``[m, L]`` their token numbers.
        accelerator: tells the processes apart.
        flip: mirror each training image left to right with probability 1/2.
        loss: symmetric InfoNCE, or the sigmoid loss, for models with a logit bias.
        keys: by sample index ``[n]``: samples of equal keys are positives of each other; default:
            none are.
        targets: semantic soft labels of the samples, whose loss is added; default: none.
        graph: changes the embeddings of captions by tags; default: none.
        tags: by sample index ``[n, L]``, what the graph is given.
        rows: by sample index ``[n]``, its row of ``texts``; default: the index.

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
        targets: TagTargets | None = None,
        graph: TagGraph | None = None,
        tags: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.graph = graph
        self.targets = targets
        self.tags = None if tags is None else tags.to(accelerator.device)
        self.flip = flip
        # No buffer: DDP would send it round at every step.
        self.texts = texts.to(accelerator.device)
        self.rows = None if rows is None else rows.to(accelerator.device)
        self.keys = None if keys is None else keys.to(accelerator.device)
        processes = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        soft_labels = None if targets is None else targets.soft_labels
        self.loss: nn.Module
        if loss == "clip":
            self.loss = ClipLoss(gather_with_grad=True, soft_labels=soft_labels, **processes)
        else:
            self.loss = SigLipLoss(soft_labels=soft_labels, **processes)
            logit_bias(model)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of ``batch["image"]`` against the captions of ``batch["index"]``."""
        pixels: Tensor = batch["image"]
        if self.flip and self.training:
            # Drawn here and not in the loader's workers: this generator is part of the run's state.
            chosen = torch.rand(len(pixels)).lt(0.5).to(pixels.device)
            pixels = torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)
        images: Tensor = self.model.encode_image(pixels, normalize=True)  # type: ignore[operator]
        texts = self.texts[batch["index"] if self.rows is None else self.rows[batch["index"]]]
        if not texts.is_floating_point():
            texts = self.model.encode_text(texts, normalize=True).float()  # type: ignore[operator]
        if self.graph is not None and self.tags is not None:
            texts = apply_graph(self.graph, texts, self.tags[batch["index"]])
        scale = self.model.logit_scale.exp()  # type: ignore[operator]
        bias = logit_bias(self.model) if isinstance(self.loss, SigLipLoss) else None
        keys = None if self.keys is None else self.keys[batch["index"]]
        soft = None if self.targets is None else self.targets.of(batch["index"])
        # The similarities are compared in float32 whatever the tower computes in.
        with torch.autocast(images.device.type, enabled=False):
            loss: Tensor = self.loss(
                images.float(), texts, scale.float(), bias, keys=keys, soft_targets=soft
            )
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
        embedder: embeds captions and class prompts with the model's text tower, and with its tag
            graph if it has one; it may keep embeddings unless that tower trains.
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
        options: what tags do.
        tags: those of the samples to learn from and of those held out, where they do anything.
        own: weights of the model itself that train.
        seed: of the captions that samples with several have in an epoch.
    """

    larger_is_better = False

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        embedder: TaggedTexts,
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
        options: TagOptions | None = None,
        tags: tuple[RecordTags, RecordTags] | None = None,
        own: OwnWeights | None = None,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.method = method
        self.own = own
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
        self.captions = EpochCaptions(train_records, seed)
        captions = list(self.captions.texts)
        self._loader: DataLoader[Any] | None = None
        self._held_out_texts: tuple[Tensor, Tensor | None] | None = None
        if text_trains(method, "none" if own is None else own.towers):
            texts = embedder.plain.tokenizer(captions)
        else:
            # One process embeds and keeps the texts, the others find them kept.
            with accelerator.main_process_first():
                texts = embedder.plain(captions)
                self._held_out_texts = self._embed_held_out()
        self.positives = positives
        self.keys = positive_keys(train_records, positives)
        self.val_keys = positive_keys(val_records, positives)
        self.loss = loss
        self.targets: tuple[TagTargets, TagTargets] | None = None
        if tags is not None and options is not None and options.semantic != "none":
            devices = (accelerator.device, torch.device("cpu"))
            # What is counted is counted in what trains, for those held out too.
            known: dict[str, Any] = {
                "counted": tags[0],
                "encode": lambda texts: embedder.plain(texts).numpy(),
            }
            train, val = (
                TagTargets(side, options, device, **known)
                for side, device in zip(tags, devices, strict=True)
            )
            self.targets = (train, val)
        self.module = ContrastiveModule(
            model,
            texts,
            accelerator,
            flip=flip,
            loss=loss,
            keys=self.keys,
            targets=None if self.targets is None else self.targets[0],
            graph=embedder.graph,
            tags=None if tags is None else tags[0].numbers,
            rows=self.captions.rows(0),
        )
        # With soft labels the best epoch is that of all that is minimised.
        self.monitor = "val_loss" if self.targets is None else "val_total_loss"

    def set_epoch(self, epoch: int) -> None:
        """Give samples that have several captions those of an epoch."""
        if self.captions.several:
            rows = self.captions.rows(epoch).to(self.accelerator.device)
            self.module.rows = rows
            if self.positives == "caption":
                self.module.keys = rows

    def evaluate(self) -> dict[str, float]:
        """Return losses, recalls, zero-shot accuracy if there are labels, and spread, held out."""
        losses, held_out = self.judge()
        floor = self.held_out_floor()
        floors = {} if floor is None else {"val_loss_floor": floor}
        return losses | floors | self.target_sharpness() | held_out.scores() | held_out.spread

    def target_sharpness(self) -> dict[str, float]:
        """Return what the held-out soft targets are like in batches of the training's size."""
        if self.targets is None:
            return {}
        mass, entropy = self.targets[1].sharpness(self.contrasted(), self.val_keys)
        return {"val_target_diagonal_mass": mass, "val_target_entropy": entropy}

    def contrasted(self) -> int:
        """Return how many samples the soft labels compare in training."""
        local = self.targets is not None and self.targets[0].soft_labels.scope == "local"
        return self.batch_size // (self.accelerator.num_processes if local else 1)

    def held_out_floor(self) -> float | None:
        """Return below which the held-out loss cannot fall, where there are several positives."""
        if self.val_keys is None or self.loss != "clip":
            return None
        return loss_floor(self.val_keys, self.batch_size)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """Judge the model without what the method put in inside the context.

        That is the base before the first step; after it, weights of the model itself may differ.
        """
        with as_base(self.model, self.method), self.embedder.disabled():
            yield

    def judge(self) -> tuple[dict[str, float], HeldOut]:
        """Return losses over the held-out samples, and how well each of them is told apart."""
        images = self._encode_held_out()
        plain, class_features = self._held_out_texts or self._embed_held_out()
        if self.embedder.in_use:
            class_features = _class_features(self.classes, self.embedder)
        captions = [record.caption for record in self.val_records]
        right = None
        if class_features is not None:
            rows = [i for i, r in enumerate(self.val_records) if r.label is not None]
            labels = [self.classes.index(str(self.val_records[i].label)) for i in rows]
            predicted = (images[rows] @ class_features.T).argmax(dim=1).cpu()
            right = torch.full((len(images),), torch.nan, dtype=torch.float64)
            right[rows] = (predicted == torch.tensor(labels)).double()
        texts = self.embedder.tagged(captions, plain)
        beside = None if self.embedder.graph is None else plain
        held_out = HeldOut(self.val_records, images, texts, right, beside)
        return self._losses(images, texts), held_out

    def save_best(self) -> None:
        """Save what adapts the model as the best so far."""
        save_weights(self.model, self.method, self.out, self.base_model, self.own)
        save_graph(self.embedder.graph, self.out)

    def held_beside(self) -> list[Tensor]:
        """Return what stays on the device beside parameters and buffers."""
        held = (self.module.texts, self.module.rows, self.module.keys, self.module.tags)
        return [tensor for tensor in held if tensor is not None]

    def files(self, batch: Any) -> list[str]:
        """Name the images of a training batch."""
        return [self.train_data.file(int(i)) for i in batch["index"]]  # type: ignore[attr-defined]

    def _embed_held_out(self) -> tuple[Tensor, Tensor | None]:
        """Embed the held-out captions, and the classes where there are any."""
        texts = self.embedder.plain([record.caption for record in self.val_records])
        return texts, _class_features(self.classes, self.embedder.plain)

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

    def _losses(self, images: Tensor, texts: Tensor) -> dict[str, float]:
        """Average the losses over held-out batches of the training's size."""
        scale = self.model.logit_scale.exp().float().cpu()  # type: ignore[operator]
        bias = logit_bias(self.model).cpu() if self.loss == "siglip" else None
        targets = None if self.targets is None else self.targets[1]
        soft_labels = None if targets is None else targets.soft_labels
        made = ClipLoss if self.loss == "clip" else SigLipLoss
        loss = made(soft_labels=soft_labels)
        total = {"contrastive_loss": 0.0}
        for rows in torch.arange(len(images)).split(self.batch_size):
            keys = None if self.val_keys is None else self.val_keys[rows]
            found = loss(
                images[rows],
                texts[rows],
                scale,
                bias,
                keys=keys,
                soft_targets=None if targets is None else targets.of(rows),
                output_dict=True,
            )
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value.item() * len(rows) / len(images)
        losses = {"val_loss": total["contrastive_loss"]}
        if targets is not None:
            losses["val_semantic_loss"] = total["soft_label_loss"]
            losses["val_total_loss"] = sum(total.values())
        return losses


def _class_features(classes: Sequence[str], embedder: TaggedTexts | TextEmbedder) -> Tensor | None:
    if not classes:
        return None
    texts = [prompt.format(name) for name in classes for prompt in PROMPTS]
    features = embedder(texts).unflatten(0, (len(classes), len(PROMPTS))).mean(dim=1)
    return nn.functional.normalize(features, dim=-1)
