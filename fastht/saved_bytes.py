"""What autograd keeps for the backward pass: counted, exactly and alike on every device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def saved_bytes(forward: Callable[[], Any], alive: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps from ``forward`` for its backward pass.

    Every storage counts once and whole, since a view keeps all of it.

    Args:
        forward: runs with gradients; on fake tensors too (``FakeTensorMode``), which have sizes
            and no memory.
        alive: tensors that exist anyway, as parameters do; they do not count.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[_identity(storage)] = storage.nbytes()
        # Not the tensor itself: where an operation keeps its own output, as exp and softmax do, the
        # graph would hold itself, out of the garbage collector's sight and thus for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # alive until all is counted: no address is used twice
    for tensor in alive:
        kept.pop(_identity(tensor.untyped_storage()), None)
    del result
    return sum(kept.values())


def _identity(storage: torch.UntypedStorage) -> int:
    """Return what tells storages apart that are alive together; without memory they are objects."""
    return storage._cdata if storage.device.type == "meta" else storage.data_ptr()
