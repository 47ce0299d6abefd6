"""The public operation: checks its arguments, picks a backend, runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fastht.ops import plain, portable
from fastht.ops.context import EXPORTS, TRACE, composite_reason
from fastht.ops.plain import check_keep
from fastht.ops.registry import BackendUnavailableError, backend_of_call


def ht_adapter(
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    grid_size: tuple[int, int],
    num_prefix_tokens: int,
    dropout: float = 0.0,
    eps: float = 1e-5,
    backend: str = "auto",
    keep: str = "auto",
) -> Tensor:
    """Apply one HT adapter (arXiv 2506.08849, eq. 1 to 5) through a chosen backend.

    Args:
        x: ``[B, N, D]`` floating-point tokens, any strides, ``N == num_prefix_tokens + H * W``.
        params: the adapter's parameters by the names of :class:`fastht.HTAdapter`'s
            ``state_dict``; a full spectral filter has shape ``[C, H, W // 2 + 1]``.
        grid_size: ``(H, W)`` of the patch grid.
        num_prefix_tokens: class and register tokens before the patches.
        dropout: probability of zeroing a bottleneck activation; 0 in evaluation.
        eps: the LayerNorm's epsilon.
        backend: ``"auto"`` or one of :func:`fastht.backends`. Inside an export to ONNX,
            ``torch.jit.trace``, the transforms of ``torch.func``, forward-mode differentiation and
            PyTorch's counter of operations, ``"auto"`` takes PyTorch's own operations, which
            these can see through.
        keep: which tokens stay alive for the backward pass. ``"input"``: x. ``"output"``: the
            result, which a pre-norm tower's next LayerNorm keeps anyway; x is made of it again, for
            one more product D x C, exact to the rounding of the result. In float32 that holds the
            rule of correctness, and ``"auto"`` does it. In 16 bits it costs accuracy where the
            update is larger than x: gradients as wide as x are off by 3 to 4 times as much where it
            is ten times as large, and no more than before where both are alike; ``"auto"`` keeps x
            there. With ``backend="reference"``, ``"auto"`` keeps what autograd keeps. Writing into
            what is kept makes the backward pass raise.

    Returns:
        ``[B, N, D]`` in ``x``'s dtype.

    Raises:
        TypeError: ``x`` is not of a floating dtype.
        ValueError: a shape or a device does not fit, or there is no such backend or ``keep``.
        BackendUnavailableError: the backend cannot run here, on such an ``x``, with as many
            channels, or in such an export or transform.
    """
    height, width = grid_size
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}; an HT adapter takes [B, N, D] tokens")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}; an HT adapter takes floating-point tokens")
    dim = params["gamma"].shape[0]
    if x.shape[2] != dim:
        raise ValueError(f"x has {x.shape[2]} features a token; this adapter was made for {dim}")
    if x.shape[1] != num_prefix_tokens + height * width:
        raise ValueError(
            f"x has {x.shape[1]} tokens; {num_prefix_tokens} prefix tokens and a "
            f"{height}x{width} grid make {num_prefix_tokens + height * width}"
        )
    weight = params.get("spectral_filter")
    if weight is not None and weight.ndim == 3 and weight.shape[1:] != (height, width // 2 + 1):
        raise ValueError(
            f"the spectral filter has shape {tuple(weight.shape)}; a {height}x{width} grid "
            f"needs (C, {height}, {width // 2 + 1})"
        )
    device = x.device
    for name, p in params.items():
        if p.device != device:
            if p.is_meta:
                raise ValueError(
                    f"{name} is on {p.device} and x on {device}; give accelerate's offloading "
                    "preload_module_classes=['HTAdapter'], or the adapter memory (to_empty, then "
                    "reset_parameters)"
                )
            raise ValueError(
                f"{name} is on {p.device} and x on {device}; move the adapter or its tokens"
            )
    channels = params["down.bias"].shape[0]
    run = backend_of_call(backend, x, channels).run
    reason = composite_reason()
    if reason is not None:
        run = _observed(reason, backend, run)
    return run(
        x,
        params,
        grid_size=(height, width),
        num_prefix_tokens=num_prefix_tokens,
        dropout=dropout,
        eps=eps,
        keep=check_keep(keep),
    )


def _observed(reason: str, backend: str, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return what runs while somebody looks on."""
    if backend in ("auto", "reference"):
        return portable.observed if reason in EXPORTS else plain.observed
    if reason != TRACE:
        raise BackendUnavailableError(
            f"backend {backend!r} is one operation of fastht's, which {reason} cannot see "
            "through; make the adapters with backend='auto' or 'reference' for it"
        )
    warnings.warn(
        f"the trace calls backend {backend!r} with the patch grid of these images, whatever size "
        "others have; backend='auto' or 'reference' makes one for any size",
        torch.jit.TracerWarning,
        stacklevel=3,
    )
    return run
