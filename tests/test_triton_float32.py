"""Strict float32 on tensor cores, in sums long enough to tell how they are made."""

import numerics
import pytest
import torch
from engines import DEVICE
from numerics import Draw, run
from test_ops import case, through

from fastht import reference

launch = pytest.importorskip("fastht.ops.triton.launch")
if DEVICE == "cuda":
    pytest.skip("the kernels themselves are held to the rule there", allow_module_level=True)


@pytest.fixture(scope="module")
def problem():
    """Return inputs, and what plain PyTorch and the reference in float64 make of them."""
    x, params, upstream, options = case(dim=512, channels=32, batch=4, grid=(9, 9))
    wide = {name: p.double() for name, p in params.items()}
    exact = run(reference.ht_adapter, x.double(), wide, upstream.double(), **options)
    plain = run(reference.ht_adapter, x, params, upstream, **options)
    return (x, params, upstream), options, plain, exact


def above_the_rule(problem):
    """Name what is off by more than the rule allows in these inputs."""
    inputs, options, plain, exact = problem
    found = run(through("triton"), *inputs, **options)
    draw = Draw(found, plain, exact, inputs[0], inputs[2])
    return numerics._above_plain([draw], exact, torch.float32, max).keys()


def test_three_products_keep_to_the_rule(problem):
    assert launch.PRECISIONS["32"] == "split"
    assert not above_the_rule(problem)


@pytest.mark.parametrize("precision", ["tf32x3", "rounded"])
def test_the_rule_sees_sums_that_stay_in_tensor_cores_and_single_products(
    problem, precision, monkeypatch
):
    monkeypatch.setitem(launch.PRECISIONS, "32", precision)
    broken = above_the_rule(problem)
    # Sums over features, and over tokens.
    assert {"update", "dx", "d down.weight", "d up.weight"} <= broken
