"""The correctness rule that every backend is held to.

Rule: against the float64 reference on the same quantised inputs, a backend's error is at most
twice that of the plain PyTorch path in the same dtype, for the update ``out - x`` and for every
gradient, plus a floor of a few rounding steps; and it is under a ceiling, relative to the largest
reference value, whatever the plain path does.

Both errors are random numbers, and for a gradient of three elements one draw of them says little:
plain PyTorch itself, given its features in reverse order, is off by more than twice its usual error
in one draw of eight. So the worst of a few draws is only the first look. What breaks the rule there
is looked at again over ``MANY`` draws, where the root mean squares are compared, with the same
factor and floor; the ceiling is for the first look. ``test_rule.py`` shows both: that this lets the
reversed order pass, and that it refuses three times plain PyTorch's error.

Errors are relative to the largest reference value of all the draws: a gradient that happens to
cancel over the samples of one draw has no small relative error in any arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
MANY = 24
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
    draw: Callable[[int], Draw],
    few: int,
    ceilings: bool = True,
    precision: torch.dtype | None = None,
) -> dict[str, str]:
    """Return what breaks the rule: quantity -> the relative errors and their bounds.

    ``draw`` makes the draw of a number; the first ``few`` are the first look. ``ceilings=False``
    is for inputs that lose digits in any arithmetic of their width; ``precision`` is the dtype of
    the products where that is not x's, as under autocast.
    """
    draws = [draw(i) for i in range(few)]
    assert all(d.candidate.keys() == d.exact.keys() for d in draws)
    dtype = precision or draws[0].x.dtype
    broken = _above_ceiling(draws, dtype, ceilings)
    if doubtful := _above_plain(draws, draws[0].exact, dtype, max):
        draws += [draw(i) for i in range(few, MANY)]
        broken |= _above_plain(draws, doubtful, dtype, root_mean_square)
    return broken


def _above_ceiling(draws: Sequence[Draw], dtype: torch.dtype, ceilings: bool) -> dict[str, str]:
    broken = {}
    for name in draws[0].exact:
        errors, _ = _relative(draws, name)
        ceiling = CEILING[dtype][name != "update"] if ceilings else float("inf")
        # Not `max(errors) > ceiling`: a NaN has to fail.
        if not all(error <= ceiling for error in errors):
            broken[name] = f"errors {errors}, ceiling {ceiling:.3g}"
    return broken


def _above_plain(
    draws: Sequence[Draw],
    names: Iterable[str],
    dtype: torch.dtype,
    statistic: Callable[[Sequence[float]], float],
) -> dict[str, str]:
    broken = {}
    for name in names:
        error, usual = map(statistic, _relative(draws, name))
        bound = FACTOR * usual + FLOOR * torch.finfo(dtype).eps
        if not error <= bound:
            broken[name] = f"{statistic.__name__} of {len(draws)}: {error:.3g}, bound {bound:.3g}"
    return broken


def _relative(draws: Sequence[Draw], name: str) -> tuple[list[float], list[float]]:
    """Return the errors of candidate and plain path in one quantity, by the largest value."""
    scale = max(1e-300, *(draw.scale(name) for draw in draws))
    pairs = [draw.errors(name) for draw in draws]
    return [error / scale for error, _ in pairs], [plain / scale for _, plain in pairs]


def root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))
