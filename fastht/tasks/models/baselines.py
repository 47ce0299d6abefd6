"""Other models to compare with, by one name each: what segments and classifies without adapters."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from open_clip import SimpleTokenizer
from torch import Tensor, nn

from fastht.data.cases import Task
from fastht.seeded import seeded
from fastht.tasks.models.baseline_models import (
    LinearProbe,
    PromptedSegmenter,
    TiledFeatures,
    next_multiple,
)
from fastht.tasks.models.build import TIMM, VisionModel, build_vision
from fastht.tasks.models.heads import Classifier, Segmenter

DINOV2 = f"{TIMM}vit_small_patch14_dinov2"
_DINOV2_PATCH = 14
CLIPSEG = "CIDAS/clipseg-rd64-refined"


@dataclass(frozen=True)
class BaselineSettings:
    """What baselines are built from; each takes what it needs.

    Attributes:
        task: which logits: of two masks, or of classes.
        classes: how many classes there are to classify.
        image_size: side of the images in pixels.
        width: features of the head.
        blocks: blocks of the tower whose features the head takes, from 0; ``None``: by its depth.
        model: the tower of a linear probe and of full fine-tuning, as :func:`build_vision` takes
            it.
        pretrained: its weights, likewise. Of the other baselines, those that have weights take
            their library's, but for ``"none"``, which stands for random ones.
        prompt: what CLIPSeg looks for.
        tower: makes that tower, in place of both; default: they do.
    """

    task: Task
    classes: int
    image_size: int
    width: int
    blocks: tuple[int, ...] | None
    model: str
    pretrained: str
    prompt: str
    tower: Callable[[], VisionModel] | None = None


@dataclass(frozen=True)
class Baseline:
    """A model to compare with.

    Attributes:
        name: what the command line and tables call it.
        detail: one line for people.
        tasks: what it is for.
        of_tower: whether it stands on the tower of the settings and not on one of its own.
        build: makes the model: images ``[B, 3, H, W]`` to logits ``[B, 2, H, W]`` of masks or
            ``[B, classes]``; what is to be trained has ``requires_grad``. What starts from random
            numbers draws them from torch's global generator, but for what is frozen. Raises
            ``ValueError`` if a library or the weights are missing, or the settings do not fit.
    """

    name: str
    detail: str
    tasks: frozenset[Task]
    build: Callable[[BaselineSettings], VisionModel]
    of_tower: bool = False


def build_baseline(name: str, settings: BaselineSettings) -> VisionModel:
    """Return the model of a baseline in float32 on the CPU; see :class:`Baseline`.

    Raises:
        ValueError: there is no such baseline, or not for this task; or as ``Baseline.build``.
    """
    baseline = BASELINES.get(name)
    if baseline is None or settings.task not in baseline.tasks:
        able = ", ".join(b.name for b in BASELINES.values() if settings.task in b.tasks)
        raise ValueError(f"there is no baseline {name!r} to {settings.task}; choose of {able}")
    return baseline.build(settings)


def _build_unet(settings: BaselineSettings) -> VisionModel:
    if settings.image_size % 16 or settings.image_size < 32:
        raise ValueError(
            f"unet cannot take images of {settings.image_size} pixels: it halves them four times, "
            "so that image_size must be a multiple of 16, from 32"
        )
    nets = _import("monai.networks.nets", "unet")
    model = nets.UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=2,
        channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2),
        num_res_units=2,
    )
    return VisionModel(model, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def _build_resnet18(settings: BaselineSettings) -> VisionModel:
    models = _import("torchvision.models", "resnet18")
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    normal = weights.transforms()
    with _getting_weights("resnet18 of torchvision"):
        model = models.resnet18(weights=None if settings.pretrained == "none" else weights)
    model.fc = nn.Linear(model.fc.in_features, settings.classes)
    return VisionModel(model, normal.mean, normal.std)


def _build_dinov2(settings: BaselineSettings) -> VisionModel:
    _import("timm", "dinov2")
    vision = build_vision(
        DINOV2,
        "none" if settings.pretrained == "none" else "timm",
        next_multiple(settings.image_size, _DINOV2_PATCH),
    )
    vision.module.requires_grad_(False)
    features = TiledFeatures(vision.module, settings.blocks, _DINOV2_PATCH)
    model: nn.Module = (
        Segmenter(features, width=settings.width)
        if settings.task == "segment"
        else Classifier(features, settings.classes, settings.width)
    )
    return replace(vision, module=model)


def _build_clipseg(settings: BaselineSettings) -> VisionModel:
    transformers = _import("transformers", "clipseg")
    kind = transformers.CLIPSegForImageSegmentation
    if settings.pretrained == "none":
        # As in build_clip: the base does not change with the run's seed.
        with seeded(0):
            model = kind(_clipseg_config())
    else:
        with _getting_weights(f"{CLIPSEG} of transformers"):
            model = kind.from_pretrained(CLIPSEG).float()
    model.clip.requires_grad_(False)
    tokens = _tokenize(settings.prompt, model.config.text_config.max_position_embeddings)
    condition = model.get_conditional_embeddings(batch_size=1, input_ids=tokens)
    del model.clip.text_model  # a third of the parameters, and done with
    normal = _import("transformers.image_utils", "clipseg")
    return VisionModel(
        PromptedSegmenter(model, condition),
        normal.IMAGENET_DEFAULT_MEAN,
        normal.IMAGENET_DEFAULT_STD,
    )


def _clipseg_config() -> Any:
    """Return the architecture of :data:`CLIPSEG`."""
    from transformers import CLIPSegConfig

    return CLIPSegConfig(vision_config={"patch_size": 16}, use_complex_transposed_convolution=True)


def _tokenize(prompt: str, length: int) -> Tensor:
    """Return the token numbers ``[1, length]`` of a text in CLIP's vocabulary.

    Raises:
        ValueError: the text is longer than that.
    """
    tokenizer = SimpleTokenizer(context_length=length)
    count = len(tokenizer.encode(prompt)) + 2  # start and end
    if count > length:
        raise ValueError(f"the prompt has {count} tokens and clipseg reads {length}; shorten it")
    return tokenizer([prompt])


def _build_linear_probe(settings: BaselineSettings, *, frozen: bool = True) -> VisionModel:
    if settings.tower is None:
        vision = build_vision(settings.model, settings.pretrained, settings.image_size)
    else:
        vision = settings.tower()
    probe = LinearProbe(vision.module, settings.classes, settings.image_size, frozen=frozen)
    return replace(vision, module=probe)


BASELINES = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "unet",
            "MONAI's residual U-Net of five levels, trained from scratch",
            frozenset({"segment"}),
            _build_unet,
        ),
        Baseline(
            "resnet18",
            "torchvision's ResNet-18, all of it trained from ImageNet's weights",
            frozenset({"classify"}),
            _build_resnet18,
        ),
        Baseline(
            "dinov2",
            "timm's DINOv2 ViT-S/14, frozen; the same head trains",
            frozenset({"segment", "classify"}),
            _build_dinov2,
        ),
        Baseline(
            "clipseg",
            "transformers' CLIPSeg with one text prompt; its decoder trains",
            frozenset({"segment"}),
            _build_clipseg,
        ),
        Baseline(
            "linear-probe",
            "a linear layer on the frozen tower's own image features",
            frozenset({"classify"}),
            _build_linear_probe,
            of_tower=True,
        ),
        Baseline(
            "full",
            "a linear layer on the tower's own image features; all of the tower trains",
            frozenset({"classify"}),
            functools.partial(_build_linear_probe, frozen=False),
            of_tower=True,
        ),
    )
}


def _import(module: str, baseline: str) -> Any:
    """Import a library that only some baselines need."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{baseline} needs {module.partition('.')[0]}, which cannot be imported: {error}\n"
            "Install it with: pip install 'fastht[tasks]'"
        ) from error


@contextmanager
def _getting_weights(model: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot get the weights of {model}: {error}\n"
            "Start from random ones with --pretrained none"
        ) from error
