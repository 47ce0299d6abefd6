"""Tile sizes of the losses' kernels: one table, looked up, never searched at run time."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from fastht.ops.triton import configs as adapter_configs

TABLE = Path(__file__).with_name("configs.json")
KERNELS = ("rounders", "sweep", "product", "merge")
NUMBERS = ("16", "tf32", "32", "64")
FORMS = ("plain", "keys", "soft")
# How similarities are made, see fastht.losses.triton.aligned and fastht.ops.triton.products: an
# error that all of them have to one side would be one of the scale.
SIMILARITIES = {"16": "ieee", "tf32": "rounded", "32": "aligned", "64": "ieee"}
# How the products of derivatives and features are made.
PRECISIONS = {"16": "ieee", "tf32": "rounded", "32": "split", "64": "ieee"}
# Multiply and add in one instruction, but not of float32 features: what a scaled similarity lost in
# rounding would come back where the largest is taken off it. Logits that are equal were e to the
# power of that apart on an H200, where plain PyTorch takes them for equal.
FUSED_ARITHMETIC = {"16": True, "tf32": True, "32": False, "64": False}


def number_class(features: torch.dtype, tf32: bool) -> str:
    """Name how wide the features and their products are, as the table does."""
    if features == torch.float64:
        return "64"
    if features == torch.float32:
        return "tf32" if tf32 else "32"
    return "16"


@functools.cache
def table() -> tuple[dict[str, Any], ...]:
    """Return the rows of ``configs.json``, in their order."""
    return tuple(json.loads(TABLE.read_text()))


def options(kernel: str, device: torch.device, numbers: str, form: str) -> dict[str, Any]:
    """Return tile sizes, ``num_warps`` and ``num_stages`` for one launch.

    The last row that matches counts, as in the table of the adapter's kernels, whose names of chips
    and releases this one has too.

    Args:
        kernel: one of ``KERNELS``; both sweeps have the same tiles, so that they make the same
            similarities.
        device: where it runs.
        numbers: one of ``NUMBERS``.
        form: one of ``FORMS``: with keys there are more registers in use, with targets many more.

    Raises:
        LookupError: no row matches.
    """
    arch = adapter_configs.architecture(device)
    found = _options(kernel, arch, numbers, form)
    return {**found, "enable_fp_fusion": FUSED_ARITHMETIC[numbers]}


@functools.cache
def _options(kernel: str, arch: str, numbers: str, form: str) -> dict[str, Any]:
    wanted = {"numbers": numbers, "form": form}
    chips = {"*", arch, adapter_configs.column(arch)}
    release = adapter_configs.release()
    for row in reversed(table()):
        if (
            row["kernel"] == kernel
            and all(row[key] == "*" or value in row[key] for key, value in wanted.items())
            and not chips.isdisjoint(row["arch"])
            and release in row.get("triton", (release,))
        ):
            return dict(row["options"])
    raise LookupError(f"no configuration of the losses' kernel {kernel!r} for {arch}, {wanted}")
