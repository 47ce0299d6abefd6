"""Whether two images show the same: laid over one another and compared piece by piece."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fastht.data.overlap.fingerprints import SIDE, WINDOWS, flatten

SAME = 0.6
"""Similarity from which two images are taken to show the same."""

_BATCH = 128
# Side of the images in pixels and steps of each stage: a window of the hashes misses by up to 3 %
# of a side, which a coarse look must bridge before a fine one.
_STAGES = ((32, 6), (48, 3), (96, 3))
_PIECES = 8  # along a side
_FEWEST = 8  # pieces with anything in them that have to be there
_CONTRAST = 0.15  # standard deviation of a flattened piece with anything in it
_HOPELESS = 0.15  # similarity after a stage below which no finer look helps
_STEADY = 1e-3  # of the normal equations' diagonal, for images that vary along one axis alone


def similarities(
    first: np.ndarray,
    second: np.ndarray,
    whole: np.ndarray,
    part: np.ndarray,
    windows: np.ndarray,
    *,
    title: str = "comparing pixels",
) -> np.ndarray:
    """How alike pairs of images are, float32 [n]: the lower quartile of pieces' correlations.

    The window of the second image that shows the same as the first is sought by least squares
    (Lucas and Kanade, 1981: shift and scale of either axis), then both are compared in pieces.
    Brightness and contrast play no part. A quartile over pieces, since marks of the scanner and the
    shape of its picture are the same in images of different patients.

    first, second: squares of two sources, uint8 [., SIDE, SIDE]. whole, part: positions of the
    pairs in them, [n]. windows: in WINDOWS, of the second image, where to begin, [n].
    """
    found = np.zeros(len(windows), np.float32)
    batches = range(0, len(windows), _BATCH)
    for start in tqdm(batches, desc=title, unit="batch", leave=False, disable=len(batches) < 8):
        side = slice(start, start + _BATCH)
        found[side] = _compare(
            torch.from_numpy(flatten(first[whole[side]])),
            torch.from_numpy(flatten(second[part[side]])),
            _begin(windows[side]),
        )
    return found


def _compare(wholes: Tensor, parts: Tensor, window: Tensor) -> np.ndarray:
    """Similarities of one batch. wholes, parts: flattened [n, SIDE, SIDE]; window: [n, 4]."""
    result = torch.zeros(len(wholes))
    alive = torch.arange(len(wholes))
    for side, steps in _STAGES:
        target, source = (_smaller(images[alive], side) for images in (wholes, parts))
        moving = window[alive]
        stack = torch.stack([source, *torch.gradient(source, dim=(1, 2))], dim=1)
        for _ in range(steps):
            moving = _step(target, stack, moving)
        window[alive] = moving
        alike = _piecewise(target, _sample(source[:, None], moving)[:, 0])
        close = alike > _HOPELESS
        result[alive] = alike.where(close, 0)
        alive = alive[close]
        if not len(alive):
            break
    return result.numpy()


def _begin(windows: np.ndarray) -> Tensor:
    """Edges of windows as shares of the image: top, bottom, left, right, [n, 4]."""
    edges = torch.tensor(WINDOWS)[torch.from_numpy(windows)]
    edges[:, 1::2] = 1 - edges[:, 1::2]
    return edges


def _smaller(images: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(images, SIDE // side) if side < SIDE else images


def _sample(images: Tensor, window: Tensor) -> Tensor:
    """The windows of images [n, k, side, side], each stretched to the full square, bilinear.

    A window is a shift and a scale of either axis, so each axis is one product with a matrix.
    """
    side = images.shape[-1]
    rows, columns = (_weights(window[:, axis : axis + 2], side) for axis in (0, 2))
    return rows[:, None] @ images @ columns[:, None].mT


def _weights(span: Tensor, side: int) -> Tensor:
    """Linear interpolation of an axis at the pixels of a span of it, [n, side, side]."""
    at = span[:, :1] + (span[:, 1:] - span[:, :1]) * _centres(side)
    pixel = (at * side - 0.5).clamp(0, side - 1)
    return (1 - (pixel[:, :, None] - torch.arange(side)).abs()).clamp_min(0)


def _centres(side: int) -> Tensor:
    """Where the pixels of an axis lie, as shares of it."""
    return (torch.arange(side) + 0.5) / side


def _step(target: Tensor, stack: Tensor, window: Tensor) -> Tensor:
    """One step of Gauss and Newton towards the window of an image that looks like `target`.

    stack: the image and its derivatives downwards and to the right, [n, 3, side, side].
    """
    side = target.shape[-1]
    there, dy, dx = _sample(stack, window).unbind(1)
    y, x = _centres(side)[:, None], _centres(side)[None]
    columns = torch.stack([dy * (1 - y), dy * y, dx * (1 - x), dx * x], dim=1).flatten(2)
    # What is compared is normalised, so that contrast does not count as displacement.
    difference = (_normal(target) - _normal(there)).flatten(1)
    columns = columns * (side / there.flatten(1).std(dim=1).clamp_min(1e-6))[:, None, None]
    normal = columns @ columns.mT
    steady = _STEADY * normal.diagonal(dim1=1, dim2=2).mean(dim=1) + 1e-6
    normal = normal + steady[:, None, None] * torch.eye(4)
    step = torch.linalg.solve(normal, (columns @ difference[..., None])[..., 0])
    return (window + step.clamp(-0.05, 0.05)).clamp(-0.05, 1.05)


def _normal(images: Tensor) -> Tensor:
    mean = images.mean(dim=(-2, -1), keepdim=True)
    return (images - mean) / images.std(dim=(-2, -1), keepdim=True).clamp_min(1e-6)


def _piecewise(a: Tensor, b: Tensor) -> Tensor:
    """Lower quartile of the correlations of pieces with anything in them; 0 where these are few."""
    piece = a.shape[-1] // _PIECES
    pieces = [
        image.unfold(1, piece, piece).unfold(2, piece, piece).flatten(1, 2).flatten(2)
        for image in (a, b)
    ]
    centred = [values - values.mean(dim=2, keepdim=True) for values in pieces]
    spread = [values.square().mean(dim=2).sqrt() for values in centred]
    told = torch.maximum(*spread) > _CONTRAST
    product = (centred[0] * centred[1]).mean(dim=2) / (spread[0] * spread[1]).clamp_min(1e-6)
    quartile = product.masked_fill(~told, torch.nan).nanquantile(0.25, dim=1)
    return quartile.masked_fill(told.sum(dim=1) < _FEWEST, 0)
