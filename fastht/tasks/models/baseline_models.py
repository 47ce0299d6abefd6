"""Models that baselines wrap around towers of other libraries, from images to logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastht.tasks.models.features import BlockFeatures


def next_multiple(size: int, patch_size: int) -> int:
    """Return the smallest multiple of the patch size that is not below ``size``."""
    return -(-size // patch_size) * patch_size


def fit_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Enlarge images ``[B, 3, H, W]`` bilinearly until whole patches cover them.

    A tower would leave out the rest of the last patch. Images that fit stay as they are.
    """
    height, width = (next_multiple(side, patch_size) for side in images.shape[-2:])
    return _resize(images, (height, width))


class TiledFeatures(BlockFeatures):
    """Features of a tower's blocks for images of any size; see :func:`fit_to_patches`.

    Args:
        model: as of :class:`BlockFeatures`.
        blocks: as of :class:`BlockFeatures`.
        patch_size: side of the tower's patches in pixels.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int] | None, patch_size: int) -> None:
        super().__init__(model, blocks)
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return ``[B, D, H, W]`` for each of the blocks, in their order."""
        return super().forward(fit_to_patches(images, self.patch_size))


class PromptedSegmenter(nn.Module):
    """CLIPSeg, asked for the same thing in every image.

    CLIPSeg gives a pixel one logit l. Its two-class logits are -l/2 and l/2, whose softmax is the
    sigmoid of l.

    Args:
        model: CLIPSegForImageSegmentation of transformers; its text tower is not called.
        condition: ``[1, E]``, the text tower's embedding of what to look for.
    """

    condition: Tensor

    def __init__(self, model: nn.Module, condition: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("condition", condition)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, 2, size, size]`` of square images ``[B, 3, size, size]``."""
        config: Any = self.model.config
        output = self.model(
            pixel_values=fit_to_patches(images, config.vision_config.patch_size),
            conditional_embeddings=self.condition.expand(len(images), -1),
            interpolate_pos_encoding=True,
        )
        half = output.logits / 2
        logits = torch.stack([-half, half], dim=1)
        return _resize(logits, (images.shape[-2], images.shape[-1]))


class LinearProbe(nn.Module):
    """A linear layer on a tower's own image features, for probing it or for training all of it.

    A frozen tower stays in evaluation mode, so that running statistics are frozen too. Of one that
    trains, whatever its features depend on does.

    Args:
        tower: images to pooled features ``[B, E]``, or to a tuple that begins with them.
        classes: how many there are.
        image_size: side in pixels of the images that the tower takes.
        frozen: whether the linear layer alone trains.
    """

    def __init__(
        self, tower: nn.Module, classes: int, image_size: int, *, frozen: bool = True
    ) -> None:
        super().__init__()
        self.frozen = frozen
        self.tower = tower.requires_grad_(not frozen).eval()
        # Towers of different libraries say in different places how long their features are.
        features = self._encode(torch.zeros(1, 3, image_size, image_size))
        if not frozen:
            parameters = list(tower.parameters())
            reached = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
            for parameter, gradient in zip(parameters, reached, strict=True):
                parameter.requires_grad_(gradient is not None)
        self.linear = nn.Linear(features.shape[1], classes)

    def train(self, mode: bool = True) -> LinearProbe:
        """Set the mode of what trains."""
        super().train(mode)
        if self.frozen:
            self.tower.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[B, classes]`` of images ``[B, 3, H, W]``."""
        return self.linear(self._encode(images))

    def _encode(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            output = self.tower(images)
        return output[0] if isinstance(output, tuple) else output


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
