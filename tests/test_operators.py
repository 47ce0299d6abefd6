"""The adapter that the suites time: off the ReLU's kink, so that any inputs pass the gate."""

import pytest
import torch
from hidden_units import hidden_units

from benchmarks import cases, operators
from benchmarks.cases import Shape
from fastht import ops
from fastht.bench import gate

SHAPES = [cases.TINY, Shape(2, 7, 192), Shape(2, 14, 384)]
DTYPES = ["float32", "bfloat16"]
SEEDS = range(6)
MARGIN = 0.5


def case(shape, dtype, seed):
    adapter = operators.make_adapter(shape, "reference")
    params = {name: p.detach() for name, p in adapter.named_parameters()}
    x, dout = operators.make_inputs(shape, dtype, seed)
    return x, dout, params, {"grid_size": shape.grid, "num_prefix_tokens": 1}


def nearest(shape, dtype):
    """Return how near to zero the gate's hidden units come over all seeds."""
    found = []
    for seed in SEEDS:
        x, _, params, options = case(shape, dtype, seed)
        found.append(hidden_units(x, params, **options).abs().min().item())
    return min(found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hidden_units_are_far_from_the_kink(shape, dtype):
    assert nearest(shape, dtype) > MARGIN


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_they_are_initialised_they_are_not(shape, dtype, monkeypatch):
    monkeypatch.setattr(gate, "off_the_kink", lambda bias: bias)
    assert nearest(shape, dtype) < 0.1 * MARGIN


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_some_hidden_units_are_above_zero_and_some_below(shape):
    x, _, params, options = case(shape, "float32", 0)
    hidden = hidden_units(x, params, **options)
    assert (hidden > 0).any(dim=1).all()
    assert (hidden < 0).any(dim=1).all()


def test_parameters_are_what_bfloat16_can_hold_and_the_same_every_time():
    first, second = (case(cases.TINY, "float32", 0)[2] for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, value.bfloat16().float()), name
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", [0, 1, 2, 24])  # 24: refused in bfloat16 before, at the kink
def test_any_inputs_pass_the_gate(seed, dtype):
    if reason := operators.unusable(cases.FUSED, dtype):
        pytest.skip(reason)

    def fused(x, params, **options):
        return ops.ht_adapter(x, params, backend=cases.FUSED, **options)

    x, dout, params, options = case(cases.TINY, dtype, seed)
    assert gate.check(fused, x, dout, params, **options) <= 1.0
