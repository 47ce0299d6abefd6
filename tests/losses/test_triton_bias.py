"""Similarities in strict float32: errors without a side, so that those of a batch cancel."""

import math

import numerics
import pytest
import torch
from engines import DEVICE
from torch.nn import functional as F

from fastht.losses import clip_loss, sweeps
from fastht.losses.sweeps import ROWS, Form

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastht.losses.triton import configs, forward  # noqa: E402
from fastht.losses.triton.exponential import exp  # noqa: E402
from fastht.losses.triton.sweeps import Launcher  # noqa: E402

pytestmark = [pytest.mark.usefixtures("strict")]
pytestmark += [pytest.mark.gpu] if DEVICE == "cuda" else []
on_cpu = pytest.mark.skipif(DEVICE == "cuda", reason="of the interpreter's tensor cores")
WIDTH = 512


def pairs(size, seed=0):
    """Return images, and texts that are halfway to them."""
    g = torch.Generator().manual_seed(seed)
    images, noise = (F.normalize(torch.randn(size, WIDTH, generator=g), dim=1) for _ in range(2))
    return images.to(DEVICE), F.normalize(images + noise, dim=1).to(DEVICE)


def dots(rows, columns):
    """Return the sum of each row's similarities, as the forward sweep makes them."""
    keys = [torch.zeros(len(x), dtype=torch.int64, device=DEVICE) for x in (rows, columns)]
    operands = sweeps.Operands(rows, columns, torch.ones((), device=DEVICE))
    operands = operands._replace(row_keys=keys[0], column_keys=keys[1])
    return forward(Form(softmax=ROWS, keys=True), operands).softmax_rows[3].double()


def bias(rows, columns):
    """Return by how much all similarities are larger than they are, in parts of them."""
    exact = (rows.double() @ columns.double().T).sum(1)
    return ((dots(rows, columns) - exact).sum() / exact.sum()).item()


def cone(count, seed):
    """Return rows that are alike, as an encoder's are, so that all products have one sign."""
    g = torch.Generator().manual_seed(seed)
    centre = torch.randn(WIDTH, generator=torch.Generator().manual_seed(99))
    return F.normalize(centre + 0.5 * torch.randn(count, WIDTH, generator=g), dim=1).to(DEVICE)


def test_similarities_are_too_small_as_often_as_too_large():
    assert abs(bias(cone(64, 0), cone(128, 1))) < 1e-8


@on_cpu
@pytest.mark.parametrize(("precision", "least"), [("split", 7e-8), ("tf32x3", 5e-7)])
def test_cut_sums_are_too_small(precision, least, monkeypatch):
    monkeypatch.setitem(configs.SIMILARITIES, "32", precision)
    assert bias(cone(64, 0), cone(128, 1)) < -least


@pytest.mark.parametrize("size", [1e-30, 1e-12, 0.7, 1.0, 1.4, 3e15, 1e30])
def test_rows_of_any_length_are_split_alike(size):
    rows, columns = pairs(64)
    rows, columns = rows * size, columns / size
    columns[3] = 0.0
    wanted = (rows.double() @ columns.double().T).sum(1)
    error = (dots(rows, columns) - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-6


def test_one_feature_that_outweighs_all():
    rows, columns = pairs(64)
    rows[:, 5], columns[:, 5] = 30.0, 30.0
    plain = (rows @ columns.T).double().sum(1)
    exact = (rows.double() @ columns.double().T).sum(1)
    errors = [(x - exact).abs().max() for x in (dots(rows, columns), plain)]
    assert errors[0] <= 2 * errors[1] + 2 * 2.0**-23 * exact.abs().max()


def test_rounders_are_powers_of_two_that_fit_the_length():
    lengths = [1.0, 1 + 1e-4, 1 - 1e-4, 0.51, 1.02, 1.9, 3e-20, 5e18, 0.0, math.inf, math.nan]
    rows = torch.zeros(len(lengths), WIDTH, device=DEVICE)
    rows[:, 7] = torch.tensor(lengths)
    operands = sweeps.Operands(rows, rows, torch.ones((), device=DEVICE))
    made, *_ = Launcher(Form(softmax=ROWS), operands).rounders()
    assert made[0].isfinite().all()
    found = (made[0].view(torch.int32) & ~0x1FFF).view(torch.float32)  # without the dithers
    found = (found / (1.5 * 2**11)).tolist()
    assert found[:8] == [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0**-64, 2.0**63]


@triton.jit
def exp_kernel(x, out, size: tl.constexpr, own: tl.constexpr):
    i = tl.arange(0, size)
    value = tl.load(x + i)
    tl.store(out + i, exp(value) if own else tl.exp(value))


def exponents_are_longer(own):
    """Return by how much exponents seem to be longer than they are, in parts of them."""
    g = torch.Generator().manual_seed(0)
    x = -20 - 40 * torch.rand(8192, generator=g).to(DEVICE)
    out = torch.empty_like(x)
    exp_kernel[(1,)](x, out, size=8192, own=own)
    return (out.double().log() / x.double() - 1).mean().item()


def test_exponents_have_their_length():
    assert abs(exponents_are_longer(True)) < 3e-9


@on_cpu
def test_tritons_own_exponents_are_too_short():
    assert exponents_are_longer(False) < -1e-8


def test_the_exponential_at_its_ends():
    x = torch.tensor([0.0, -math.inf, math.inf, math.nan, -200.0, 88.0, -1e-20, 1e38])
    out = torch.empty(8, device=DEVICE)
    exp_kernel[(1,)](x.to(DEVICE), out, size=8, own=True)
    assert torch.equal(out[[0, 1, 2, 4, 6, 7]].cpu(), x[[0, 1, 2, 4, 6, 7]].exp())
    assert out[3].isnan()
    assert abs(out[5].item() / math.exp(88) - 1) < 1e-5


BATCH, SCALE = 256, 11.8


def draws(seed):
    """Return loss and the scale's gradient near the scale where training leaves it: that of 0.

    There plain PyTorch's errors, which have no side, leave little of themselves, and an error of
    all similarities to one side leaves all.
    """
    images, texts = pairs(BATCH, seed)
    wrong = BATCH // 16  # pairs that do not belong together: else no scale is large enough
    texts[:wrong] = texts[:wrong].roll(1, 0)

    def evaluate(dtype, backend):
        scale = torch.tensor(SCALE, dtype=dtype, device=DEVICE, requires_grad=True)
        loss = clip_loss(images.to(dtype), texts.to(dtype), scale, backend=backend)
        return {
            "loss": loss.detach().double(),
            "d scale": torch.autograd.grad(loss, scale)[0].double(),
        }

    found, plain = evaluate(torch.float32, "triton"), evaluate(torch.float32, "reference")
    return numerics.Draw(found, plain, evaluate(torch.float64, "reference"), images, images)


def test_the_gradient_of_the_scale_keeps_to_the_rule():
    assert not numerics.violations(draws, 3, ceilings=False)


@on_cpu
def test_similarities_of_cut_sums_break_it(monkeypatch):
    monkeypatch.setitem(configs.SIMILARITIES, "32", "split")
    assert "d scale" in numerics._above_plain([draws(0), draws(1)], ["d scale"], torch.float32, max)
