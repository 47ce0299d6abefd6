"""Copies of images as they come about in published sets, and images of one scanner."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance
from scipy.ndimage import gaussian_filter

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def reencode(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=int(generator.integers(30, 90)))
    with Image.open(stream) as read:
        return read.convert("RGB")


def resize(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Between a half and twice the size, either axis by itself."""
    factors = generator.uniform(0.5, 2, 2)
    size = [round(side * factor) for side, factor in zip(image.size, factors, strict=True)]
    return image.resize((size[0], size[1]), Image.Resampling.BICUBIC)


def crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Up to a tenth off every side."""
    left, top, right, bottom = generator.uniform(0, 0.1, 4)
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(map(round, box)))  # type: ignore[arg-type]


def brighten(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(generator.choice([0.6, 0.8, 1.25, 1.5]))


CHANGES: dict[str, Change] = {
    "re-encoded": reencode,
    "resized": resize,
    "cropped": crop,
    "brightness": brighten,
}


def scanner_image(path: Path, seed: int, side: int = 240) -> None:
    """Speckle in the sector and under the marks of one scanner: only the tissue tells them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    depth, angle = np.hypot(x - 0.5, y + 0.15), np.abs(np.arctan2(x - 0.5, y + 0.15))
    parts = gaussian_filter(generator.standard_normal((2, side, side)), (0, 1.2, 1.2))
    amplitude = np.hypot(*parts)
    rough = gaussian_filter(generator.standard_normal((side, side)), side / 14)
    level = 20 * np.log10(amplitude / amplitude.mean() + 1e-3) + 0.8 * side * rough - 12 * y
    gray = ((level + 45) / 55).clip(0, 1) * 255 * ((depth > 0.2) & (depth < 1.1) & (angle < 0.6))
    image = Image.fromarray(gray.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.text((5, 5), "SIMULATED", fill=255)
    pen.rectangle((220, 20, 228, 120), outline=200, fill=120)
    for tick in range(20, 220, 20):
        pen.line((232, tick, 238, tick), fill=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
