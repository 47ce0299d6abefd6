"""The rule of correctness where images are like their texts, and the KL term is small.

It is then a small difference of large numbers, of which the dense form in float32 keeps more digits
than sums do that were rounded on their own.
"""

import pytest
import torch
from alike_pairs import CASES, pairs, value
from loss_cases import CANDIDATES, small_blocks
from numerics import Draw, violations

from fastht.losses import SoftTargets, soft_label_loss
from fastht.losses.blocked import divergences, forward_sweep

__all__ = ["small_blocks"]


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
