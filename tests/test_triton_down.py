"""Tokens of 16 bits whose mean is far off, in the down-projection of the Triton kernels."""

import functools
from dataclasses import replace

import pytest
import torch
from engines import DEVICE, FUSED
from numerics import run, violations
from test_ops import case, draw, through

from fastht import reference
from fastht.ops.triton import down

DTYPES = (torch.bfloat16, torch.float16)
RUNS = any("triton" in getattr(engine, "values", (engine,)) for engine in FUSED)

pytestmark = pytest.mark.skipif(not RUNS, reason="Triton does not run here")


@functools.cache
def far_off(dtype, i):
    """Return a case of which the LayerNorm's part alone is left, and the draw of plain PyTorch."""
    x, params, upstream, options = case(dtype=dtype, draw=i, dim=768, grid=(2, 4))
    params["gammax"] = torch.zeros_like(params["gammax"])
    made = x + 1000, params, upstream, options
    return made, draw(reference.ht_adapter, *made)


def drawn(dtype, i=0):
    (*tensors, options), plain = far_off(dtype, i)
    return replace(plain, candidate=run(through("triton"), *tensors, **options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rule_holds_for_tokens_whose_mean_is_far_off(dtype):
    assert violations(functools.partial(drawn, dtype), 1, ceilings=False) == {}


@pytest.mark.skipif(DEVICE == "cuda", reason="a compiled kernel has its own constants")
def test_it_would_not_hold_without_taking_the_mean_off(monkeypatch):
    monkeypatch.setattr(down, "APART", 1e30)
    found = drawn(torch.float16)
    for name in ("d gamma", "d down.weight"):
        error, plain = found.errors(name)
        assert error > 10 * plain


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_tokens_of_the_tile_keep_their_bits(dtype):
    near, params, upstream, options = case(dtype=dtype, batch=3)
    far = near.clone()
    far[0, 7] += 1000
    found, wanted = (
        run(through("triton"), tokens, params, upstream, **options) for tokens in (far, near)
    )
    # The convolution takes a token to all of its image, but to no other.
    for name in ("update", "dx"):
        assert torch.equal(found[name][1:], wanted[name][1:])
        assert not torch.equal(found[name][0], wanted[name][0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_token(value):
    x, params, upstream, options = case("baseline", dtype=torch.bfloat16, prefix=5)
    x[0, 1] = value  # a prefix token, which no convolution takes to others
    found = run(through("triton"), x, params, upstream, **options)["update"]
    assert not found[0, 1].isfinite().any()
    assert found[0, 2:].isfinite().all()
    assert found[1].isfinite().all()
