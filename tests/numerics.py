"""The correctness rule that every backend is held to.

Rule: against the float64 reference on the same quantised inputs, a backend's error is at most
twice that of the plain PyTorch path in the same dtype, for the update ``out - x`` and for every
gradient, plus a floor of a few rounding steps; and it is under a ceiling, relative to the largest
reference value, whatever the plain path does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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


def violations(
    candidate: Results, plain: Results, exact: Results, x: Tensor, upstream: Tensor
) -> dict[str, str]:
    """Return what breaks the rule: quantity -> the error and its bounds."""
    broken = {}
    assert candidate.keys() == exact.keys()
    eps = torch.finfo(x.dtype).eps
    for name, reference in exact.items():
        scale = reference.abs().max().item()
        # These two are differences of tensors that were rounded at the residual's size.
        residual = {"update": x, "dx": upstream}.get(name)
        rounding = 0.0 if residual is None else eps * residual.abs().max().item()
        error = (candidate[name] - reference).abs().max().item()
        plain_error = (plain[name] - reference).abs().max().item()
        bound = FACTOR * plain_error + FLOOR * eps * scale + rounding
        ceiling = CEILING[x.dtype][name != "update"] * scale + rounding
        if not (error <= bound and error <= ceiling):
            broken[name] = f"error {error:.3g}, bound {bound:.3g}, ceiling {ceiling:.3g}"
    return broken
