"""Nothing is timed that computes something else than the reference.

Coarser than the tests, which hold a backend to twice the error of plain PyTorch: here a mistake in
the build or the call has to show, in the very adapter and at the very shape that is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastht import reference

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}

Operation = Callable[..., Tensor]


class IncorrectError(Exception):
    """What was to be timed computes something else than the reference."""


def check(
    operation: Operation,
    x: Tensor,
    dout: Tensor,
    params: Mapping[str, Tensor],
    precision: torch.dtype | None = None,
    **options: Any,
) -> float:
    """Compare ``out - x``, ``dx - dout`` and every gradient with the float64 reference.

    Errors are relative to the largest value. Sums of rounded 16-bit numbers that cancel are off
    by more than the tolerance in plain PyTorch too; there twice its error is the bound.

    Args:
        operation: is called as :func:`fastht.reference.ht_adapter`, without dropout.
        x: ``[B, N, D]`` tokens.
        dout: the gradient of the output, like ``x``.
        params: of values that ``x``'s dtype can hold.
        precision: the dtype of the products where that is not x's, as under autocast.
        options: the grid and the prefix tokens of the call.

    Returns:
        The largest of the errors, in parts of its bound.

    Raises:
        IncorrectError: one of them is off by more than its bound, or x or a parameter is not in
            the graph of the output.
    """
    tolerance = TOLERANCE[precision or x.dtype]
    wide = {name: p.double() for name, p in params.items()}
    with torch.autocast(x.device.type, enabled=False):
        exact = _run(reference.ht_adapter, x.double(), wide, dout.double(), **options)
    plain = _run(reference.ht_adapter, x, params, dout, **options)
    candidate = _run(operation, x, params, dout, **options)
    worst = 0.0
    for name, value in exact.items():
        scale = max(value.abs().max().item(), 1e-300)
        error, usual = ((r[name] - value).abs().max().item() / scale for r in (candidate, plain))
        bound = max(tolerance, 2 * usual)
        refuse(error, bound, f"{name} of {list(x.shape)} {x.dtype}")
        worst = max(worst, error / bound)
    return worst


def check_dropout(call: Callable[[], Tensor], without: Callable[[], Tensor], x: Tensor) -> None:
    """Ask that dropout with p = 0.1 moves the update by about as much as it should.

    Dropping a tenth of the activations moves their sum by sqrt(0.1 / 0.9), a third of it.

    Raises:
        IncorrectError: it is less than 0.1 or more than 0.5 of the update's norm.
    """
    with torch.no_grad():
        out, plain = call().float(), without().float()
        share = ((out - plain).norm() / (plain - x.float()).norm()).item()
    if not 0.1 < share < 0.5:
        raise IncorrectError(f"dropout changes the update by {share:.3g} of its norm, not a third")


def off_the_kink(bias: Tensor) -> Tensor:
    """Move the biases of the noise gate's hidden units away from zero, every fourth below it.

    Close to zero a unit's sign, and with it a gradient, would be a matter of rounding. What is
    added to the biases is far below 1 for tokens of about unit variance.

    Args:
        bias: ``[C // 4]``, of ``noise_gate.0``.

    Returns:
        ``[C // 4]`` numbers whose absolute values are larger by 1.
    """
    moved = 1 + bias.abs()
    moved[3::4] *= -1
    return moved


def refuse(error: float, bound: float, what: str) -> None:
    """Raise :class:`IncorrectError` unless ``error`` is at most ``bound``; NaN never is."""
    if not error <= bound:
        raise IncorrectError(f"{what} is off by {error:.3g} of its largest value (bound {bound})")


def _run(
    operation: Operation, x: Tensor, params: Mapping[str, Tensor], dout: Tensor, **options: Any
) -> dict[str, Tensor]:
    """Return the update and all gradients in float64; the residual would hide their errors."""
    x = x.detach().requires_grad_()
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    out = operation(x, leaves, **options)
    dout = dout.to(out.dtype)
    grads = _gradients(out, {"x": x, **leaves}, dout)
    results = {"out - x": out.detach().double() - x.detach().double()}
    results["dx - dout"] = grads.pop("x").double() - dout.double()
    results |= {f"d {name}": g.double() for name, g in grads.items()}
    return results


def _gradients(out: Tensor, leaves: Mapping[str, Tensor], dout: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each leaf, or raise :class:`IncorrectError` where there is none."""
    grads: Sequence[Tensor | None] = [None] * len(leaves)
    if out.requires_grad:
        grads = torch.autograd.grad(out, tuple(leaves.values()), dout, allow_unused=True)
    found = {name: g for name, g in zip(leaves, grads, strict=True) if g is not None}
    if missing := [name for name in leaves if name not in found]:
        raise IncorrectError(
            f"no gradient reaches {', '.join(missing)}: not in the graph of the output"
        )
    return found
