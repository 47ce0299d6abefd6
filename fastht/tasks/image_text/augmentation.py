"""Random views of training images: mirrored, and cut out of larger ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastht.data.preprocess import Preprocess


def mirror(pixels: Tensor) -> Tensor:
    """Mirror each image of ``[B, 3, H, W]`` left to right with probability 1/2."""
    chosen = torch.rand(len(pixels)).lt(0.5).to(pixels.device)
    return torch.where(chosen[:, None, None, None], pixels.flip(3), pixels)


def cut_at_random(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a part of a size out of each image of ``[B, 3, H, W]``, all places alike likely."""
    down = torch.randint(pixels.shape[2] - size[0] + 1, (len(pixels),)).tolist()
    right = torch.randint(pixels.shape[3] - size[1] + 1, (len(pixels),)).tolist()
    parts = [
        image[:, top : top + size[0], left : left + size[1]]
        for image, top, left in zip(pixels, down, right, strict=True)
    ]
    return torch.stack(parts)


def with_margin(transform: Any, margin: float) -> tuple[Preprocess, tuple[int, int]]:
    """Return a transform whose images are larger, and the size that the model takes.

    Args:
        transform: the model's own: resize and cut out the middle.
        margin: by how much of its side an image is larger: 1/8 makes 288 of 256 pixels.

    Raises:
        ValueError: the transform is another.
    """
    if not isinstance(transform, Preprocess):
        raise ValueError(
            "--crop-margin needs a model that resizes images and cuts out the middle; leave it out"
        )
    resize = transform.resize
    size = transform.crop or ((resize, resize) if isinstance(resize, int) else resize)

    def larger(side: int) -> int:
        return round(side * (1 + margin))

    grown = larger(resize) if isinstance(resize, int) else tuple(map(larger, resize))
    crop = (larger(size[0]), larger(size[1]))
    return replace(transform, resize=grown, crop=crop), size  # type: ignore[arg-type]
