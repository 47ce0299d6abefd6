"""Models of open_clip and timm by name, with their weights or random ones."""

from __future__ import annotations

import importlib.resources
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import convert_state_dict, load_state_dict, resize_pos_embed
from PIL import Image
from torch import nn
from torchvision.transforms import (
    CenterCrop,
    Compose,
    InterpolationMode,
    Normalize,
    Resize,
    ToTensor,
)

from fastht.backbones import find_backbone
from fastht.data.preprocess import Preprocess
from fastht.seeded import seeded
from fastht.tasks.models.echocare import ECHOCARE, MEAN, STD, build_echocare
from fastht.tasks.models.released import load_released, released_state

# A CLIP of a few million parameters; its architecture comes with fastht, its weights are random.
TINY_MODEL = "fastht-tiny"
TIMM = "timm:"
_HUB = {"biomedclip": "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"}
_FILTERS = {
    InterpolationMode.BICUBIC: int(Image.Resampling.BICUBIC),
    InterpolationMode.BILINEAR: int(Image.Resampling.BILINEAR),
    InterpolationMode.NEAREST: int(Image.Resampling.NEAREST),
}


@dataclass(frozen=True)
class VisionModel:
    """A vision tower, or a whole model with a head on it, and how its images are normalised.

    Attributes:
        module: takes images ``[B, 3, H, W]``.
        mean: of the three channels, for values from 0 to 1.
        std: of the three channels.
    """

    module: nn.Module
    mean: Sequence[float]
    std: Sequence[float]


def build_vision(name: str, pretrained: str, image_size: int) -> VisionModel:
    """Return a vision tower in float32 on the CPU, built for square images of a size.

    Args:
        name: as :func:`build_clip` takes it, ``timm:NAME`` or ``echocare:FILE``.
        pretrained: open_clip's tag, ``"timm"`` for timm's own weights, the file of the weights, or
            ``"none"`` for random ones. Of a file for open_clip, the vision tower alone is read: its
            text tower may be another, as in UniMed-CLIP's.
        image_size: side of the images in pixels.

    Raises:
        ValueError: there is no such model, its weights cannot be had, or the file does not fit it.
    """
    if name.startswith(TIMM):
        return _build_timm(name.removeprefix(TIMM), pretrained, image_size)
    if name.startswith(ECHOCARE):
        return VisionModel(build_echocare(name), MEAN, STD)
    from_file = Path(pretrained).is_file()
    model, _ = build_clip(name, "none" if from_file else pretrained, image_size)
    vision: Any = model.visual
    if from_file:
        of_timm = hasattr(vision, "set_input_size")
        if of_timm:
            # The file has the positions of timm's own size, which open_clip has changed already.
            vision.set_input_size(vision.trunk.pretrained_cfg["input_size"][1:])
        _load_vision(model, Path(pretrained))
        if of_timm:
            vision.set_input_size(image_size)
    return VisionModel(vision, vision.image_mean, vision.image_std)


def build_features(name: str, pretrained: str) -> tuple[nn.Module, Any]:
    """Return a frozen model of timm, images to pooled features, and its own image transform.

    Args:
        name: of timm, any architecture.
        pretrained: ``"timm"``, the file of the weights, or ``"none"``.

    Raises:
        ValueError: there is no such model, its weights cannot be had, or the file does not fit it.
    """
    import timm

    model = _build_timm(name, pretrained, None).module
    data = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**data, is_training=False)
    return model.requires_grad_(False).eval(), _light(transform)


def tower_depth(name: str, image_size: int) -> int:
    """Return how many blocks the vision tower of a model has, from its config where that says it.

    Args:
        name: as :func:`build_vision` takes it.
        image_size: likewise.

    Raises:
        UnsupportedModelError: the tower is no vision transformer.
        ValueError: there is no such model.
    """
    if not name.startswith(TIMM):
        try:
            config = open_clip.get_model_config(model_source(name)) or {}
        except (OSError, ValueError, RuntimeError):
            config = {}  # what is wrong with it is told when it is built
        tower = config.get("vision_cfg", {})
        if isinstance(layers := tower.get("layers"), int) and "timm_model_name" not in tower:
            return layers
    return len(find_backbone(build_vision(name, "none", image_size).module).blocks)


def build_clip(name: str, pretrained: str, image_size: int | None = None) -> tuple[nn.Module, Any]:
    """Return a model of open_clip in float32 on the CPU, and its image transform.

    Args:
        name: open_clip's name, ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, ``biomedclip``, or
            ``TINY_MODEL``.
        pretrained: open_clip's tag or the file of the weights, which may be Ultrasound-CLIP's
            checkpoint; ``"none"`` draws random ones, the same each time.
        image_size: side of the images in pixels; ``None`` takes the model's own.

    Raises:
        ValueError: open_clip has no such model or cannot get its weights.
    """
    source = model_source(name)
    if ":" not in source and source not in open_clip.list_models():
        raise ValueError(
            f"open_clip has no model {name!r}; open_clip.list_models() names those it has, "
            f"{TINY_MODEL!r} is fastht's own for trying things out, and hf-hub:ORG/REPO or "
            "local-dir:FOLDER take others"
        )
    released = released_state(Path(pretrained)) if Path(pretrained).is_file() else None
    try:
        if pretrained == "none" or released is not None:
            # The base is drawn from a seed of its own: it does not change with the run's.
            with seeded(0):
                model, _, transform = open_clip.create_model_and_transforms(
                    source,
                    load_weights=False,
                    pretrained_text=False,
                    force_image_size=image_size,
                )
        else:
            model, transform = open_clip.create_model_from_pretrained(
                source, pretrained, force_image_size=image_size
            )
        if released is not None:
            print(load_released(model, released, Path(pretrained)), flush=True)
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(
            f"cannot build {source} with pretrained={pretrained!r}: {error}\n"
            "Give the file of the weights (--pretrained FILE), or --pretrained none to start "
            "from random ones"
        ) from error
    return model, _light(transform)


def _light(transform: Any) -> Any:
    """Return the same transform for RGB images, but made of little, if it can be.

    A worker process that is spawned imports what its transform is made of: open_clip takes as long
    as everything else, torchvision as long as PyTorch. open_clip's own steps do nothing to RGB
    images but to make tensors of them.
    """
    steps: list[Any] = []
    for step in getattr(transform, "transforms", []):
        name = getattr(step, "__name__", type(step).__name__)
        if type(step).__module__.startswith("torchvision."):
            steps.append(step)
        elif name == "MaybeToTensor":
            steps.append(ToTensor())
        elif name not in ("MaybeConvertMode", "_convert_to_rgb"):
            return transform
    return _preprocess(steps) or (Compose(steps) if steps else transform)


def _preprocess(steps: list[Any]) -> Preprocess | None:
    """Return the usual steps of torchvision as one without it; ``None``: they are others."""
    middle = [step for step in steps if isinstance(step, CenterCrop)]
    kinds = [Resize, *([CenterCrop] if middle else []), ToTensor, Normalize]
    if [type(step) for step in steps] != kinds or steps[0].max_size is not None:
        return None
    size, filter_ = steps[0].size, steps[0].interpolation
    if filter_ not in _FILTERS:
        return None
    height, *rest = (size,) if isinstance(size, int) else size
    return Preprocess(
        resize=(height, *rest) if rest else height,
        resample=_FILTERS[filter_],
        crop=tuple(middle[0].size) if middle else None,
        mean=tuple(map(float, steps[-1].mean)),
        std=tuple(map(float, steps[-1].std)),
    )


def model_source(name: str) -> str:
    """Return what open_clip calls a model: itself, but for fastht's own tiny one."""
    if name != TINY_MODEL:
        return _HUB.get(name, name)
    return f"local-dir:{importlib.resources.files('fastht.data') / 'tiny_clip'}"


def _build_timm(name: str, pretrained: str, image_size: int | None) -> VisionModel:
    import timm

    from_file = Path(pretrained).is_file()
    if not from_file and pretrained not in ("timm", "none"):
        raise ValueError(
            f"{TIMM}{name} with pretrained={pretrained!r}: choose timm for its own weights, the "
            "file of other ones, or none for random ones"
        )
    try:
        with seeded(0):
            size: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
            model = timm.create_model(name, pretrained=pretrained == "timm", num_classes=0, **size)
    except (RuntimeError, OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"timm cannot build {name} with pretrained={pretrained!r}: {error}\n"
            "timm.list_models() names its models; give the file of the weights "
            "(--pretrained FILE), or --pretrained none to start from random ones"
        ) from error
    if from_file:
        _load_timm(model, Path(pretrained))
    data = timm.data.resolve_model_data_config(model)
    return VisionModel(model, data["mean"], data["std"])


def _load_timm(model: nn.Module, file: Path) -> None:
    """Read a model of timm from a file of its weights, which may hold a classifier too."""
    import timm

    with _reading(file, f"the weights of timm's {type(model).__name__}"):
        state = timm.models.load_state_dict(str(file))
        # What timm itself calls: renames weights and resizes the position embedding.
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            state = convert(state, model)
        missing = model.load_state_dict(state, strict=False).missing_keys
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")


def _load_vision(model: nn.Module, file: Path) -> None:
    """Read the vision tower of an open_clip model from a file of the whole model's weights."""
    with _reading(file, f"the vision tower of {type(model).__name__}"):
        state = convert_state_dict(model, load_state_dict(str(file)))
        resize_pos_embed(state, model)
        weights = {
            name.removeprefix("visual."): tensor
            for name, tensor in state.items()
            if name.startswith("visual.")
        }
        if not weights:
            raise ValueError("it holds no weight whose name begins with visual.")
        model.visual.load_state_dict(weights)  # type: ignore[union-attr]


@contextmanager
def _reading(file: Path, what: str) -> Iterator[None]:
    """Turn what goes wrong with a file into one ValueError that names it."""
    try:
        yield
    except Exception as error:  # a file of anything fails in any way
        reason = textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...")
        raise ValueError(f"{file} does not hold {what}: {reason}") from error
