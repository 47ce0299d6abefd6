"""The inference form of an adapter is its reference: exactly, and in its own precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numerics import FACTOR, FLOOR
from test_ops import case
from torch import Tensor

from fastht import reference
from fastht.exporting.fold import FoldedAdapter, fold_weights

VARIANTS = [
    ("hybrid", "channel"),
    ("hybrid", "full"),
    ("noise_aware", "channel"),
    ("freq_enhanced", "channel"),
    ("freq_enhanced", "full"),
    ("baseline", "channel"),
]
GRIDS = [(3, 5), (4, 4), (1, 6), (7, 1)]


def drawn(
    variant: str, spectral: str, grid: tuple[int, int] = (3, 5), seed: int = 0
) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
    """Return tokens and parameters in float64 that have no symmetry and no zeros."""
    x, params, _, options = case(variant, spectral, batch=3, grid=grid, dim=16, draw=seed)
    made = {name: p.detach().double().cpu() for name, p in params.items()}
    generator = torch.Generator().manual_seed(seed)
    for name in {"gamma", "gammax", "spectral_filter"} & made.keys():
        made[name] = torch.randn(made[name].shape, generator=generator, dtype=torch.float64)
    return x.detach().double().cpu(), made, options


def folded(x: Tensor, params: dict[str, Tensor], options: dict[str, Any]) -> Tensor:
    module = FoldedAdapter(params, x.dtype, options["grid_size"])
    return module(x, options["grid_size"], options["num_prefix_tokens"])


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("variant", "spectral"), VARIANTS)
def test_folding_is_exact(variant: str, spectral: str, grid: tuple[int, int]) -> None:
    x, params, options = drawn(variant, spectral, grid)
    expected = reference.ht_adapter(x, params, **options) - x
    actual = folded(x, params, options) - x
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gamma", lambda p: torch.ones_like(p)),  # as if it were not folded
        ("gammax", lambda p: torch.ones_like(p)),
        ("norm.bias", torch.zeros_like),
        ("spectral_filter", lambda p: torch.ones_like(p)),  # dropped
        ("conv5.weight", torch.zeros_like),
        ("conv3.bias", torch.zeros_like),
        ("noise_gate.0.weight", torch.zeros_like),
        ("pointwise.weight", torch.zeros_like),
    ],
)
def test_a_term_that_is_dropped_shows(name: str, change: Callable[[Tensor], Tensor]) -> None:
    x, params, options = drawn("hybrid", "channel")
    expected = reference.ht_adapter(x, params, **options)
    wrong = params | {name: change(params[name])}
    assert not torch.allclose(folded(x, wrong, options), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", ["bank", "pointwise"])
def test_a_skip_that_is_dropped_shows(weight: str) -> None:
    x, params, options = drawn("freq_enhanced", "channel")
    module = FoldedAdapter(params, x.dtype, options["grid_size"])
    value = getattr(module, weight)
    if weight == "bank":
        value[:, :, 3, 3] -= 1
    else:
        value -= torch.eye(len(value))
    expected = reference.ht_adapter(x, params, **options)
    actual = module(x, options["grid_size"], options["num_prefix_tokens"])
    assert not torch.allclose(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("variant", "spectral"), VARIANTS)
def test_the_error_is_at_most_twice_that_of_the_plain_operator(
    variant: str, spectral: str, dtype: torch.dtype
) -> None:
    ours, plain, scale = [], [], 0.0
    for seed in range(4):
        x, params, options = drawn(variant, spectral, seed=seed)
        x = x.to(dtype)
        params = {name: p.to(dtype) for name, p in params.items()}
        wide = {name: p.double() for name, p in params.items()}
        exact = reference.ht_adapter(x.double(), wide, **options)
        ours.append((folded(x, params, options).double() - exact).abs().max())
        plain.append((reference.ht_adapter(x, params, **options).double() - exact).abs().max())
        scale = max(scale, float(exact.abs().max()))
    bound = FACTOR * max(plain) + FLOOR * torch.finfo(dtype).eps * scale
    assert max(ours) <= bound


def test_without_a_gate_the_bank_and_the_filter_are_one_kernel() -> None:
    _, params, _ = drawn("freq_enhanced", "channel")
    made = fold_weights(params)
    assert made["bank"].shape[2:] == (7, 7)
    assert not {"conv3", "conv5", "conv7", "gate", "frequencies"} & made.keys()
    assert made.keys().isdisjoint(params)
