"""In float64 every backend computes what dense autograd computes, to 1e-10."""

import pytest
import torch
from loss_cases import (
    CANDIDATES,
    CASES,
    evaluate,
    make_batch,
    skip_unless_taken,
    small_blocks,
    thin,
    worst_error,
)

from fastht.losses import siglip_loss, sweeps
from fastht.losses.registry import implementation
from fastht.losses.sweeps import BOTH, COLUMNS, ROWS, Form, Operands

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

TOLERANCE = 1e-10
CONTROLS = {  # what a broken backend might compute instead
    "clip": "clip image",
    "clip keys": "clip",
    "siglip": "clip",
    "siglip keys": "siglip",
    "kl image zero": "soft zero keys",
    "kl text ignore": "kl image zero",
    "mse ignore keys": "kl text ignore",
    "soft factors": "soft zero keys",
    "soft zero keys": "kl image zero",
    "clip soft ignore": "clip soft zero keys",
    "clip soft zero keys": "clip keys",
    "siglip soft ignore keys": "siglip keys",
}


@pytest.mark.parametrize("size", [1, 2, 33, 100])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_loss_and_gradients_equal_dense_autograd(backend, case, size):
    thin(backend, size in (1, 33))
    batch = make_batch(size)
    expected = evaluate(case, batch, "reference")
    assert worst_error(evaluate(case, batch, backend), expected) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_the_comparison_sees_a_dropped_term_and_two_percent(case):
    batch = make_batch(33)
    expected = evaluate(case, batch, "reference")
    for name in expected:
        if not expected[name].abs().max() > 0:  # as of a bias that a softmax cancels
            continue
        scaled = expected | {name: 1.02 * expected[name]}
        assert worst_error(scaled, expected) > 100 * TOLERANCE, name
    if case in CONTROLS:
        other = evaluate(CONTROLS[case], batch, "reference")
        shared = expected.keys() & other.keys()
        for name in shared - {"d scale", "d bias"}:
            assert worst_error({name: other[name]}, {name: expected[name]}) > 1e6 * TOLERANCE, name


@pytest.mark.parametrize("scale", [0.0, -15.0, 60.0, 100.0, 139.0, 500.0])
@pytest.mark.parametrize("alike", [0.0, 1.0])
@pytest.mark.parametrize("case", ["clip", "clip keys", "siglip", "clip soft ignore"])
@pytest.mark.parametrize("backend", CANDIDATES)
def test_scales_from_zero_to_far_beyond_one_shift(backend, case, alike, scale):
    thin(backend, alike == 0.0 and scale in (0.0, 139.0))
    batch = make_batch(50, scale=scale, alike=alike)
    expected = evaluate(case, batch, "reference")
    assert worst_error(evaluate(case, batch, backend), expected) < TOLERANCE


def test_rows_that_one_shift_would_lose_are_found(monkeypatch):
    """At scale 139 one shift is tried; a row of only opposite texts falls out of its range."""
    from fastht.losses.blocked import forward_sweep

    batch = make_batch(50, scale=139.0, dtype=torch.float32)
    axis = torch.zeros(24)
    axis[0] = 1.0
    batch.texts[:] = torch.nn.functional.normalize(axis + 0.01 * batch.texts, dim=1)
    batch.images[7] = -axis
    batch.images[8] = axis
    calls = []
    sweep = forward_sweep.ForwardSweep

    def spied(pairs, shifts):
        calls.append(shifts and shifts.softmax)
        return sweep(pairs, shifts)

    monkeypatch.setattr(forward_sweep, "ForwardSweep", spied)
    found = evaluate("clip image", batch, "blocked")
    assert calls == [pytest.approx(79.0, abs=0.1), None]
    exact = evaluate("clip image", batch.to(torch.float64), "reference")
    assert worst_error(found, exact) < 1e-4
    calls.clear()
    evaluate("clip image", make_batch(50, scale=139.0, dtype=torch.float32), "blocked")
    assert calls == [pytest.approx(79.0, abs=0.1)]


FORMS = [
    *(Form(softmax=d, keys=k) for d in (ROWS, COLUMNS, BOTH) for k in (False, True)),
    *(Form(sigmoid=True, keys=k) for k in (False, True)),
    *(Form(kl=d, mse=m, shares=s) for d, m, s in [(1, 0, 0), (2, 0, 1), (3, 1, 1), (0, 1, 0)]),
    Form(softmax=BOTH, kl=BOTH, mse=True, keys=True, shares=True),
]


def rectangle(rows, columns, offset, form):
    a, b = make_batch(rows, seed=1), make_batch(columns, seed=2)
    shares = torch.randint(2, (rows + columns, 3)).double().to(a.images.device)
    return Operands(
        a.images, b.texts, a.scale, a.bias, offset, a.keys, b.keys,
        torch.rand(rows, 5).to(a.images), torch.rand(columns, 5).to(a.images),
        *((shares[:rows].contiguous(), shares[rows:].contiguous()) if form.shares else (None,) * 2),
        temperature=0.3,
    )  # fmt: skip


def softmax_of(statistics):
    """Return what does not depend on the shift that a backend chose."""
    results = {"sigmoid": statistics.sigmoid, "mse": statistics.mse}
    for name in ("softmax_rows", "softmax_columns"):
        shift, others, own, dot = getattr(statistics, name)
        log = (others + own).log()
        results |= {f"{name} lse": shift + log, f"{name} dot": dot}
        results |= {f"{name} own": own / log.exp(), f"{name} others": others / log.exp()}
    for name in ("kl_rows", "kl_columns"):
        logit_shift, logit_sum, target_shift, target_sum, divergence = getattr(statistics, name)
        results |= {
            f"{name} logits": logit_shift + logit_sum.log(),
            f"{name} divergence": divergence,
        }
        results[f"{name} targets"] = target_shift + target_sum.log()
    return {name: x for name, x in results.items() if x.numel()}


def coefficients_for(form, statistics, rows):
    """Return coefficients of no loss in particular, each of its own size."""
    g = torch.Generator().manual_seed(3)
    like = statistics.sigmoid

    def some(n):
        return torch.rand(n, generator=g, dtype=torch.float64).to(like.device) + 0.5

    def softmax(s):
        n = s.shape[1]
        target = some(n) if form.keys else like.new_zeros(n)
        return torch.stack([s[0], some(n) / (s[1] + s[2]), target])

    def kl(s):
        n = s.shape[1]
        return torch.stack([s[0], some(n) / s[1], s[2], some(n) / s[3]])

    return sweeps.Coefficients(
        like.new_tensor(0.7), softmax(statistics.softmax_rows), softmax(statistics.softmax_columns),
        some(rows), some(rows), some(rows), kl(statistics.kl_rows), kl(statistics.kl_columns),
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "columns", "offset"), [(1, 40, 7), (17, 50, 20), (33, 100, 66)])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_rectangles_of_local_rows_and_all_columns(backend, form, rows, columns, offset):
    operands = rectangle(rows, columns, offset, form)
    skip_unless_taken(backend, operands.rows)
    run = implementation(backend)
    found, expected = run.forward(form, operands), sweeps.forward(form, operands)
    assert worst_error(softmax_of(found), softmax_of(expected)) < TOLERANCE
    wanted = sweeps.backward(form, operands, coefficients_for(form, expected, rows))
    got = run.backward(form, operands, coefficients_for(form, found, rows))
    for name, a, b in zip(wanted._fields, got, wanted, strict=True):
        if b is not None and (name in ("rows", "columns") or form.logits):
            assert worst_error({name: a}, {name: b}) < TOLERANCE, name


@pytest.mark.parametrize("backend", CANDIDATES)
def test_a_sigmoid_without_a_bias_is_one_with_a_bias_of_zero(backend):
    batch = make_batch(33)
    skip_unless_taken(backend, batch.images)
    arguments = (batch.images, batch.texts, batch.scale)
    for keys in (None, batch.keys):
        found = siglip_loss(*arguments, keys=keys, backend=backend)
        wanted = siglip_loss(*arguments, 0.0, keys=keys, backend="reference")
        assert abs(found / wanted - 1) < TOLERANCE
        assert abs(siglip_loss(*arguments, 0.1, keys=keys) / wanted - 1) > 1e6 * TOLERANCE


@pytest.mark.parametrize("backend", CANDIDATES)
def test_the_same_bits_each_time(backend):
    batch = make_batch(70, torch.float32)
    once, again = (evaluate("clip soft zero keys", batch, backend) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
