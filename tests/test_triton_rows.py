"""Options of the table's rows that change how a kernel works, and nothing of what it computes."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import DEVICE
from test_ops import case

pytest.importorskip("triton")
import triton.language as tl

from fastht.ops import ht_adapter
from fastht.ops.triton import adapter, configs, replay, tokens
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


def results(keep="auto", layout=torch.clone, dtype=torch.bfloat16, **shape):
    """Return out, and the gradients by name, of a call with dropout.

    Without a gate: its gradient is a sum over pixels, and all of dx would have its roundings.
    """
    shape = {"dim": 32, **shape}
    x, params, upstream, options = case("freq_enhanced", dtype=dtype, **shape)
    x = layout(x)
    leaves = {"x": x, **params}
    for leaf in leaves.values():
        leaf.requires_grad_()
    torch.manual_seed(5)
    out = ht_adapter(x, params, backend="triton", dropout=0.2, keep=keep, **options)
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


def in_turns(x):
    """Lay images out token by token, as towers do that put the tokens first."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def far_apart(x):
    """Lay the features of a token out with others between them."""
    return torch.stack((x, x), dim=-1)[..., 0]


def named(case):
    """Name a case by its values, functions by their names: processes must agree on it."""
    values = case.items() if isinstance(case, dict) else [("width", case)]
    return "-".join(f"{key}={getattr(value, '__name__', value)}" for key, value in values)


# Features that fill the products, or end within one, or within a thread's eight; no image's tokens
# fill its tiles.
@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"BD": 128, "ACROSS": 4}, {"dim": 256, "prefix": 0, "grid": (5, 6)}),
        ({"BD": 128, "ACROSS": 4}, {"dim": 160, "prefix": 1, "grid": (3, 13), "batch": 3}),
        ({"BD": 128, "ACROSS": 4}, {"dim": 37, "prefix": 5, "grid": (7, 8), "batch": 1}),
        ({"BD": 128, "ACROSS": 4}, {"dim": 128, "dtype": torch.float32}),
        ({"BD": 128, "ACROSS": 2}, {"dim": 96, "layout": in_turns}),
        ({"BD": 64, "ACROSS": 2}, {"dim": 72, "layout": far_apart, "channels": 24}),
        ({"BD": 32, "ACROSS": 1}, {"dim": 64, "dtype": torch.float16}),
    ],
    ids=named,
)
def test_features_that_change_places_are_written_to_their_own(options, shape):
    tiles = {"BM": 32, "BD": 32, "PIXELS": 2}
    # With the output kept, the backward pass takes the update away again.
    with rows({"up"}, **{**tiles, **options}):
        dealt = results(keep="output", **shape)
    with rows({"up"}, **{**tiles, "ACROSS": 0}):
        assert_the_same_but_for_sums(dealt, results(keep="output", **shape))


@pytest.mark.skipif(DEVICE == "cuda", reason="sees the addresses in the interpreter alone")
@pytest.mark.parametrize(
    ("width", "shape"),
    [
        (512, {"dim": 600, "grid": (5, 6), "prefix": 5}),
        (256, {"dim": 192, "grid": (3, 13), "batch": 3, "layout": in_turns}),
    ],
    ids=named,
)
def test_what_is_asked_for_ahead_is_all_of_the_tokens_and_nothing_else(monkeypatch, width, shape):
    from triton.runtime import interpreter

    asked, given = [], []

    def noted(asm, constraints, values, types, pure, pack):
        assert "prefetch.global.L2 [$1]" in asm
        assert not pure
        asked.append(values[0].data.ravel())
        zeros = interpreter.TensorHandle(np.zeros(values[0].data.shape, np.int32), tl.int32)
        return SimpleNamespace(get_result=lambda number: zeros)

    class Noted(adapter.Launcher):
        def __init__(self, x, *arguments):
            given.append(x)
            super().__init__(x, *arguments)

    monkeypatch.setattr(interpreter.interpreter_builder, "create_inline_asm", noted, raising=False)
    monkeypatch.setattr(tokens, "COMPILED", tl.constexpr(True))
    monkeypatch.setattr(adapter, "Launcher", Noted)
    with rows({"up"}, AHEAD=width, BM=32):
        out, _ = results(**shape)
    with rows({"up"}, AHEAD=0, BM=32):
        assert torch.equal(out, results(**shape)[0])
    x = given[0]
    batch, count, dim = x.shape
    first = np.arange(0, min(width, dim), 32)  # a feature of each 64 bytes of a token
    places = (
        np.arange(batch)[:, None, None] * x.stride(0)
        + np.arange(count)[None, :, None] * x.stride(1)
        + np.concatenate((first, [dim - 1] * (width > dim)))[None, None, :]
    )
    assert set(np.concatenate(asked)) == set((x.data_ptr() + 2 * places).ravel())
