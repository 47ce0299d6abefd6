"""Pairs of pixels that share what they load of the map: what they compute, and where none are."""

import contextlib

import pytest
import torch
from engines import DEVICE
from test_ops import case

pytest.importorskip("triton")
from fastht.ops import ht_adapter
from fastht.ops.triton import configs, replay
from fastht.ops.triton.launch import CONVOLVING

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


@contextlib.contextmanager
def pixels(count):
    """Let the kernels that convolve take so many pixels together."""
    original = configs.options

    def options(kernel, *wanted):
        chosen = original(kernel, *wanted)
        return {**chosen, "PIXELS": count} if kernel in CONVOLVING else chosen

    configs.options = options
    replay._known.clear()  # recorded with other kernels
    try:
        yield
    finally:
        configs.options = original
        replay._known.clear()


def results(count, **shape):
    """Return out, and the gradients by name, of a call with dropout.

    Without a gate: its gradient is a sum over pixels, and all of dx would have its roundings.
    """
    x, params, upstream, options = case("freq_enhanced", dtype=torch.bfloat16, dim=32, **shape)
    leaves = {"x": x, **params}
    for leaf in leaves.values():
        leaf.requires_grad_()
    torch.manual_seed(5)
    with pixels(count):
        out = ht_adapter(x, params, backend="triton", dropout=0.2, **options)
        found = torch.autograd.grad(out, list(leaves.values()), upstream)
    return out, dict(zip(leaves, found, strict=True))


# Tiles that begin within the prefix, rows of the grid that end within a tile, a map of one pair.
@pytest.mark.parametrize(
    ("prefix", "grid"), [(0, (5, 6)), (1, (5, 14)), (2, (9, 4)), (5, (7, 10)), (3, (1, 2))], ids=str
)
def test_pairs_give_the_bits_of_single_pixels(prefix, grid):
    out, gradients = results(2, prefix=prefix, grid=grid)
    expected, single = results(1, prefix=prefix, grid=grid)
    assert torch.equal(out, expected)
    assert torch.equal(gradients["x"], single["x"])
    for name, gradient in gradients.items():  # sums over pixels, in another order
        torch.testing.assert_close(gradient, single[name], rtol=2**-7, atol=2**-8, msg=name)


@pytest.mark.parametrize("width", [5, 6])
def test_rows_of_an_odd_number_of_patches_have_no_pairs(monkeypatch, width):
    from fastht.ops.triton import adapter

    seen = {}

    class Noted(adapter.Launcher):
        def options(self, kernel):
            seen[kernel] = super().options(kernel)
            return seen[kernel]

    monkeypatch.setattr(adapter, "Launcher", Noted)
    table = {kernel: configs.options(kernel, "sm_90", 16, "16", 32) for kernel in CONVOLVING}
    results(2, grid=(3, width))
    assert {kernel: seen[kernel]["PIXELS"] for kernel in CONVOLVING} == dict.fromkeys(
        CONVOLVING, 2 if width == 6 else 1
    )
    assert "PIXELS" not in seen["down"]
    # What was looked up is the table's still.
    assert table == {
        kernel: configs.options(kernel, "sm_90", 16, "16", 32) for kernel in CONVOLVING
    }
