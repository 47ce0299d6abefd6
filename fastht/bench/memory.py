"""The peak memory of a training step.

It is the allocator's own on CUDA. On a CPU it is the growth of the process's resident memory, of
which Linux keeps a high-water mark (VmHWM) that can be reset (proc(5), ``clear_refs``); memory that
an allocator kept from before would hide a part of it, so that is measured in a fresh process
(:func:`in_fresh_process`).
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import gc
import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_RESET_HIGH_WATER_MARK = "5"
_CLEAR_REFS = Path("/proc/self/clear_refs")


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
