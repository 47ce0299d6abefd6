"""What tells two bases of one shape apart: a few of their weights, and settings without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastht.backbones import Backbone

# Rounding to bfloat16, and once more to float16, changes a weight by less than this.
_SAME_WEIGHT = {"rel_tol": 2.0**-8, "abs_tol": 1e-7}
# An activation is told by what it makes of these: the GELUs by erf and by tanh differ by less than
# 5e-4 everywhere, QuickGELU from both by 2e-2.
_PROBES = (-2.0, -0.5, 0.5, 1.0, 2.0)
_SAME_ACTIVATION = 2e-3


def fingerprint(backbone: Backbone) -> list[float] | None:
    """Return a few weights of every part of the base: enough to tell two of one shape apart.

    Values, not a hash, so that a base cast to half precision is still recognised; and of the
    largest weights, which every library lays out alike. ``None`` where the base has no values.
    """
    values: list[float] = []
    for module in (backbone.patch_projection, *backbone.blocks):
        weights = [
            p
            for name, p in module.named_parameters()
            if p.is_floating_point() and not name.startswith("ht.")
        ]
        if not weights or any(p.is_meta for p in weights):
            return None
        largest = max(weights, key=lambda p: p.numel())
        full = largest.full_tensor() if hasattr(largest, "full_tensor") else largest
        flat = full.detach().flatten()
        values += [float(flat[flat.numel() * i // 3]) for i in (1, 2)]
    return [float(f"{v:.6g}") for v in values] if all(map(math.isfinite, values)) else None


def same_weights(here: list[float] | None, there: list[float] | None) -> bool:
    """Whether two fingerprints are of the same weights, as far as both are known."""
    if here is None or there is None:
        return True
    return len(here) == len(there) and all(
        math.isclose(a, b, **_SAME_WEIGHT) for a, b in zip(here, there, strict=True)
    )


def settings(backbone: Backbone) -> dict[str, Any]:
    """Return what the first block computes with besides its weights, as plain JSON types.

    Returns:
        ``activation``: the MLP's at a few numbers, with its name; ``norm_eps``; ``num_heads``. Only
        what is found: libraries keep these in different places.
    """
    block = backbone.blocks[0]
    found: dict[str, Any] = {}
    activation = next(_activations(block), None)
    if activation is not None:
        found["activation"] = {"name": type(activation).__name__, "values": _values(activation)}
    for module in _parts(block):
        if "norm_eps" not in found and isinstance(module, nn.LayerNorm):
            found["norm_eps"] = float(module.eps)
        for name in ("num_heads", "num_attention_heads"):
            heads = getattr(module, name, None)
            if "num_heads" not in found and isinstance(heads, int):
                found["num_heads"] = heads
    return found


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Describe in which settings two bases differ, as far as both are known."""
    told = []
    for name in sorted(here.keys() & there.keys()):
        ours, theirs = here[name], there[name]
        if name == "activation":
            pairs = zip(ours["values"], theirs["values"], strict=False)
            if any(abs(a - b) > _SAME_ACTIVATION for a, b in pairs):
                told.append(f"activation {theirs['name']} there and {ours['name']} here")
        elif name == "norm_eps":
            if abs(ours - theirs) > 1e-4:
                told.append(f"norm_eps {theirs} there and {ours} here")
        elif ours != theirs:
            told.append(f"{name} {theirs} there and {ours} here")
    return told


def _parts(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the base's own modules of a block."""
    for name, module in block.named_modules():
        if name != "ht" and not name.startswith("ht."):
            yield module


def _activations(block: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that may be an MLP's activation: without parts and weights, not linear."""
    for module in _parts(block):
        if any(module.children()) or any(True for _ in module.parameters()):
            continue
        values = _values(module)
        if values is not None and values != [float(f"{probe:.4g}") for probe in _PROBES]:
            yield module


def _values(module: nn.Module) -> list[float] | None:
    """Return what a module makes of a few numbers; ``None`` if it is no function of one tensor."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return None
    try:
        with torch.no_grad(), torch.device("cpu"):
            out: Any = module.forward(torch.tensor(_PROBES))
    except Exception:  # it may be anything: attention, a position table
        return None
    if not isinstance(out, Tensor) or out.shape != (len(_PROBES),) or out.is_meta:
        return None
    return [float(f"{v:.4g}") for v in out.tolist()]
