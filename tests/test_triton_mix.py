"""What the kernels share between the projections, by itself."""

import math

import pytest
import torch
from engines import DEVICE

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastht.ops.triton.mix import normal  # noqa: E402

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@triton.jit
def normal_kernel(y, cdf, density, narrow: tl.constexpr, width: tl.constexpr):
    i = tl.arange(0, width)
    p, d = normal(tl.load(y + i), narrow)
    tl.store(cdf + i, p)
    tl.store(density + i, d)


def evaluated(y, narrow):
    cdf, density = torch.empty_like(y), torch.empty_like(y)
    normal_kernel[(1,)](y, cdf, density, narrow=narrow, width=len(y))
    return cdf, density


@pytest.mark.parametrize(("narrow", "bound"), [(True, 3e-7), (False, 1e-7)])
def test_the_normal_distribution_is_nearer_than_its_numbers_need(narrow, bound):
    y = torch.linspace(-9, 9, 8192, device=DEVICE)
    cdf, density = evaluated(y, narrow)
    exact = 0.5 * torch.erfc(-y.double() / math.sqrt(2))
    assert (cdf.double() - exact).abs().max() < bound
    slope = torch.exp(-0.5 * y.double().square()) / math.sqrt(2 * math.pi)
    assert (density.double() - slope).abs().max() < 1e-7
    # An eighth of the roundings of bfloat16 and float16 of GELU, and of its derivative.
    assert (y.double() * (cdf.double() - exact)).abs().max() < 2**-11 / 8


@pytest.mark.parametrize("narrow", [True, False])
def test_the_normal_distribution_has_its_limits(narrow):
    y = torch.tensor([-math.inf, math.inf, math.nan, 0.0], device=DEVICE)
    cdf, density = evaluated(y, narrow)
    torch.testing.assert_close(
        cdf.cpu(), torch.tensor([0.0, 1.0, math.nan, 0.5]), rtol=0, atol=1e-7, equal_nan=True
    )
    limits = torch.tensor([0.0, 0.0, math.nan, 1 / math.sqrt(2 * math.pi)])
    torch.testing.assert_close(density.cpu(), limits, rtol=1e-6, atol=0, equal_nan=True)
