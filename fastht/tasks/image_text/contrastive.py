"""Contrastive fine-tuning: what adapts a model learns to match images to captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastht.data import ImageTextDataset, Record
from fastht.losses import ClipLoss, SigLipLoss
from fastht.tasks.image_text.adapted import Method, as_base, save_weights
from fastht.tasks.image_text.augmentation import with_margin
from fastht.tasks.image_text.contrastive_module import ContrastiveModule, Loss, logit_bias
from fastht.tasks.image_text.held_out import HeldOut
from fastht.tasks.image_text.pooled_images import (
    PooledImages,
    encode_shares,
    pool_images,
    share_loader,
)
from fastht.tasks.image_text.positives import Positives, loss_floor, positive_keys
from fastht.tasks.image_text.semantic import TagOptions, TagTargets
from fastht.tasks.image_text.tagged_texts import TaggedTexts, save_graph
from fastht.tasks.image_text.tags import RecordTags
from fastht.tasks.image_text.text_embeddings import TextEmbedder
from fastht.tasks.image_text.titles import EpochCaptions
from fastht.tasks.image_text.towers import OwnWeights, text_trains
from fastht.tasks.models.dual import DualEncoder

# A class's embedding is the mean over these sentences.
PROMPTS = (
    "Ultrasound image of a {}.",
    "Ultrasound showing a {}.",
    "B-mode ultrasound image with a {}.",
)


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
        crop_margin: by how much larger training images are read than the model takes them, to be
            cut out at random; 0: they are whole.
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
        crop_margin: float = 0.0,
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
        crop = None
        train_transform = transform
        if crop_margin:
            train_transform, crop = with_margin(transform, crop_margin)
        self.train_data: Dataset[Any] = ImageTextDataset(train_records, train_transform)
        self.val_data: Dataset[Any] = ImageTextDataset(val_records, transform)
        self._pool_images(augmented=flip or bool(crop_margin))
        labels = {record.label for record in [*train_records, *val_records]} - {None}
        self.classes = sorted(map(str, labels)) if len(labels) > 1 else []
        self.captions = EpochCaptions(train_records, seed)
        captions = list(self.captions.texts)
        self._loader: DataLoader[Any] | None = None
        self._held_out_texts: tuple[Tensor, Tensor | None] | None = None
        towers = "none" if own is None else own.towers
        if text_trains(method, towers, dual=isinstance(model, DualEncoder)):
            texts = embedder.plain.tokenizer(captions)
        elif embedder.plain.pools:
            # Its head trains, so that the embeddings of those held out change too.
            with accelerator.main_process_first():
                texts = embedder.plain.pooled(captions)
                self._embed_held_out()
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
            crop=crop,
            pooled_images=isinstance(self.train_data, PooledImages),
            pooled_texts=embedder.plain.pools and texts.is_floating_point(),
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

    @property
    def reads_no_images(self) -> bool:
        """Whether training needs no image any more."""
        return isinstance(self.train_data, PooledImages)

    def describe_pooled(self) -> str:
        """Say what of the towers of a dual encoder was computed once and for all."""
        texts = self.module.texts.is_floating_point()
        said = []
        if isinstance(self.val_data, PooledImages) and not self.reads_no_images:
            said.append(
                "The image tower is frozen, but --flip or --crop-margin change the images: it "
                "runs at each step."
            )
        kept = [name for name, is_kept in (("image", self.reads_no_images), ("text", texts))
                if is_kept]  # fmt: skip
        if kept:
            towers = " and the ".join(f"{name} tower" for name in kept)
            said.append(f"The frozen {towers} ran once; what was pooled is kept.")
        return " ".join(said) or "Both towers run at each step."

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

    def _encode_held_out(self) -> Tensor:
        """Encode the held-out images, each process a share; ``[n, E]`` on the CPU in order."""
        model: Any = self.model
        pooled = isinstance(self.val_data, PooledImages)
        if self._loader is None:  # its workers live as long as the task
            workers = 0 if pooled else self.workers
            self._loader = share_loader(
                self.val_data, self.accelerator, batch_size=self.batch_size, workers=workers
            )
        embed = model.visual.embed if pooled else model.encode_image
        training = model.training
        model.eval()
        found = encode_shares(
            self._loader,
            len(self.val_data),  # type: ignore[arg-type]
            lambda images: embed(images, normalize=True),
            self.accelerator,
            "held out",
        )
        model.train(training)
        return found

    def _pool_images(self, augmented: bool) -> None:
        """Run images through a frozen image tower once; those that training changes stay."""
        model = self.model
        if not isinstance(model, DualEncoder) or not model.visual.frozen:
            return
        shared = {"workers": self.workers, "accelerator": self.accelerator}
        self.val_data = pool_images(
            model.visual,
            self.val_data,
            batch_size=self.batch_size,
            fill=False,
            title="held-out images",
            **shared,  # type: ignore[arg-type]
        )
        if augmented:
            return
        self.train_data = pool_images(
            model.visual,
            self.train_data,
            batch_size=max(1, self.batch_size // self.accelerator.num_processes),
            fill=True,
            title="training images",
            **shared,  # type: ignore[arg-type]
        )

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
