"""How an image of any shape becomes the square that a model takes, and how maps come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Resize = Literal["squash", "letterbox"]
"""squash: fill the square without regard to the shape, as the paper; letterbox: keep the shape."""

_TOUCHED = 1e-6  # of a pixel: less than any share that is computed

RESIZES: tuple[Resize, ...] = get_args(Resize)


@dataclass(frozen=True, slots=True)
class Placement:
    """The rectangle of a square of `size` x `size` pixels that holds the image.

    What is not in it is border: black, and no part of the image.
    """

    size: int
    top: int
    left: int
    height: int
    width: int

    @property
    def is_whole(self) -> bool:
        """Whether there is no border."""
        return self.height == self.width == self.size

    def pad(self, image: Tensor) -> Tensor:
        """Put an image [..., height, width] into the square; the border is 0."""
        if self.is_whole:
            return image
        right, bottom = self.size - self.left - self.width, self.size - self.top - self.height
        return F.pad(image, (self.left, right, self.top, bottom))

    def cut(self, maps: Tensor) -> Tensor:
        """The rectangle of maps [..., size, size], as [..., height, width]."""
        return maps[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def inside(self) -> Tensor:
        """Where the image is, bool [size, size]."""
        return self.pad(torch.ones(self.height, self.width, dtype=torch.bool))

    def restore(self, maps: Tensor, shape: tuple[int, int]) -> Tensor:
        """Undo the resizing of maps [B, C, size, size]; float [B, C, *shape], without the border.

        Bilinear between the centres of pixels, by which images were resized too, so that nothing
        moves. Where pixels become fewer it averages over those that one replaces.
        """
        options = {"mode": "bilinear", "align_corners": False, "antialias": True}
        return F.interpolate(self.cut(maps), shape, **options)  # type: ignore[arg-type]


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask so that nothing that is marked vanishes, uint8 [height, width] of {0, 1}.

    By nearest neighbour; what that leaves out altogether, as a lesion that falls between the
    pixels it looks at, stays as the pixels that it covers most. So a mask that is not empty never
    becomes empty, and lesions that nearest neighbour keeps are as it has them.

    mask: uint8 [height, width] of {0, 1}.
    size: new width and height.
    """
    found = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    lost = _lost(mask, found)
    if not lost.any():
        return found
    most = F.max_pool2d(lost, 3, stride=1, padding=1)
    return found | ((lost > 0) & (lost == most))[0].numpy().astype(np.uint8)


def lost_when_small(mask: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether nearest neighbour leaves out something that is marked; see shrink_mask."""
    found = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return bool(_lost(mask, found).any())


def _lost(mask: np.ndarray, found: np.ndarray) -> Tensor:
    """How much of each pixel is marked where nearest neighbour sees nothing near, [1, h, w]."""
    size = found.shape[::-1]
    if (size[0] >= mask.shape[1] and size[1] >= mask.shape[0]) or not mask.any():
        return torch.zeros(1, *found.shape)
    shares = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    # A pixel on the edge of two boxes is in neither where rounding puts it outside both.
    touched = F.adaptive_max_pool2d(torch.from_numpy(mask).float()[None], found.shape)
    covered = torch.maximum(torch.from_numpy(np.array(shares))[None], touched * _TOUCHED)
    seen = F.max_pool2d(torch.from_numpy(found).float()[None], 3, stride=1, padding=1) > 0
    return covered * ~seen


def place(shape: tuple[int, int], size: int, resize: Resize) -> Placement:
    """Where an image of `shape` (height, width) comes to lie in a square.

    letterbox enlarges or shrinks both sides alike until the longer one is `size`; the shorter one
    is rounded to whole pixels, at least one, and lies in the middle.
    """
    if resize == "squash":
        return Placement(size, 0, 0, size, size)
    height, width = (max(1, round(size * side / max(shape))) for side in shape)
    return Placement(size, (size - height) // 2, (size - width) // 2, height, width)
