"""The correctness rule that every backend is held to.

Rule: against the float64 reference on the same quantised inputs, a backend's error is at most
twice that of the plain PyTorch path in the same dtype, for the update ``out - x`` and for every
gradient, plus a floor of a few rounding steps; and it is under a ceiling, relative to the largest
reference value, whatever the plain path does.

Both errors are the worst over a few draws of the inputs: that of the plain path is a random
number itself, and for a gradient of four elements one draw of it says little. They are relative to
the largest reference value of all the draws: a gradient that happens to cancel over the samples of
one draw has no small relative error in any arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FLOOR = 2.0  # in epsilons of the dtype, relative to the largest reference value
# dtype -> (forward, gradients)
CEILING = {
    torch.float64: (1e-13, 1e-13),
    torch.float32: (2e-6, 5e-6),
    torch.bfloat16: (1e-2, 2e-2),
    torch.float16: (2e-3, 5e-3),
}

Results = Mapping[str, Tensor]


def run(
    operation: Callable[..., Tensor],
    x: Tensor,
    params: Mapping[str, Tensor],
    upstream: Tensor,
    **options: object,
) -> dict[str, Tensor]:
    """Return the update and every gradient of ``operation`` in float64.

    The residual would hide errors, so ``out - x`` and ``dx - upstream`` stand for ``out`` and
    ``dx``.
    """
    x = x.detach().requires_grad_()
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    out = operation(x, params, **options)
    upstream = upstream.to(out.dtype)
    out.backward(upstream)
    results = {"update": (out.double() - x.double()).detach()}
    results["dx"] = x.grad.double() - upstream.double()
    for name, p in params.items():
        results[f"d {name}"] = p.grad.double()
    return results


@dataclass(frozen=True)
class Draw:
    """The results of a backend, of plain PyTorch and of the float64 reference on one input."""

    candidate: Results
    plain: Results
    exact: Results
    x: Tensor
    upstream: Tensor

    def scale(self, name: str) -> float:
        """Return the largest value of one quantity."""
        return self.exact[name].abs().max().item()

    def errors(self, name: str) -> tuple[float, float]:
        """Return the errors of candidate and plain path in one quantity."""
        exact = self.exact[name]
        error = (self.candidate[name] - exact).abs().max().item()
        plain = (self.plain[name] - exact).abs().max().item()
        # These two are differences of tensors that were rounded at the residual's size.
        residual = {"update": self.x, "dx": self.upstream}.get(name)
        if residual is not None:
            rounding = torch.finfo(residual.dtype).eps * residual.abs().max().item()
            error = error if error != error else max(0.0, error - rounding)
        return error, plain


def violations(
    draws: Sequence[Draw], ceilings: bool = True, precision: torch.dtype | None = None
) -> dict[str, str]:
    """Return what breaks the rule: quantity -> the relative errors and their bounds.

    ``ceilings=False`` is for inputs that lose digits in any arithmetic of their width;
    ``precision`` is the dtype of the products where that is not x's, as under autocast.
    """
    broken = {}
    dtype = precision or draws[0].x.dtype
    for name in draws[0].exact:
        assert all(draw.candidate.keys() == draw.exact.keys() for draw in draws)
        scale = max(1e-300, *(draw.scale(name) for draw in draws))
        pairs = [draw.errors(name) for draw in draws]
        errors = [candidate / scale for candidate, _ in pairs]
        bound = FACTOR * max(plain for _, plain in pairs) / scale + FLOOR * torch.finfo(dtype).eps
        ceiling = CEILING[dtype][name != "update"] if ceilings else float("inf")
        # Not `max(errors) > bound`: a NaN has to fail.
        if not all(error <= min(bound, ceiling) for error in errors):
            broken[name] = f"errors {errors}, bound {bound:.3g}, ceiling {ceiling:.3g}"
    return broken
