"""From a picture to a model's input, by Pillow and PyTorch alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]  # height, width


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
