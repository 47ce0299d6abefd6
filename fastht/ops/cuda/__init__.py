"""The native CUDA kernels (``csrc/cuda``): compiled at first use, launched through the driver."""

from __future__ import annotations

from typing import Any

native: Any
try:
    from fastht._native import cuda as native  # type: ignore[attr-defined, no-redef]
except ImportError:  # no extension, or one without CUDA
    native = None
