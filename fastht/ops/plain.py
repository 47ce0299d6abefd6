"""The reference as a backend: PyTorch's own derivative, or one that keeps the output alone.

The second is how every backend goes without x, in plain PyTorch: of eq. 5, ``x = out - update(u)``,
where u is kept, C numbers a token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastht import reference

KEEP = ("auto", "input", "output")


def check_keep(keep: str) -> str:
    """Return ``keep`` if it is one of ``"auto"``, ``"input"`` and ``"output"``.

    Raises:
        ValueError: it is not.
    """
    if keep not in KEEP:
        raise ValueError(f"keep is {keep!r}; choose one of {', '.join(map(repr, KEEP))}")
    return keep


def ht_adapter(
    x: Tensor, params: Mapping[str, Tensor], *, keep: str = "auto", **options: Any
) -> Tensor:
    """Do what :func:`fastht.reference.ht_adapter` does.

    ``keep="output"`` keeps the result and u for the backward pass, which then takes another forward
    pass; otherwise PyTorch keeps what it keeps, far more than x.
    """
    tensors = (x, *params.values())
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if keep != "output" or not needed:
        return reference.ht_adapter(x, params, **options)
    return _OutputKept.apply(x, tuple(params), options, *params.values())  # type: ignore[no-any-return]


def observed(x: Tensor, params: Mapping[str, Tensor], *, keep: str, **options: Any) -> Tensor:
    """Apply one HT adapter for what differentiates or counts each of PyTorch's operations."""
    return reference.ht_adapter(x, params, **options)


class _OutputKept(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, names: tuple[str, ...], options: dict[str, Any], *params: Tensor
    ) -> Tensor:
        ctx.names, ctx.options = names, options
        ctx.random = _random_state(x) if options.get("dropout") else None
        ctx.autocast = _autocast_of(x)
        named = dict(zip(names, params, strict=True))
        u = reference.bottleneck(x, named, options.get("eps", 1e-5))
        out = x + reference.update(u, named, x.dtype, **options)
        ctx.save_for_backward(out, u, *params)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        out, u, *params = ctx.saved_tensors
        named = dict(zip(ctx.names, params, strict=True))
        with torch.random.fork_rng([out.device] if out.is_cuda else []), ctx.autocast():
            _restore(ctx.random, out)
            x = out - reference.update(u, named, out.dtype, **ctx.options)
            needed = ctx.needs_input_grad[0], *ctx.needs_input_grad[3:]
            with torch.enable_grad():
                leaves = [
                    t.detach().requires_grad_(need)
                    for t, need in zip((x, *params), needed, strict=True)
                ]
                named = dict(zip(ctx.names, leaves[1:], strict=True))
                _restore(ctx.random, out)
                again = reference.ht_adapter(leaves[0], named, **ctx.options)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(again, wanted, dout))
        dx, *grads = [next(found) if need else None for need in needed]
        return dx, None, None, *grads


def _random_state(x: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()


def _restore(state: Tensor | None, x: Tensor) -> None:
    if state is None:
        return
    if x.is_cuda:
        torch.cuda.set_rng_state(state, x.device)
    else:
        torch.set_rng_state(state)


def _autocast_of(x: Tensor) -> Callable[[], torch.autocast]:
    """Return what makes autocast in the backward pass what it is now."""
    device = x.device.type
    return functools.partial(
        torch.autocast,
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
    )
