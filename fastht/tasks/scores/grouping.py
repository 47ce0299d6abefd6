"""Names as numbers, so that rows of one patient, caption or class can be counted together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor


def numbered(names: Iterable[Hashable]) -> Tensor:
    """Return ``[n]``, int64: the same number for the same name, from 0 by first occurrence."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(name, len(numbers)) for name in names])
