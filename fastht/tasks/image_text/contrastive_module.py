"""The contrastive loss of a model on a batch of images and their captions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fastht.losses import ClipLoss, SigLipLoss
from fastht.tasks.image_text.augmentation import cut_at_random, mirror
from fastht.tasks.image_text.semantic import TagTargets
from fastht.tasks.image_text.tagged_texts import apply_graph
from fastht.taxonomy.graph import TagGraph

Loss = Literal["clip", "siglip"]


class ContrastiveModule(nn.Module):
    """An open_clip model whose call returns the contrastive loss of a batch.

    Each process compares its images with the texts of all, and the averaged gradient is exactly
    that of the global batch's loss. The symmetric InfoNCE loss is returned for the global batch,
    the sigmoid loss for the own images.

    Args:
        model: an open_clip model.
        texts: captions: ``[m, E]`` their normalised embeddings, of a dual encoder with a frozen
            text tower ``[m, d]`` what that pools, or, for a text tower that trains, ``[m, L]``
            their token numbers.
        accelerator: tells the processes apart.
        flip: mirror each training image left to right with probability 1/2.
        crop: size that is cut at random out of each training image; default: images are whole.
        pooled_images: whether a batch's images are what a frozen tower pooled.
        pooled_texts: whether ``texts`` are.
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
        crop: tuple[int, int] | None = None,
        pooled_images: bool = False,
        pooled_texts: bool = False,
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
        self.crop = crop
        self.pooled_images = pooled_images
        self.pooled_texts = pooled_texts
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
        images = self._images(batch["image"])
        texts = self._texts(batch["index"])
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

    def _images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of a batch's images."""
        model: Any = self.model
        if self.pooled_images:
            pooled: Tensor = model.visual.embed(pixels, normalize=True)
            return pooled
        if self.training:
            # Drawn here and not in the loader's workers: this generator is part of the run's state.
            if self.crop is not None:
                pixels = cut_at_random(pixels, self.crop)
            if self.flip:
                pixels = mirror(pixels)
        images: Tensor = model.encode_image(pixels, normalize=True)
        return images

    def _texts(self, index: Tensor) -> Tensor:
        """Return the embeddings of a batch's captions."""
        model: Any = self.model
        texts = self.texts[index if self.rows is None else self.rows[index]]
        if self.pooled_texts:
            texts = model.text.embed(texts, normalize=True).float()
        elif not texts.is_floating_point():
            texts = model.encode_text(texts, normalize=True).float()
        return texts


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
