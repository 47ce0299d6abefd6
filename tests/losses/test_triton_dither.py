"""Strict float32: what is cut off of the factors of similarities has no side, whatever they are."""

import pytest
import torch
from engines import DEVICE
from numerics import Draw, violations
from torch.nn import functional as F

from fastht.losses import SoftLabels, SoftTargets, siglip_loss, soft_label_loss, sweeps
from fastht.losses.sweeps import ROWS, Form

pytest.importorskip("triton")
from fastht.losses.triton import forward
from fastht.losses.triton.sweeps import Launcher

pytestmark = [pytest.mark.usefixtures("strict")]
pytestmark += [pytest.mark.gpu] if DEVICE == "cuda" else []
CUT = 0x1FFF  # float32's places that TensorFloat-32 lacks


def with_dither(monkeypatch, value):
    """Give all rows, columns and features one dither; half a place rounds to the nearest."""
    made = Launcher.rounders

    def equal(bits, rest):
        return ((bits.view(torch.int32) & ~CUT) | rest).view(torch.float32)

    def rounders(self):
        rows, columns, features = made(self)
        return equal(rows, value), equal(columns, value), equal(features, 0)

    monkeypatch.setattr(Launcher, "rounders", rounders)


@pytest.fixture
def to_the_nearest(monkeypatch):
    """Round all that is cut to the nearest TensorFloat-32."""
    with_dither(monkeypatch, (CUT + 1) // 2)


def unit(x):
    return F.normalize(x, dim=1)


def shifted(generator):
    """Targets are cosines and 0.3, whose last digits all rows have in common."""
    images, noise = torch.randn(2, 48, 16, generator=generator, dtype=torch.float64)
    images, one = unit(images), images.new_ones(48, 1)
    texts = unit(images + 0.02 * noise)
    return images, texts, torch.cat([images, 0.3 * one], 1), torch.cat([texts, one], 1)


def of_targets(images, texts, q, p, backend):
    targets = SoftTargets.from_factors(q, p)
    labels = SoftLabels(kl=1.0, mse=0.0, temperature=0.07)
    return soft_label_loss(images, texts, targets, labels, backend=backend)


def codes(generator):
    """Features are signs; a third of a text's are not its image's."""
    signs = torch.randn(8, 504, generator=generator, dtype=torch.float64).sign()
    changed = torch.rand(8, 504, generator=generator) < 0.3
    return signs / 504**0.5, torch.where(changed, -signs, signs) / 504**0.5


def of_codes(images, texts, backend):
    scale, bias = images.new_tensor(10.0), images.new_tensor(-5.0)
    return siglip_loss(images, texts, scale, bias, backend=backend)


def constants(generator):
    """One feature is 0.7 in all of them."""
    images, texts = torch.randn(2, 96, 32, generator=generator, dtype=torch.float64)
    seven = images.new_full((96, 1), 0.7)
    return tuple(torch.cat([0.51**0.5 * unit(x), seven], 1) for x in (images, texts))


KINDS = {"shifted": (shifted, of_targets), "codes": (codes, of_codes)}
KINDS["constants"] = constants, of_codes


def broken(kind):
    make, loss = KINDS[kind]

    def evaluate(given, backend, dtype):
        images, texts, *more = (x.float().to(DEVICE, dtype) for x in given)
        leaves = images.requires_grad_(), texts.requires_grad_()
        value = loss(*leaves, *more, backend)
        gradients = torch.autograd.grad(value, leaves)
        found = {"loss": value.detach(), "d images": gradients[0], "d texts": gradients[1]}
        return {name: x.double() for name, x in found.items()}

    def draw(i):
        given = make(torch.Generator().manual_seed(i))
        plain = evaluate(given, "reference", torch.float32)
        exact = evaluate(given, "reference", torch.float64)
        return Draw(evaluate(given, "triton", torch.float32), plain, exact, *given[:2])

    return set(violations(draw, 3, ceilings=False, precision=torch.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_at_most_twice_those_of_plain_pytorch(kind):
    assert broken(kind) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_to_the_nearest_breaks_the_rule(kind, to_the_nearest):
    assert "loss" in broken(kind)


ROWS_OF_ONE_NUMBER = 1024


def errors_of(number):
    """Return the errors of similarities that are one number, in rows of length 1."""
    rows = torch.zeros(ROWS_OF_ONE_NUMBER, 128)
    rows[:, 5], rows[:, 9] = number, (1 - number**2) ** 0.5
    column = torch.zeros(1, 128)
    column[0, 5] = 1.0
    rows, column = rows.to(DEVICE), column.to(DEVICE)
    keys = [torch.zeros(len(x), dtype=torch.int64, device=DEVICE) for x in (rows, column)]
    operands = sweeps.Operands(rows, column, torch.ones((), device=DEVICE))
    operands = operands._replace(row_keys=keys[0], column_keys=keys[1])
    found = forward(Form(softmax=ROWS, keys=True), operands).softmax_rows[3]
    return found.double() - rows[0, 5].double()


NUMBERS = (0.7, 1 / 3, 0.2, 0.1, 0.01)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_rounded_up_as_often_as_what_it_loses_says(number):
    errors = errors_of(number)
    assert len(set(errors.tolist())) > 1
    assert abs(errors.mean()) < 4e-3 * (errors.max() - errors.min())


def test_that_is_not_so_with_one_dither_for_all_rows(to_the_nearest):
    errors = torch.stack([errors_of(number) for number in NUMBERS])
    assert (errors == errors[:, :1]).all()
    assert errors.abs().max() > 1e-8


@pytest.mark.parametrize("value", [0, CUT])
def test_numbers_that_fit_are_kept(value, monkeypatch):
    with_dither(monkeypatch, value)
    assert (errors_of(0.1) != 0).all()
    for number in (0.5, 0.30078125, 0.3):  # of 1, 8 and, in float32, 24 bits
        assert (errors_of(number) == 0).all()
