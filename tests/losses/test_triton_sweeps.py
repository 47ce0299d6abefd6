"""The losses' Triton kernels, in the interpreter or on a GPU, against the dense form in float64."""

import loss_sweeps
import numerics
import pytest
import torch
from engines import DEVICE

from fastht.losses import sweeps

triton_sweeps = pytest.importorskip("fastht.losses.triton.sweeps")

pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []
# Rows, columns, features and the first row's own column: blocks that fill up, blocks that do not,
# one pair, and rectangles where rows or columns lack an own one.
SHAPES = ((64, 64, 32, 0), (37, 70, 40, 0), (1, 1, 4, 0), (70, 33, 17, -9), (33, 65, 20, 31))
DTYPES = {"16": torch.bfloat16, "half": torch.float16, "tf32": torch.float32, "32": torch.float32}


@pytest.fixture
def tf32():
    """Say whether products may be TensorFloat-32's; as before afterwards."""
    before = torch.backends.cuda.matmul.allow_tf32

    def allow(value):
        torch.backends.cuda.matmul.allow_tf32 = value

    yield allow
    allow(before)


def results(form, operands, given, backend=triton_sweeps):
    return loss_sweeps.named(
        form, backend.forward(form, operands), backend.backward(form, operands, given)
    )


def relative(one, other):
    return ((one - other).abs().max() / other.abs().max().clamp_min(1e-300)).item()


@pytest.mark.skipif(DEVICE == "cuda", reason="float64 is for the interpreter")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", loss_sweeps.FORMS)
def test_float64_equals_the_dense_form(name, shape):
    form, (rows, columns, dim, offset) = loss_sweeps.FORMS[name], shape
    operands = loss_sweeps.make(rows, columns, dim, torch.float64, offset=offset)
    given = loss_sweeps.coefficients(form, operands)
    found = results(form, operands, given)
    wanted = results(form, operands, given, sweeps)
    assert found.keys() == wanted.keys()
    for quantity, value in wanted.items():
        assert relative(found[quantity], value) < 1e-12, quantity


def draws(form, shape, dtype, spoil=lambda quantity, value: value):
    rows, columns, dim, offset = shape

    def draw(seed):
        operands = loss_sweeps.make(
            rows, columns, dim, dtype, offset=offset, seed=seed, device=DEVICE
        )
        given = loss_sweeps.coefficients(form, operands, seed)
        found = results(form, operands, given)
        plain = loss_sweeps.named(
            form,
            loss_sweeps.plain_forward(form, operands),
            loss_sweeps.plain_backward(form, operands, given),
        )
        exact = results(form, *map(loss_sweeps.widened, (operands, given)), sweeps)
        found = {quantity: spoil(quantity, value) for quantity, value in found.items()}
        return numerics.Draw(found, plain, exact, operands.rows, operands.rows)

    return draw


@pytest.mark.parametrize("numbers", DTYPES)
@pytest.mark.parametrize("name", loss_sweeps.FORMS)
def test_errors_are_at_most_twice_those_of_plain_pytorch(name, numbers, tf32):
    tf32(numbers == "tf32")
    draw = draws(loss_sweeps.FORMS[name], (37, 70, 40, 5), DTYPES[numbers])
    assert not numerics.violations(draw, 2, ceilings=False)


@pytest.mark.parametrize("numbers", ["16", "32"])
@pytest.mark.parametrize("name", ["clip", "siglip keys", "semantic", "shares"])
def test_two_percent_more_break_the_rule(name, numbers):
    def spoil(quantity, value):
        return 1.02 * value

    form = loss_sweeps.FORMS[name]
    draw = draws(form, (37, 70, 40, 5), DTYPES[numbers], spoil)
    assert numerics.violations(draw, 2, ceilings=False).keys() == draw(0).exact.keys()
