"""Shortcuts through the interpreter: the bits are Triton's own, and so is every error."""

import pytest
import torch
import triton_shortcuts
from test_ops import case, through

triton = pytest.importorskip("triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("kernels run on a GPU here", allow_module_level=True)

import triton.language as tl  # noqa: E402
from triton.runtime.errors import InterpreterError  # noqa: E402

if not hasattr(triton.runtime.interpreter, "_LangPatchScope"):
    pytest.skip("Triton before 3.6 has no shortcuts", allow_module_level=True)


@triton.jit
def numbers_kernel(x, y, out, n, rows: tl.constexpr):
    """Make numbers of numbers: each operator, with a block, a column, a scalar and a constant."""
    i, j = tl.arange(0, rows), tl.arange(0, 8)
    at = i[:, None] * 8 + j[None, :]
    a = tl.load(x + at, mask=(i < n)[:, None], other=1)
    b = tl.load(y + at)
    row, scalar = tl.load(y + j)[None, :], tl.load(y + 1)
    total = a + b - row * scalar + 3 - (2 - a) + 5 * b + (7 + row)
    total += tl.where(a < b, a, b) + tl.where(a >= row, 4, b) + tl.where(b == scalar, a, 1)
    total += tl.where((a > 2) & (b <= 5) | (a != b), a * 2, b)
    total += tl.full((rows, 8), 2, total.dtype) + tl.zeros((rows, 8), total.dtype)
    tl.store(out + at, total, mask=(j < 7)[None, :])
    tl.store(out + rows * 8, scalar * 2)


@triton.jit
def real_kernel(x, y, out, n, rows: tl.constexpr):
    i, j = tl.arange(0, rows), tl.arange(0, 8)
    at = i[:, None] * 8 + j[None, :]
    a, b = tl.load(x + at), tl.load(y + at, mask=(j < n)[None, :], other=-0.5)
    mean = tl.sum(a, axis=1) / n
    total = -(a - mean[:, None]) / (b + 0.25) * tl.sum(tl.sum(b, axis=0), axis=0)
    total += i[:, None] * a + b / n + tl.where(a == a, 1.5, a)
    tl.store(out + at, total)


@triton.jit
def whole_kernel(x, y, out, n, rows: tl.constexpr):
    i, j = tl.arange(0, rows), tl.arange(0, 8)
    at = i[:, None] * 8 + j[None, :]
    a, b = tl.load(x + at), tl.load(y + at)
    total = a // b + a % b + a // 3 + a % 7 + ((a << 2) ^ (b >> 1)) + (a & 0xFF | b)
    tl.store(out + at, total + i.to(total.dtype)[:, None])


@triton.jit
def bits_kernel(x, y, out, n, rows: tl.constexpr):
    """Cut float32 as the kernels' products do, and round it to 16 bits and back."""
    at = tl.arange(0, rows * 8)
    a = tl.load(x + at)
    word = a.to(tl.uint32, bitcast=True) + 0x1000
    cut = (word & 0xFFFFE000).to(tl.float32, bitcast=True)
    low = (word & 0xFFFF).to(tl.int32, bitcast=True)
    half = a.to(tl.float16).to(tl.float32) + a.to(tl.bfloat16).to(tl.float32)
    places = (at - rows * 4).to(tl.int64) + (low << 16 >> 16)
    near = out + rows * 8 + (at - rows * 8)  # before where it begins
    tl.store(near, cut + half + places.to(tl.float32))


CASES = {
    "numbers": (numbers_kernel, ("float32", "float64", "int32", "int64", "uint32")),
    "real": (real_kernel, ("float32", "float64")),
    "whole": (whole_kernel, ("int32", "int64", "uint32")),
    "bits": (bits_kernel, ("float32",)),
}
PAIRS = [(name, dtype) for name, (_, dtypes) in CASES.items() for dtype in dtypes]


@pytest.fixture
def taken(monkeypatch):
    """Count which shortcuts led to an end, and which to Triton's way."""
    counts = {True: 0, False: 0}

    def before(shortcut, slow):
        def counted(*given, **named):
            counts[False] += 1
            return slow(*given, **named)

        def through_it(*given, **named):
            counts[True] += 1
            return shortcut(counted, *given, **named)

        return through_it

    monkeypatch.setattr(triton_shortcuts, "_before", before)
    return counts


def run(name, dtype, rows=4):
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.rand(rows, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    if not dtype.startswith("float"):
        x, y = 40 * x + 90, 6 * y + 1
    x, y = (v.to(getattr(torch, dtype)) for v in (x, y))
    out = torch.zeros(rows * 8 + 1, dtype=x.dtype)
    CASES[name][0][(1,)](x, y, out, 3, rows=rows)
    return out


@pytest.mark.parametrize(("name", "dtype"), PAIRS)
def test_the_bits_are_those_of_tritons_own_way(name, dtype, taken, monkeypatch):
    found = run(name, dtype)
    assert taken[True] > 20
    assert taken[False] <= 8  # what makes ranges, and what these kernels do once
    monkeypatch.setattr(triton_shortcuts, "shorten", lambda scope: None)
    assert torch.equal(found, run(name, dtype))
    assert found.unique().numel() > 8
    assert taken[True] > 20


@pytest.mark.parametrize(
    ("spectral", "dtype"), [("channel", torch.float32), ("full", torch.bfloat16)]
)
def test_the_adapter_has_the_same_bits(spectral, dtype, taken, monkeypatch):
    shape = {"batch": 1, "grid": (2, 3), "dim": 24, "channels": 8}

    def passes():
        x, params, upstream, options = case(spectral=spectral, dtype=dtype, **shape)
        leaves = [x, *params.values()]
        for leaf in leaves:
            leaf.requires_grad_()
        torch.manual_seed(3)
        out = through("triton")(x, params, dropout=0.3, **options)
        return out, *torch.autograd.grad(out, leaves, upstream)

    found = passes()
    assert taken[False] < taken[True] / 4
    monkeypatch.setattr(triton_shortcuts, "shorten", lambda scope: None)
    for one, other in zip(found, passes(), strict=True):
        assert torch.equal(one, other)


@triton.jit
def wrong_kernel(x, out, what: tl.constexpr):
    i, j = tl.arange(0, 4), tl.arange(0, 8)
    if what == "other without a mask":
        tl.load(x + i, other=0.0)
    if what == "a mask of another size":
        tl.store(x + i, 1.0, mask=j < 3)
    if what == "blocks of other sizes":
        tl.store(x + i, i + j)
    if what == "a mask of numbers":
        tl.store(x + i, 1.0, mask=i)
    if what == "no power of two":
        tl.zeros((3,), tl.float32)
    if what == "no pointer":
        tl.load(i)
    if what == "a number that does not fit":
        tl.store(x + i, (i + 2**31).to(tl.float32))
    if what == "a fraction of an index":
        tl.load(x + i / 2)
    tl.store(out, 1.0)


@pytest.mark.parametrize(
    "what",
    [
        "other without a mask", "a mask of another size", "blocks of other sizes",
        "a mask of numbers", "no power of two", "no pointer", "a fraction of an index", "nothing",
    ],
)  # fmt: skip
def test_what_triton_refuses_is_refused(what, monkeypatch):
    def told():
        out = torch.zeros(1)
        try:
            wrong_kernel[(1,)](torch.zeros(8), out, what=what)
        except InterpreterError as error:
            return str(error)
        return out.item()

    found = told()
    monkeypatch.setattr(triton_shortcuts, "shorten", lambda scope: None)
    assert found == told()
    assert (found == 1.0) == (what == "nothing")
