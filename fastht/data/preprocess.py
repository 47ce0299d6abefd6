"""From a picture to a model's input, by Pillow and PyTorch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastht.data.pixels import DataError
from fastht.data.resize import Placement, Resize, place

Size = tuple[int, int]  # height, width
_MIN_SIDE = 4  # pixels of a letterboxed image: what the augmentation can blur


@dataclass(frozen=True)
class Preprocess:
    """What torchvision's Resize, CenterCrop, ToTensor and Normalize make of an RGB picture.

    Bit for bit the same. Processes that only read images import it without torchvision, which
    takes as long to import as PyTorch: where workers are spawned, each would.

    resize: of the shorter side, or (height, width).
    resample: number of Pillow's filter.
    crop: (height, width) cut out of the middle, black where the picture ends; None cuts nothing.
    mean, std: of the channels of values in [0, 1].
    """

    resize: int | Size
    resample: int
    crop: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, picture: Image.Image) -> Tensor:
        """picture: mode "RGB". Returns [3, H, W], float32."""
        size = self._resized((picture.height, picture.width))
        if size != (picture.height, picture.width):
            picture = picture.resize(size[::-1], Image.Resampling(self.resample))
        if self.crop is not None:
            picture = _cut_middle(picture, self.crop)
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return values.sub_(mean).div_(std)

    def _resized(self, shape: Size) -> Size:
        if not isinstance(self.resize, int):
            return self.resize
        short, long = sorted(shape)
        longer = int(self.resize * long / short)
        height, width = shape
        return (longer, self.resize) if height > width else (self.resize, longer)


@dataclass(frozen=True)
class SquarePreprocess:
    """How segmentation and classification make a square of an RGB picture.

    size: side of the square in pixels.
    mean, std: of the channels of values in [0, 1].
    resize: squash fills the square, letterbox keeps the picture's shape and leaves a black border.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    resize: Resize = "squash"

    def __call__(self, picture: Image.Image, name: str = "the image") -> Tensor:
        """picture: mode "RGB". Returns [3, size, size], float32. Raises as resized."""
        placement, image = self.resized(picture, name)
        return self.normalise(placement.pad(image))

    def placement(self, shape: Size) -> Placement:
        """Where in the square a picture of `shape` comes to lie."""
        return place(shape, self.size, self.resize)

    def resized(self, picture: Image.Image, name: str) -> tuple[Placement, Tensor]:
        """The picture, uint8 [3, height, width], as large as it is in the square, and its place.

        Raises DataError, with the name, if it is too long and thin for a letterbox.
        """
        placement = self.placement((picture.height, picture.width))
        if min(placement.height, placement.width) < _MIN_SIDE:
            what = f"{picture.width} x {picture.height} pixels are too long and thin to letterbox"
            raise DataError(f"{name}: {what}; crop the image, or use --resize squash")
        small = picture.resize((placement.width, placement.height), Image.Resampling.BICUBIC)
        return placement, torch.from_numpy(np.array(small)).permute(2, 0, 1)

    def normalise(self, image: Tensor) -> Tensor:
        """image: uint8 [3, H, W]. Returns float32."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (self.mean, self.std)
        )
        return (image / 255 - mean) / std


def _cut_middle(picture: Image.Image, crop: Size) -> Image.Image:
    """Cut out the middle; a picture that is smaller is laid in the middle of black first."""
    height, width = picture.height, picture.width
    down, right = max(crop[0] - height, 0), max(crop[1] - width, 0)
    if down or right:
        whole = Image.new(picture.mode, (width + right, height + down))
        whole.paste(picture, (right // 2, down // 2))
        picture, height, width = whole, height + down, width + right
    top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
    return picture.crop((left, top, left + crop[1], top + crop[0]))
