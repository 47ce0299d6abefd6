"""The native CUDA kernels (``csrc/cuda``): compiled at first use, launched through the driver.

Everything here but what says why they cannot run needs the native extension.
"""

from __future__ import annotations

from typing import Any

import torch

native: Any
try:
    from fastht._native import cuda as native  # type: ignore[attr-defined, no-redef]
except ImportError:  # no extension, or one without CUDA
    native = None


def missing() -> str | None:
    """Return why the CUDA kernels cannot run here, or ``None``."""
    from fastht.ops.cuda import simulated

    if native is None:
        return (
            "the native extension is not built, or without CUDA (FASTHT_CUDA=0); install a C++ "
            "compiler and reinstall fastht (with FASTHT_NATIVE=1 the build says what it lacks)"
        )
    if simulated.enabled():
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, and this torch is built for ROCm"
    devices = range(torch.cuda.device_count())
    if all(torch.cuda.get_device_capability(i) < (8, 0) for i in devices):
        names = ", ".join(torch.cuda.get_device_name(i) for i in devices)
        return f"it needs compute capability 8.0 or newer, and this is {names}"
    return native.driver_problem() or compiler_problem()


def compiler_problem() -> str | None:
    """Return why no kernels can be had: none were compiled at install and there is no NVRTC."""
    from fastht.ops.cuda import kernels, nvrtc, sources

    if kernels.precompiled().held():
        return None
    try:
        sources.folder()
        nvrtc.load()
    except LookupError as error:
        return str(error)
    return None


def refuses(device: str, dtype: torch.dtype) -> str | None:
    """Return why the CUDA kernels cannot take tensors of a device type and dtype, or ``None``."""
    from fastht.ops.cuda import simulated

    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it takes bfloat16, float16 and float32 tokens, not {dtype}"
    if device != ("cpu" if simulated.enabled() else "cuda"):
        wanted = "CPU tensors in its simulator" if simulated.enabled() else "CUDA tensors"
        return f"it takes {wanted}, and x is on {device!r}"
    return None
