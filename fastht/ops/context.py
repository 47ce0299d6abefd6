"""Who looks on while the operator runs: some understand PyTorch's own operations alone."""

from __future__ import annotations

import sys

import torch

ONNX = "an export to ONNX"
TRACE = "torch.jit.trace"
TRANSFORM = "a transform of torch.func (vmap, grad, jacrev, ...)"


def composite_reason() -> str | None:
    """Return which observer wants the operator as PyTorch's own operations, or ``None``."""
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        return ONNX
    if torch.jit.is_tracing():
        return TRACE
    if torch._C._are_functorch_transforms_active():
        return TRANSFORM
    return None


# Known while torch.compile traces, which cannot look into it.
composite_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
