"""The vision towers that training steps are compared on: how they are built and called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from fastht.backbones import find_backbone
from fastht.seeded import seeded


@dataclass(frozen=True)
class ModelSpec:
    """A vision tower with random weights, described so that any process can build it.

    Attributes:
        library: who knows its name.
        name: timm's or open_clip's; open_clip's ``local-dir:FOLDER`` and ``hf-hub:ORG/REPO`` too.
        image_size: side of the images in pixels; ``None`` takes the tower's own.
        arguments: further arguments of timm's constructor, as pairs.
    """

    library: Literal["timm", "open_clip"]
    name: str
    image_size: int | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        size = "" if self.image_size is None else f" at {self.image_size} px"
        return f"{self.name}{size}"

    def build(self) -> nn.Module:
        """Return the tower, on the CPU and in float32; of open_clip's models without the text.

        Raises:
            ValueError: the library has no such model, or cannot build it.
            UnsupportedModelError: it has no vision transformer.
        """
        make = {"timm": self._build_timm, "open_clip": self._build_open_clip}[self.library]
        with seeded(0):
            try:
                model = make()
            except (RuntimeError, OSError, TypeError, ValueError) as error:
                raise ValueError(f"{self.library} cannot build {self}: {error}") from error
        find_backbone(model)
        return model

    def _build_timm(self) -> nn.Module:
        import timm

        arguments: dict[str, Any] = dict(self.arguments)
        if self.image_size is not None:
            arguments["img_size"] = self.image_size
        return timm.create_model(self.name, num_classes=0, **arguments)

    def _build_open_clip(self) -> nn.Module:
        import open_clip

        model = open_clip.create_model(
            self.name,
            load_weights=False,
            pretrained_text=False,
            force_image_size=self.image_size,
        )
        return model.visual


# For trying things out: builds and steps in milliseconds.
TINY = ModelSpec(
    "timm",
    "vit_tiny_patch16_224",
    32,
    (("patch_size", 8), ("embed_dim", 64), ("depth", 2), ("num_heads", 2)),
)


def image_size(tower: nn.Module) -> tuple[int, int]:
    """Return the height and width in pixels that a tower of :class:`ModelSpec` was built for."""
    size: Any = getattr(tower, "image_size", None)  # open_clip
    if size is None:
        size = find_backbone(tower).tower.patch_embed.img_size  # type: ignore[union-attr]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Return a model's image features.

    Args:
        model: a CLIP-like model, or a vision tower whose output is one tensor, a tuple that begins
            with the pooled features, or an output of transformers.
        images: ``[B, 3, H, W]``.
    """
    callables = (getattr(model, name, None) for name in ("encode_image", "get_image_features"))
    output = next((c for c in callables if c is not None), model)(images)
    for name in ("image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output[0] if isinstance(output, tuple) else output
