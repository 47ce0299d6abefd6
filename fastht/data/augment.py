"""The augmentation of the paper's tasks, for images with or without masks.

All random numbers come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

_BLUR_KERNEL = 7  # pixels; holds 99 % of the widest blur


class PaperAugmentation:
    """Half of the images get the strong augmentation and then the weak one, the others neither.

    The published code does the same with details that look accidental: where it draws a flip, it
    flips for certain, and it draws with repetition. Here each flip happens with probability 1/2
    and so does each strong operation, of which there are four in the mean, as there.
    """

    def __call__(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """image: uint8 [3, H, W]; mask: uint8 [H, W] or None; both come back so."""
        if torch.rand(()) < 0.5:
            return image, mask
        weak = weak_augmentation(image.shape[-2], image.shape[-1])
        image = tv_tensors.Image(strong_augmentation(image))
        if mask is None:
            return weak(image).as_subclass(Tensor), None
        image, mask = weak(image, tv_tensors.Mask(mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


def weak_augmentation(height: int, width: int) -> Callable[..., Any]:
    """Crop to the same shape and 0.8 to 1 of the area, resize to height x width, flip both ways."""
    shape = width / height
    return v2.Compose(
        [
            _Crop((height, width), scale=(0.8, 1.0), ratio=(shape, shape)),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
        ]
    )


def strong_augmentation(image: Tensor) -> Tensor:
    """Apply each strong operation with probability 1/2, in random order; image: uint8 [3, H, W]."""
    for position in torch.randperm(len(_STRONG)).tolist():
        operation, low, high = _STRONG[position]
        if torch.rand(()) < 0.5:
            image = operation(image, float(torch.empty(()).uniform_(low, high)))
    return image


class _Crop(v2.RandomResizedCrop):
    """A random resized crop that keeps masks on their images.

    torchvision resizes masks by "nearest", which takes the corner of a pixel for its centre and
    so shifts a mask by half a pixel against its image.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        plain = inpt.as_subclass(Tensor)[None]
        exact = v2.InterpolationMode.NEAREST_EXACT
        resized = F.resized_crop(plain, **params, size=self.size, interpolation=exact)
        return tv_tensors.wrap(resized[0], like=inpt)


# Operation, smallest and largest strength. Mild, since speckle and echogenicity are the findings:
# only the brightest quarter of gray values is ever solarized.
_STRONG: tuple[tuple[Callable[[Tensor, float], Tensor], float, float], ...] = (
    (lambda image, _: F.autocontrast(image), 0, 0),
    (lambda image, _: F.equalize(image), 0, 0),
    (lambda image, sigma: F.gaussian_blur(image, [_BLUR_KERNEL] * 2, [sigma] * 2), 0.75, 1.25),
    (F.adjust_contrast, 0.75, 1.25),
    (F.adjust_brightness, 0.75, 1.25),
    (F.adjust_sharpness, 0.75, 1.25),
    (lambda image, bits: F.posterize(image, int(bits)), 4, 9),
    (F.solarize, 192, 255),
)
