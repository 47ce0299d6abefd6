"""In graphs, under autocast, with frozen sides: what autograd and the compiler ask of an op."""

import functools

import pytest
import torch
from loss_cases import (
    CANDIDATES,
    CASES,
    DEVICE,
    LEAVES,
    evaluate,
    make_batch,
    skip_unless_taken,
    small_blocks,
)
from torch import Tensor

from fastht.bench.memory import peak_growth, peak_is_measurable
from fastht.losses import clip_loss, custom_op, siglip_loss
from fastht.losses.blocked import pairs
from fastht.losses.sweeps import Form
from fastht.saved_bytes import saved_bytes

__all__ = ["small_blocks"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_gradcheck(small_blocks, backend, case):
    batch = make_batch(7, width=5, scale=4.0)
    skip_unless_taken(backend, batch.images)

    def loss(*tensors: Tensor) -> Tensor:
        return CASES[case](batch, dict(zip(LEAVES, tensors, strict=True)), backend)

    leaves = [getattr(batch, name).clone().requires_grad_() for name in LEAVES]
    # Fast mode checks a random combination of all derivatives: the interpreter is slow.
    assert torch.autograd.gradcheck(loss, leaves, fast_mode=backend == "triton")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("spoilt", LEAVES)
def test_gradcheck_sees_two_percent(spoilt, fast):
    batch = make_batch(7, width=5, scale=4.0)

    def loss(*tensors: Tensor) -> Tensor:
        leaves = dict(zip(LEAVES, tensors, strict=True))
        leaves[spoilt] = leaves[spoilt] * 1.0
        leaves[spoilt].register_hook(lambda gradient: 1.02 * gradient)
        return CASES["siglip keys"](batch, leaves, "blocked")

    leaves = [getattr(batch, name).clone().requires_grad_() for name in LEAVES]
    assert not torch.autograd.gradcheck(loss, leaves, fast_mode=fast, raise_exception=False)


@pytest.mark.parametrize("case", ["clip", "siglip keys", "clip soft ignore"])
def test_opcheck(case):
    """What the dispatcher asks of an op: schema, autograd, shapes, under compilation."""
    batch = make_batch(9)
    form = {
        "clip": Form(softmax=3),
        "siglip keys": Form(sigmoid=True, keys=True),
        "clip soft ignore": Form(softmax=3, kl=2, mse=True, shares=True),
    }[case]
    soft = batch.soft("ignore")
    sides = (list(soft.rows), list(soft.columns), list(soft.table)) if form.soft else ([], [], [])
    keys = batch.keys if form.keys else None
    leaves = [getattr(batch, n).clone().requires_grad_() for n in LEAVES[: 3 + form.sigmoid]]
    bias = [] if form.sigmoid else [None]
    torch.library.opcheck(
        custom_op.contrastive,
        (*leaves, *bias, keys, None, *sides, custom_op.form_numbers(form), [1.0, 1.0, 0.4, 0.6],
         0.3, 0, "blocked", [True, True, True, form.sigmoid]),
    )  # fmt: skip


@pytest.mark.parametrize("case", ["clip", "clip keys", "siglip", "clip soft ignore"])
@pytest.mark.parametrize("backend", CANDIDATES)
def test_one_graph(backend, case):
    batch = make_batch(21, torch.float32)
    leaves = {name: getattr(batch, name).clone().requires_grad_() for name in LEAVES}
    targets = batch.soft("ignore")  # made outside: its checks read numbers
    call = CASES[case]

    def loss(x: dict[str, Tensor]) -> Tensor:
        # Features are made in the graph, as a tower makes them.
        return call(
            batch, x | {"images": torch.nn.functional.normalize(x["images"], dim=1)}, backend
        )

    object.__setattr__(batch, "soft", lambda missing: targets)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaves)
    compiled.backward()
    found = {name: x.grad for name, x in leaves.items() if x.grad is not None}
    for x in leaves.values():
        x.grad = None
    eager = loss(leaves)
    eager.backward()
    torch.testing.assert_close(compiled, eager, rtol=0, atol=0)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, leaves[name].grad, rtol=1e-6, atol=1e-8)
    assert {"images", "texts", "scale"} <= found.keys()


def test_autocast_rounds_the_features_and_keeps_the_sums():
    batch = make_batch(30, torch.float32)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = clip_loss(batch.images.requires_grad_(), batch.texts, batch.scale)
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, batch.images)
    assert gradient.dtype == torch.float32
    rounded = [x.detach().bfloat16() for x in (batch.images, batch.texts)]
    torch.testing.assert_close(loss, clip_loss(*rounded, batch.scale), rtol=0, atol=0)
    assert not torch.equal(loss, clip_loss(batch.images, batch.texts, batch.scale))


def count_products(monkeypatch) -> list[torch.Size]:
    """Return what is told of every product that a backward sweep makes from here on."""
    products, multiply = [], torch.addmm

    def counted(total, *factors, **options):
        products.append(total.shape)
        return multiply(total, *factors, **options)

    monkeypatch.setattr(torch, "addmm", counted)
    return products


@pytest.mark.parametrize("side", ["images", "texts"])
@pytest.mark.parametrize(("size", "blocks"), [(24, 1), (48, 6)])
def test_a_frozen_side_costs_no_product(monkeypatch, small_blocks, size, blocks, side):
    monkeypatch.setitem(pairs.BLOCKS, DEVICE, (16, 24) if blocks > 1 else (24, 24))
    batch = make_batch(size)
    products = count_products(monkeypatch)

    def gradients(*wanted):
        leaves = {
            n: getattr(batch, n).clone().requires_grad_(n in wanted) for n in ("images", "texts")
        }
        clip_loss(leaves["images"], leaves["texts"], batch.scale, backend="blocked").backward()
        return {n: x.grad for n, x in leaves.items() if x.grad is not None}

    both = gradients("images", "texts")
    assert len(products) == 2 * blocks
    products.clear()
    one = gradients(side)
    assert len(products) == blocks
    assert one.keys() == {side}
    torch.testing.assert_close(one[side], both[side], rtol=0, atol=0)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
@pytest.mark.parametrize("backend", CANDIDATES)
def test_a_second_derivative_is_refused_and_the_reference_has_it(backend, loss):
    batch = make_batch(8, torch.float32)
    images = batch.images.requires_grad_()

    def second(name: str) -> Tensor:
        value = loss(images, batch.texts, batch.scale, backend=name)
        (first,) = torch.autograd.grad(value, images, create_graph=True)
        return torch.autograd.grad(first.square().sum(), images)[0]

    with pytest.raises(RuntimeError, match='no second derivative; use backend="reference"'):
        second(backend)
    assert second("reference").abs().max() > 0


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_a_forward_mode_derivative_is_refused_and_the_reference_has_it(loss):
    batch = make_batch(8)

    def slope(name: str) -> Tensor:
        call = functools.partial(loss, text_features=batch.texts, logit_scale=9.0, backend=name)
        return torch.func.jvp(call, (batch.images,), (torch.ones_like(batch.images),))[1]

    with pytest.raises(RuntimeError, match='no forward-mode derivative; use backend="reference"'):
        slope("blocked")
    assert slope("reference").abs() > 0


@pytest.mark.parametrize("case", ["clip", "siglip", "clip soft ignore"])
def test_a_compiled_backward_pass_calls_the_op(case):
    """Compiled autograd traces what a Python function does, unless it is one op."""
    batch = make_batch(12)
    images = batch.images.requires_grad_()
    leaves = {name: getattr(batch, name) for name in LEAVES} | {"images": images}
    (expected,) = torch.autograd.grad(CASES[case](batch, leaves, "blocked"), images)
    loss = CASES[case](batch, leaves, "blocked")
    whole = torch.compile(backend="eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(whole):
        loss.backward()
    torch.testing.assert_close(images.grad, expected, rtol=0, atol=0)


def kept(call, batch):
    images, texts = batch.images.requires_grad_(), batch.texts.requires_grad_()
    return saved_bytes(lambda: call(images, texts), [images, texts])


def test_what_is_kept_is_features_and_a_few_vectors(small_blocks):
    size, width = 512, 16
    batch = make_batch(size, torch.float32, width=width)

    def clip(backend):
        return lambda images, texts: clip_loss(
            images, texts, batch.scale, keys=batch.keys, backend=backend
        )

    # Twice four vectors, and int64 keys.
    assert 0 < kept(clip("blocked"), batch) <= 4 * size * (2 * 4 + 2) + 64
    assert kept(clip("reference"), batch) > 4 * size * size


@pytest.mark.skipif(not peak_is_measurable(DEVICE), reason="this system tells no peaks")
def test_the_peak_is_a_small_part_of_that_of_the_dense_form(monkeypatch):
    """Forward and backward, with soft labels, in blocks of which there are 256."""
    size, case = 4096, "clip soft zero keys"
    monkeypatch.setitem(pairs.BLOCKS, DEVICE, (256, 256))
    batch, small = (make_batch(n, torch.float32, width=16) for n in (size, 32))
    peaks = {}
    for backend in ("blocked", "reference"):
        evaluate(case, small, backend)  # what is allocated once is no part of it
        peaks[backend] = peak_growth(lambda chosen=backend: evaluate(case, batch, chosen), DEVICE)
    assert peaks["reference"] > 4 * 4 * size * size  # the meter sees what is dense
    assert 20 * peaks["blocked"] < peaks["reference"]


@pytest.mark.parametrize("case", ["one block", "pointwise"])
def test_gradients_that_are_made_at_once_are_all_that_is_kept_more(monkeypatch, case):
    size, width = 96, 16
    batch = make_batch(size, torch.float32, width=width)
    if case == "pointwise":
        monkeypatch.setitem(pairs.BLOCKS, DEVICE, (16, 24))
    loss = clip_loss if case == "one block" else siglip_loss
    found = kept(lambda images, texts: loss(images, texts, batch.scale, backend="blocked"), batch)
    assert 0 < found - 4 * 2 * size * width <= 4 * size * 8 + 64


def test_a_loss_that_needs_no_gradient_makes_none(monkeypatch):
    products = count_products(monkeypatch)
    batch = make_batch(20)
    images = batch.images.requires_grad_()
    with torch.no_grad():
        quiet = clip_loss(images, batch.texts, batch.scale, backend="blocked")
    assert not products
    torch.testing.assert_close(
        clip_loss(images, batch.texts, batch.scale, backend="blocked"), quiet
    )
    assert len(products) == 1
