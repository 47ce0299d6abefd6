"""Image-text models by the names of their towers: open_clip's own, or two towers with heads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from fastht.seeded import seeded
from fastht.tasks.models.build import build_clip, model_source
from fastht.tasks.models.dual import (
    DualEncoder,
    Tower,
    own_text_tower,
    pooled_width,
    without_projection,
)
from fastht.tasks.models.echocare import ECHOCARE, build_echocare, echocare_transform
from fastht.tasks.models.text_towers import TextTower, build_text_tower

OWN = "own"
NO_HEAD = "none"
_HEAD = re.compile(r"mlp-([1-9]\d*)")


@dataclass(frozen=True)
class EncoderNames:
    """What an image-text model is made of.

    Attributes:
        model: of the image tower: as :func:`build_clip` takes it, or ``echocare:FILE``.
        pretrained: its weights, likewise; of EchoCare's the file is in the name.
        text: the text tower: ``own``, or as :func:`build_text_tower` takes it.
        head: on each tower: ``none`` or ``mlp-N``.
        revision: commit of the text tower's repository; default: that of the name, or the newest.
        seed: that heads are drawn from.
    """

    model: str
    pretrained: str
    text: str = OWN
    head: str = NO_HEAD
    revision: str | None = None
    seed: int = 0

    @property
    def dual(self) -> bool:
        """Whether the model is no longer open_clip's own."""
        return self.text != OWN or self.head != NO_HEAD

    @property
    def title(self) -> str:
        """What reports call it."""
        echocare = self.model.startswith(ECHOCARE)
        name = self.model if echocare else f"{self.model}/{self.pretrained}"
        name += "" if self.text == OWN else f" + {self.text}"
        return name if self.head == NO_HEAD else f"{name} + {self.head}"


@dataclass(frozen=True)
class Encoder:
    """An image-text model with what goes with it.

    Attributes:
        model: of open_clip, or a :class:`DualEncoder`.
        transform: PIL image -> ``[3, H, W]``.
        tokenizer: texts -> ``[n, L]`` token numbers.
        revision: commit of the repository that the text tower is from, where there is one.
        account: what there is to say of it; empty for open_clip's own.
        record: the same as plain JSON types.
    """

    model: nn.Module
    transform: Any
    tokenizer: Callable[..., Tensor]
    revision: str | None = None
    account: str = ""
    record: dict[str, Any] | None = None


def head_width(head: str) -> int | None:
    """Return N of ``mlp-N``; ``None`` for ``none``.

    Raises:
        ValueError: it is neither.
    """
    if head == NO_HEAD:
        return None
    found = _HEAD.fullmatch(head)
    if found is None:
        raise ValueError(f"--head {head} is no head: give none, or mlp-N for one N wide: mlp-256")
    return int(found[1])


def build_encoder(names: EncoderNames) -> Encoder:
    """Return an image-text model in float32 on the CPU.

    Raises:
        ValueError: a tower cannot be had, the towers do not go together, or there is no such head.
    """
    width = head_width(names.head)
    if names.model.startswith(ECHOCARE):
        if names.text == OWN:
            raise ValueError(
                f"{names.model} has no text tower of its own: give one by --text "
                "hf:ORG/NAME, local-dir:FOLDER or tiny-bert"
            )
        clip: Any = None
        transform: Any = echocare_transform()
        visual: Any = build_echocare(names.model)
        pooled = visual.output_dim
    else:
        clip, transform = build_clip(names.model, names.pretrained)
        if not names.dual:
            tokenizer = open_clip.get_tokenizer(model_source(names.model))
            return Encoder(clip, transform, tokenizer)
        visual = without_projection(clip.visual)
        pooled = pooled_width(visual, torch.zeros(1, 3, *_image_size(clip.visual)))
    if names.text == OWN:
        text = _own_text(names, clip)
    else:
        text = build_text_tower(names.text, names.revision)
    # Heads are what trains: they go by the run's seed, and are the same in all processes.
    with seeded(names.seed):
        model = DualEncoder(
            Tower(visual, pooled, width), Tower(text.module, text.width, width), text.tokenizer
        )
    heads = "no heads" if width is None else f"heads to {width} on both, random at first"
    account = f"{text.describe(names.text)}\nImage tower: {pooled} wide; {heads}."
    record = {
        "text": names.text,
        "head": names.head,
        "image_width": pooled,
        "text_width": text.width,
        "text_pooling": text.pooling,
        "text_context": model.context_length,
        "text_revision": text.revision,
        "text_notes": list(text.notes),
    }
    return Encoder(model, transform, text.tokenizer, text.revision, account, record)


def _own_text(names: EncoderNames, clip: Any) -> TextTower:
    """Return the text tower of an open_clip model, without its projection."""
    tokenizer = open_clip.get_tokenizer(model_source(names.model))
    tower = own_text_tower(clip)
    return TextTower(tower, pooled_width(tower, tokenizer(["ultrasound"])), tokenizer, "own")


def _image_size(visual: Any) -> tuple[int, int]:
    size = visual.image_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
