"""Options of the table's rows that change how a kernel works, and nothing of what it computes."""

import contextlib

import pytest
import torch
from engines import DEVICE
from test_ops import case

pytest.importorskip("triton")
from fastht.ops import ht_adapter
from fastht.ops.triton import adapter, configs, replay
from fastht.ops.triton.launch import CONVOLVING

pytestmark = pytest.mark.gpu if DEVICE == "cuda" else []


@contextlib.contextmanager
def rows(kernels, **options):
    """Let the rows of some kernels have these options."""
    original = configs.options

    def changed(kernel, *wanted):
        chosen = original(kernel, *wanted)
        return {**chosen, **options} if kernel in kernels else chosen

    configs.options = changed
    replay._known.clear()  # recorded with other kernels
    try:
        yield
    finally:
        configs.options = original
        replay._known.clear()


def results(**shape):
    """Return out, and the gradients by name, of a call with dropout.

    Without a gate: its gradient is a sum over pixels, and all of dx would have its roundings.
    """
    x, params, upstream, options = case("freq_enhanced", dtype=torch.bfloat16, dim=32, **shape)
    leaves = {"x": x, **params}
    for leaf in leaves.values():
        leaf.requires_grad_()
    torch.manual_seed(5)
    out = ht_adapter(x, params, backend="triton", dropout=0.2, **options)
    found = torch.autograd.grad(out, list(leaves.values()), upstream)
    return out, dict(zip(leaves, found, strict=True))


def assert_the_same_but_for_sums(found, expected):
    """Hold out and dx to the same bits, and gradients, which are sums, to roundings."""
    (out, gradients), (other, others) = found, expected
    assert torch.equal(out, other)
    assert torch.equal(gradients["x"], others["x"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, others[name], rtol=2**-7, atol=2**-8, msg=lambda m, n=name: f"{n}: {m}"
        )


# Tiles that begin within the prefix, rows of the grid that end within a tile, a map of one pair.
@pytest.mark.parametrize(
    ("prefix", "grid"), [(0, (5, 6)), (1, (5, 14)), (2, (9, 4)), (5, (7, 10)), (3, (1, 2))], ids=str
)
def test_pairs_of_pixels_compute_what_single_ones_do(prefix, grid):
    with rows(CONVOLVING, PIXELS=2):
        pairs = results(prefix=prefix, grid=grid)
    with rows(CONVOLVING, PIXELS=1):
        assert_the_same_but_for_sums(pairs, results(prefix=prefix, grid=grid))


@pytest.mark.parametrize("width", [5, 6])
def test_rows_of_an_odd_number_of_patches_have_no_pairs(monkeypatch, width):
    seen = {}

    class Noted(adapter.Launcher):
        def options(self, kernel):
            seen[kernel] = super().options(kernel)
            return seen[kernel]

    monkeypatch.setattr(adapter, "Launcher", Noted)
    table = {kernel: dict(configs.options(kernel, "sm_90", 16, "16", 32)) for kernel in CONVOLVING}
    with rows(CONVOLVING, PIXELS=2):
        results(grid=(3, width))
    found = {kernel: seen[kernel]["PIXELS"] for kernel in CONVOLVING}
    assert found == dict.fromkeys(CONVOLVING, 2 if width == 6 else 1)
    assert "PIXELS" not in seen["down"]
    # A row that was looked up is the table's still.
    assert table == {kernel: configs.options(kernel, "sm_90", 16, "16", 32) for kernel in table}
