"""Whether PyTorch's dispatcher would find anybody to tell of an op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def nobody_between(tensors: Sequence[Tensor]) -> bool:
    """Whether the dispatcher would find no mode, no transform and no subclass to tell of the op."""
    if is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return False
    return _PLAIN.issuperset(map(type, tensors))
