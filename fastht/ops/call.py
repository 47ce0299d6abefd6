"""What describes one call of the operator besides its tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Call(NamedTuple):
    """The options of one call, the same for forward and backward.

    Attributes:
        grid_size: ``(H, W)`` of the patch grid.
        num_prefix_tokens: P, with ``N == P + H * W``.
        has_filter, has_gate: which of the variants.
        dropout: probability of zeroing a bottleneck activation.
        eps: the LayerNorm's epsilon.
        product_dtype: in what the matrix products and the bottleneck maps are: x's dtype, or
            autocast's.
        tf32: whether float32 products may use TensorFloat-32.
    """

    grid_size: tuple[int, int]
    num_prefix_tokens: int
    has_filter: bool
    has_gate: bool
    dropout: float
    eps: float
    product_dtype: torch.dtype
    tf32: bool
