"""Tile sizes of the Triton kernels: one table, looked up, never searched at run time."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
import triton

TABLE = Path(__file__).with_name("configs.json")
KERNELS = (
    "down", "up", "contract", "point_backward", "correlate", "mix_backward", "expand",
    "expand_input", "analyse",
)  # fmt: skip
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
CHANNELS = (16, 32, 64, 128)
NUMBERS = ("16", "32>16", "tf32", "32")


def number_class(x_dtype: torch.dtype, product_dtype: torch.dtype, tf32: bool) -> str:
    """Name how wide x and the products are, as the table does.

    ``"16"``: both 16 bits; ``"32>16"``: float32 x, 16-bit products (autocast); ``"tf32"`` and
    ``"32"``: float32 products with and without TensorFloat-32.
    """
    if product_dtype == torch.float32:
        return "tf32" if tf32 else "32"
    return "32>16" if x_dtype == torch.float32 else "16"


@functools.cache
def architecture(device: torch.device) -> str:
    """Name a device's chip, as the table does."""
    if device.type != "cuda":  # the interpreter, or a compilation without a GPU
        return "sm_90"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def column(arch: str) -> str:
    """Return the one of ``ARCHITECTURES`` whose rows serve a chip that has none of its own."""
    # 12.x is the consumer Blackwell: the shared memory and the products of sm_80's generation.
    return {"9": "sm_90", "10": "sm_100", "11": "sm_100"}.get(arch[3:-1], "sm_80")


@functools.cache
def release() -> str:
    """Return which Triton this is, as the table names it: ``"3.9"`` for 3.9.0."""
    return ".".join(triton.__version__.split(".")[:2])


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """Return the rows of ``configs.json``, in their order."""
    return tuple(json.loads(TABLE.read_text()))


@functools.cache
def options(kernel: str, arch: str, channels: int, numbers: str, dim: int) -> dict[str, int]:
    """Return tile sizes, ``num_warps`` and ``num_stages`` for one launch.

    The last row that matches counts: general rows stand first, measured ones after them. A row's
    ``"arch"`` names chips or columns of chips, see :func:`column`. A row
    with ``"triton"`` is for those releases alone, where the compiler makes something else of what
    serves the others.

    Args:
        kernel: one of ``KERNELS``.
        arch: a chip, such as ``"sm_86"``.
        channels: C padded to a power of two.
        numbers: one of ``NUMBERS``.
        dim: features a token, D.

    Raises:
        LookupError: no row matches.
    """
    wanted = {"channels": channels, "numbers": numbers, "dim": dim}
    for row in reversed(table()):
        if (
            row["kernel"] == kernel
            and all(row[key] == "*" or value in row[key] for key, value in wanted.items())
            and (row["arch"] == "*" or arch in row["arch"] or column(arch) in row["arch"])
            and release() in row.get("triton", (release(),))
        ):
            return dict(row["options"])
    raise LookupError(f"no configuration of the Triton kernel {kernel!r} for {arch}, {wanted}")
