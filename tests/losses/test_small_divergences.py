"""The rule of correctness where images are like their texts, and the KL term is small.

It is then a small difference of large numbers, of which the dense form in float32 keeps more digits
than sums do that were rounded on their own.
"""

import pytest
import torch
from loss_cases import CANDIDATES, DEVICE, small_blocks
from numerics import Draw, violations
from torch import Tensor
from torch.nn import functional as F

from fastht.losses import SoftLabels, SoftTargets, soft_label_loss
from fastht.losses.blocked import divergences, forward_sweep

__all__ = ["small_blocks"]

SIZE, WIDTH, KINDS = 48, 32, 12
Pairs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]  # images, texts, factors, keys


def unit(x):
    return F.normalize(x, dim=1)


def certain(normal, generator):
    """One pair leads in each row; others have tags that are alike, or all but so."""
    images = unit(normal(SIZE, WIDTH))
    kind = F.one_hot(torch.randint(KINDS, (SIZE,), generator=generator), KINDS).double()
    similarity = 0.6 + 0.2 * torch.rand(KINDS, KINDS, generator=generator, dtype=torch.float64)
    return images, unit(images + 0.1 * normal(SIZE, WIDTH)), kind @ similarity, kind, None


def apart(constant, noise):
    """Targets are the cosines and a constant, but for some noise: no distance between softmaxes."""

    def make(normal, generator):
        images, other = unit(normal(SIZE, WIDTH)), normal(SIZE, WIDTH)
        other = unit(other - (other * images).sum(1, keepdim=True) * images)
        own = 1 - constant  # so that the own pair's target of 1 is its cosine and the constant too
        texts = own * images + (1 - own**2) ** 0.5 * other
        one = images.new_ones(SIZE, 1)
        q = torch.cat([images, constant * one], dim=1)
        return (
            images,
            texts,
            q,
            torch.cat([unit(texts + noise * normal(SIZE, WIDTH)), one], 1),
            None,
        )

    return make


def captions(normal, generator):
    """Several share a caption, and their pairs lead together."""
    keys = torch.randint(SIZE // 4, (SIZE,), generator=generator)
    caption = unit(normal(SIZE // 4, WIDTH))[keys]
    images, texts = (unit(caption + 1e-4 * normal(SIZE, WIDTH)) for _ in "12")
    return images, texts, unit(images + 1e-2 * normal(SIZE, WIDTH)), texts, keys


# Name -> how pairs are made, temperature, and between what the divergence lies.
CASES = {
    "certain": (certain, 0.02, 1e-3, 3e-2),
    "apart 1e-1": (apart(0.5, 0.1), 0.04, 1e-2, 1.0),
    "apart 1e-4": (apart(0.9, 1e-3), 0.07, 1e-5, 1e-3),
    "apart 1e-9": (apart(0.5, 1e-5), 0.07, 1e-10, 1e-8),
    "warm": (apart(0.9, 1e-3), 1.0, 1e-8, 1e-6),
    "captions": (captions, 0.1, 1e-7, 1e-4),
}


def pairs(case, seed, dtype=torch.float32) -> Pairs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    *tensors, keys = CASES[case][0](normal, generator)
    # In float32 first, so that all dtypes are given the same numbers.
    tensors = [x.float().to(DEVICE, dtype) for x in tensors]
    return *tensors, None if keys is None else keys.to(DEVICE)


def value(case, given, backend):
    """Return the loss and the gradients of the features, in float64."""
    images, texts = (x.clone().requires_grad_() for x in given[:2])
    wide = torch.float64 if images.dtype == torch.float64 else torch.float32
    targets = SoftTargets.from_factors(*(x.to(wide) for x in given[2:4]))
    labels = SoftLabels(kl=1.0, mse=0.0, temperature=CASES[case][1])
    loss = soft_label_loss(images, texts, targets, labels, keys=given[4], backend=backend)
    loss.backward()
    found = {"loss": loss.detach(), "d images": images.grad, "d texts": texts.grad}
    return {name: x.double() for name, x in found.items()}


def broken(case, backend, spoil=1.0):
    def draw(i):
        given = pairs(case, i)
        exact = value(case, pairs(case, i, torch.float64), "reference")
        assert CASES[case][2] < exact["loss"] < CASES[case][3]
        found = value(case, given, backend)
        found["loss"] *= spoil
        return Draw(found, value(case, given, "reference"), exact, given[0], given[0])

    return violations(draw, 3, ceilings=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_error_at_most_twice_that_of_plain_pytorch(backend, case):
    assert broken(case, backend) == {}


@pytest.mark.parametrize("case", ["certain", "apart 1e-4"])
def test_also_over_many_blocks(small_blocks, case):
    assert broken(case, "blocked") == {}


def test_a_thousandth_breaks_the_rule():
    assert set(broken("certain", "blocked", spoil=1.001)) == {"loss"}


@pytest.mark.parametrize("case", ["apart 1e-4", "captions"])
def test_sums_that_rows_and_columns_share_break_the_rule_there(monkeypatch, case):
    monkeypatch.setattr(divergences, "_LARGEST_PARTS", float("inf"))
    assert set(broken(case, "blocked")) == {"loss"}


@pytest.fixture
def sweeps(monkeypatch):
    """The forward sweeps that were begun."""
    begun = []

    def spied(operands, blocks=forward_sweep.blocks):
        begun.append(len(operands.rows))
        return blocks(operands)

    monkeypatch.setattr(forward_sweep, "blocks", spied)
    return begun


@pytest.mark.parametrize(
    ("case", "dtype", "expected"),
    [
        ("certain", torch.float32, 1),  # small, but not beside the own pair's rest
        ("apart 1e-4", torch.float32, 2),
        ("apart 1e-9", torch.float32, 2),
        ("captions", torch.float32, 2),
        ("apart 1e-1", torch.bfloat16, 1),  # the products were rounded by more
        ("apart 1e-9", torch.float64, 1),
    ],
)
def test_only_where_digits_were_lost_is_there_a_second_sweep(
    small_blocks, sweeps, case, dtype, expected
):
    value(case, pairs(case, 0, dtype), "blocked")
    assert len(sweeps) == expected


def test_different_images_and_texts_take_one_sweep(small_blocks, sweeps):
    images, _, q, p, _ = pairs("certain", 0)
    texts = pairs("certain", 1)[0]
    soft_label_loss(images, texts, SoftTargets.from_factors(q, p), backend="blocked")
    assert len(sweeps) == 1


def test_the_second_sweep_leaves_gradients_as_they_were(small_blocks, monkeypatch):
    given = pairs("apart 1e-4", 0)
    again = value("apart 1e-4", given, "blocked")
    monkeypatch.setattr(divergences, "_LARGEST_PARTS", float("inf"))
    once = value("apart 1e-4", given, "blocked")
    assert again["loss"] != once["loss"]
    assert torch.equal(again["d images"], once["d images"])
    assert torch.equal(again["d texts"], once["d texts"])
