"""Who looks on while the operator runs: some understand PyTorch's own operations alone."""

from __future__ import annotations

import sys

import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

ONNX = "an export to ONNX"
TRACE = "torch.jit.trace"
EXPORTS = (ONNX, TRACE)
TRANSFORM = "a transform of torch.func (vmap, grad, jacrev, ...)"
FORWARD_MODE = "forward-mode differentiation (torch.autograd.forward_ad)"
FLOP_COUNT = "torch.utils.flop_counter.FlopCounterMode"


def composite_reason() -> str | None:
    """Return which observer wants the operator as PyTorch's own operations, or ``None``."""
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        return ONNX
    if torch.jit.is_tracing():
        return TRACE
    if torch._C._are_functorch_transforms_active():
        return TRANSFORM
    if forward_ad._current_level >= 0:  # an op of ours would drop the tangents in silence
        return FORWARD_MODE
    if _counts_flops():  # for which an op of ours is nothing at all
        return FLOP_COUNT
    return None


def _counts_flops() -> bool:
    if "torch.utils.flop_counter" not in sys.modules or not torch._C._len_torch_dispatch_stack():
        return False
    modes = _get_current_dispatch_mode_stack()
    return any("FlopCounterMode" in type(mode).__name__ for mode in modes)


# Known while torch.compile traces, which cannot look into it.
composite_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]
