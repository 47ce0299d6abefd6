"""Memory of a training step: what autograd keeps, and the peak.

Kept bytes are counted with saved-tensor hooks, exactly and alike on every device. The peak is the
allocator's own on CUDA. On a CPU it is the growth of the process's resident memory, of which Linux
keeps a high-water mark (VmHWM) that can be reset (proc(5), ``clear_refs``); memory that an
allocator kept from before would hide a part of it, so that is measured in a fresh process
(:func:`in_fresh_process`).
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_RESET_HIGH_WATER_MARK = "5"
_CLEAR_REFS = Path("/proc/self/clear_refs")


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


def peak_is_measurable(device: str) -> bool:
    """Whether :func:`peak_growth` can tell anything here."""
    return device == "cuda" or os.access(_CLEAR_REFS, os.W_OK)


def peak_growth(step: Callable[[], Any], device: str) -> int:
    """Return by how many bytes memory grows to its peak while ``step`` runs.

    Raises:
        RuntimeError: this system does not tell; see :func:`peak_is_measurable`.
    """
    return_free_memory()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not peak_is_measurable(device):
        raise RuntimeError("peak memory on a CPU needs Linux's /proc/self/clear_refs")
    _CLEAR_REFS.write_text(_RESET_HIGH_WATER_MARK)
    before = _resident_bytes("VmRSS")
    step()
    return _resident_bytes("VmHWM") - before


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Return what ``function(*arguments)`` returns in a process of its own, started for it."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def return_free_memory() -> None:
    """Give the system back what nothing refers to, and what the C library keeps of it."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _resident_bytes(field: str) -> int:
    """Return VmRSS (resident now) or VmHWM (at most since the last reset) of this process."""
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}")
    return 1024 * int(match[1])
