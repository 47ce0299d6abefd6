"""The rule of correctness: at most twice the error of plain PyTorch in the same dtype."""

import pytest
import torch
from loss_cases import CANDIDATES, CASES, evaluate, make_batch, small_blocks
from numerics import Draw, violations

from fastht.losses import SoftLabels, soft_label_loss

__all__ = ["small_blocks"]

DRAWS = 3


def broken(case, backend, dtype, *, spoil=lambda results: results, **options):
    def draw(i):
        batch = make_batch(40, dtype, seed=i, **options)
        exact = evaluate(case, batch.to(torch.float64), "reference")
        plain = evaluate(case, batch, "reference")
        found = spoil(evaluate(case, batch, backend))
        return Draw(found, plain, exact, batch.images, batch.images)

    return violations(draw, DRAWS, ceilings=False, precision=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_error_at_most_twice_that_of_plain_pytorch(small_blocks, backend, case, dtype):
    assert broken(case, backend, dtype) == {}


@pytest.mark.parametrize("case", ["clip", "clip keys", "siglip", "siglip keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_pairs_that_are_almost_certain(small_blocks, backend, case, dtype):
    """Converged, at the scale that CLIP ends with: p - 1 cancels to a few parts in a thousand."""
    assert broken(case, backend, dtype, scale=100.0, alike=0.2) == {}


@pytest.mark.parametrize("name", ["loss", "d images", "d texts", "d scale"])
def test_two_percent_break_the_rule(name):
    def spoil(results):
        return results | {name: 1.02 * results[name]}

    assert set(broken("clip", "blocked", torch.float32, spoil=spoil)) == {name}


@pytest.mark.parametrize("backend", CANDIDATES)
def test_certain_pairs_keep_the_digits_that_dense_loses(backend):
    """With p = 1 - 1e-7 the dense loss and gradients have one digit in float32, or none."""
    batch = make_batch(40, torch.float32, scale=100.0, alike=0.08, width=64)
    exact = evaluate("clip", batch.to(torch.float64), "reference")
    found, dense = (evaluate("clip", batch, name) for name in (backend, "reference"))
    assert 1e-9 < exact["loss"] < 1e-6
    for name, value in exact.items():
        error, plain = ((x[name] - value).abs().max() / value.abs().max() for x in (found, dense))
        assert error < 1e-4, name
        assert plain > 20 * error, name


def test_float16_survives_a_batch_whose_weights_underflow():
    """1 / (2 B) times a probability is under float16's smallest number for most pairs."""
    batch = make_batch(64, torch.float16, scale=30.0)
    exact = evaluate("clip", batch.to(torch.float64), "reference", upstream=2.0**16)
    found = evaluate("clip", batch, "blocked", upstream=2.0**16)
    error = (found["d images"] - exact["d images"]).abs().max() / exact["d images"].abs().max()
    assert error < 2e-3


@pytest.mark.parametrize("weights", [{"mse": 1e-5, "kl": 0.0}, {"mse": 0.0, "kl": 1e-7}], ids=str)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_float16_survives_a_small_weight(small_blocks, backend, weights):
    """A term's weight, and the 2 / B of squared errors, would leave its derivatives no digits."""
    batch = make_batch(40, torch.float16)

    def gradients(batch, backend):
        leaves = [x.detach().requires_grad_() for x in (batch.images, batch.texts)]
        loss = soft_label_loss(
            *leaves, batch.soft("zero"), SoftLabels(**weights, temperature=1.0), backend=backend
        )
        return torch.autograd.grad(loss * 2.0**24, leaves)  # the results are no subnormals

    exact = gradients(batch.to(torch.float64), "reference")
    for found, wanted in zip(gradients(batch, backend), exact, strict=True):
        assert wanted.abs().max() > 1e-3
        assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()
