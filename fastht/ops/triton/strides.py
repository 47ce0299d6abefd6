"""Tokens whose strides are too long for the kernels' 32-bit offsets along the features."""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 2**31  # elements; batch and token offsets are 64-bit, those along the features are not


def addressable(tokens: Tensor) -> Tensor:
    """Return ``[B, N, D]`` tokens that the kernels can read: themselves, or else a copy.

    Only features that lie slowest in memory, over a whole large batch, are so far apart.
    """
    return tokens if tokens.stride(2) * tokens.shape[2] < LIMIT else tokens.contiguous()


def in_layout_of(given: Tensor, result: Tensor) -> Tensor:
    """Return ``result`` with the strides that ``torch.empty_like(given)`` has."""
    if given.stride(2) * given.shape[2] < LIMIT:
        return result  # made so
    return torch.empty_like(given).copy_(result)
