"""The operator in PyTorch operations that every exporter knows: without complex numbers or FFTs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastht import reference


def spectral_filter(s: Tensor, weight: Tensor) -> Tensor:
    """Compute :func:`fastht.reference.spectral_filter` without a Fourier transform of PyTorch's.

    With one number a channel the transform and its inverse cancel. With one a frequency both are
    products with matrices of cosines and sines, real and separable.
    """
    if weight.ndim == 1:
        return s * weight[:, None, None].to(s.dtype)
    height, width = (int(size) for size in s.shape[-2:])
    columns = width // 2 + 1
    cos_h, sin_h = waves(height, height, s)
    cos_w, sin_w = waves(width, columns, s)
    along = s @ cos_w, -(s @ sin_w)  # over the width: real and imaginary parts [B, C, H, K]
    real = cos_h @ along[0] + sin_h @ along[1]
    imaginary = cos_h @ along[1] - sin_h @ along[0]
    scale = weight.to(s.dtype) * half_plane_weights(width, s) / (height * width)
    real, imaginary = real * scale, imaginary * scale
    back = cos_h @ real - sin_h @ imaginary, cos_h @ imaginary + sin_h @ real
    return back[0] @ cos_w.T - back[1] @ sin_w.T


def waves(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines ``[size, count]`` of the first ``count`` frequencies."""
    place = torch.arange(size, dtype=torch.float64)
    # Of the remainder, so that large products keep their digits.
    angle = (place[:, None] * place[None, :count]) % size * (2 * math.pi / size)
    return angle.cos().to(like), angle.sin().to(like)


def half_plane_weights(width: int, like: Tensor) -> Tensor:
    """Return how often each column of a real map's half spectrum counts, ``[width // 2 + 1]``.

    But for the first column, and the last one of an even width, each one stands for two.
    """
    twice = torch.full((width // 2 + 1,), 2.0, dtype=like.dtype, device=like.device)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return twice


ht_adapter = functools.partial(reference.ht_adapter, spectral=spectral_filter)


def observed(x: Tensor, params: Mapping[str, Tensor], *, keep: str, **options: Any) -> Tensor:
    """Apply one HT adapter for an exporter, which has no use for what a backward pass keeps."""
    return ht_adapter(x, params, **options)
