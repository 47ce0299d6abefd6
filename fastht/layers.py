"""What an HT adapter keeps its parameters in: layers that are read and never called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ReadLayer(nn.Module):
    """Hold the parameters of a layer under the layer's names; the operator reads them.

    It is no ``nn.Linear``, ``nn.Conv2d`` or ``nn.LayerNorm``: tools that quantise, shard or adapt
    layers by their type rely on the layer's call, which does not happen here, and so leave this one
    alone. It has no ``reset_parameters`` either: only the adapter knows how all of it starts.

    Args:
        kind: the layer's class, whose initialisation :meth:`initialize` takes.
        shape: of the weight; the bias has the length of its first dimension.
        factory: device and dtype of the parameters.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, kind: type[nn.Module], *shape: int, **factory: Any) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.empty(shape, **factory))
        self.bias = nn.Parameter(torch.empty(shape[:1], **factory))

    def initialize(self) -> None:
        """Give the parameters the values that a new layer of this kind has."""
        if self.kind is nn.LayerNorm:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)
        else:  # needs nothing but the two parameters
            kind: Any = self.kind
            kind.reset_parameters(self)

    def forward(self) -> None:
        """Do nothing: called for the sake of hooks that rewrite a parameter before each call."""

    def extra_repr(self) -> str:
        """Name the kind of layer and its weight's shape."""
        return f"{self.kind.__name__}, {'x'.join(map(str, self.weight.shape))}"
