"""The options of ``fastht train``, and those of them that decide a run's numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastht.config import HTConfig
from fastht.data.captions import Cleaning
from fastht.tasks.image_text.adapted import Method
from fastht.tasks.image_text.caption_fit import CaptionPart
from fastht.tasks.image_text.contrastive_module import Loss
from fastht.tasks.image_text.positives import Positives
from fastht.tasks.image_text.reading import PairsData
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.towers import Towers
from fastht.tasks.models.build import TINY_MODEL
from fastht.tasks.models.encoders import NO_HEAD, OWN, EncoderNames
from fastht.tasks.training.config import TrainerConfig

Recipe = Literal[
    "none",
    "ultrasound-clip",
    "ultrasound-clip-ablation",
    "echocare-clip-clip-heads",
    "echocare-clip-clip-image",
    "echocare-clip-clip-text",
    "echocare-clip-clip-full",
    "echocare-clip-bert-heads",
    "echocare-clip-bert-image",
    "echocare-clip-bert-text",
    "echocare-clip-bert-full",
    "echocare-clip-ablation",
]

# Options that came later, as they are where they are not in use.
_UNUSED = {
    "text": OWN,
    "head": NO_HEAD,
    "decay_all": False,
    "crop_margin": 0.0,
    "warmup_steps": None,
    "warmup_epochs": None,
    "lr_schedule": "steps",
}


@dataclass(frozen=True)
class TrainArguments(PairsData):
    """Fine-tune HT adapters, or LoRA, in an open_clip model on images and captions.

    Attributes:
        cleaning: what captions keep: letters of every script, or ASCII alone as in the paper.
        caption_part: what is read of captions that are longer than the text tower reads: their
            start, their end, or the sentences that fewest captions share.
        val_fraction: share of the patients that is held out, on average, where the data does not
            say which by a column split.
        titles: of images with several captions (columns title, title_2, ...) take one an epoch, or
            the first.
        spread_captions: spread samples of equal captions over the batches of an epoch, so that few
            of them are taken for negatives of each other.
        flip: mirror each training image left to right with probability 1/2; the paper does not.
        crop_margin: train on random cuts out of images that are resized to be this much larger than
            the model takes them; 0.125 cuts 256 pixels out of 288.
        model: open_clip's name of the model, hf-hub:ORG/REPO, local-dir:FOLDER, "biomedclip",
            "fastht-tiny", or, with --text, echocare:FILE, EchoCare's encoder.
        pretrained: open_clip's tag or the file of its weights; "none" starts from random ones.
            Models of hf-hub: and local-dir: bring their own.
        text: text tower in place of the model's own (own): a text encoder of transformers,
            hf:ORG/NAME (@REVISION) or local-dir:FOLDER, or tiny-bert, small and random.
        head: what stands behind each tower and trains: mlp-N, two linear layers to N numbers, in
            place of the towers' projections (mlp-256 is EchoCare-CLIP's), or none.
        method: what is put in and trains: HT adapters in the vision tower, LoRA there, LoRA in the
            text tower too, or nothing (none): then the heads or projections of both towers and the
            logits' scale train. Heads always train.
        train_towers: weights of the model itself that train as well: none, those of the image or
            the text tower, or both.
        tower_lr_scale: learning rate of towers' weights relative to that of the rest.
        decay_all: weight decay on norms, biases and the logits' scale too.
        loss: symmetric InfoNCE, or the sigmoid loss, for models with a logit bias such as SigLIP's.
        positives: which samples of a batch are positives of each other: those of one caption, label
            or patient, or none.
        tagging: what tags of findings do: semantic soft labels, and a tag graph.
        lora_rank: r of LoRA.
        backend: implementation of the HT adapter; see `fastht doctor`.
        adapter: what HT adapters are made of.
        trainer: how to train.
        out: folder of the run.
        resume: go on with the run in that folder.
        recipe: echocare-clip-{clip,bert}-{heads,image,text,full}: the published settings, which
            options beside it change. Others train several times and compare: ultrasound-clip
            (semantic soft labels and a tag graph) with plain CLIP training, or its ablation, over
            three seeds; echocare-clip-ablation compares what trains of a dual encoder.
    """

    cleaning: Cleaning = "letters"
    caption_part: CaptionPart = "start"
    val_fraction: float = 0.1
    titles: Literal["epoch", "first"] = "epoch"
    spread_captions: bool = True
    flip: bool = False
    crop_margin: float = 0.0
    model: str = "ViT-B-16"
    pretrained: str = "openai"
    text: str = OWN
    head: str = NO_HEAD
    method: Method = "ht"
    train_towers: Towers = "none"
    tower_lr_scale: float = 0.1
    decay_all: bool = False
    loss: Loss = "clip"
    positives: Positives = "none"
    tagging: TagOptions = field(default_factory=TagOptions)
    lora_rank: int = 16
    backend: str = "auto"
    adapter: HTConfig = field(default_factory=HTConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    out: Path = Path("runs/train")
    resume: bool = False
    recipe: Recipe = "none"

    @property
    def names(self) -> EncoderNames:
        """What the model is made of."""
        return EncoderNames(
            self.model, self.pretrained, self.text, self.head, seed=self.trainer.seed
        )

    def plain(self) -> dict[str, Any]:
        """Return the arguments as plain JSON types."""
        plain = dataclasses.asdict(self)
        plain["adapter"] = self.adapter.to_dict()
        plain["image_dirs"] = [str(path) for path in self.image_dirs]
        plain["out"] = str(self.out)
        return plain

    def signature(self, several: bool, spread: bool) -> dict[str, Any]:
        """Return those that decide a run's numbers: a resumed run must have the same.

        What is new and not in use is left out, so that runs from before it go on.

        Args:
            several: whether images have several captions.
            spread: whether equal captions are spread over batches.
        """
        plain = self.plain()
        for name in ("out", "resume", "image_dirs", "recipe"):
            del plain[name]
        for name, counts in (("titles", several), ("spread_captions", spread)):
            if not counts:
                del plain[name]
        if not self.tagging.needed:
            del plain["tagging"]
        if self.train_towers == "none":
            del plain["train_towers"], plain["tower_lr_scale"]
        trainer = plain.pop("trainer")
        for name in ("workers", "checkpoint_steps", "recompute"):
            del trainer[name]
        for name, unused in _UNUSED.items():
            held = trainer if name in trainer else plain
            if held[name] == unused:
                del held[name]
        return plain | trainer

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be at least 1")
        if not (math.isfinite(self.tower_lr_scale) and self.tower_lr_scale > 0):
            raise ValueError(
                f"tower_lr_scale is {self.tower_lr_scale}; it must be a finite number over 0 (or "
                "--train-towers none)"
            )
        if not 0 <= self.crop_margin <= 1:
            raise ValueError(f"crop_margin is {self.crop_margin}; it must be from 0 to 1")


# The embedded sample is for trying things out on a machine without data, weights or GPU: a small
# model, few epochs, and smaller batches and larger steps, as few images and a random base need.
SAMPLE_ARGUMENTS = TrainArguments(
    val_fraction=0.2,
    flip=True,
    model=TINY_MODEL,
    pretrained="none",
    trainer=TrainerConfig(epochs=12, batch_size=16, lr=3e-3, patience=0, workers=0),
    out=Path("runs/sample"),
)
