"""In graphs, under autocast, with frozen sides: what autograd and the compiler ask of an op."""

import pytest
import torch
from loss_cases import CANDIDATES, CASES, DEVICE, LEAVES, make_batch, small_blocks
from torch import Tensor

from fastht.bench.memory import saved_bytes
from fastht.losses import clip_loss, custom_op, siglip_loss
from fastht.losses.sweeps import Form

__all__ = ["small_blocks"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", CANDIDATES)
def test_gradcheck(small_blocks, backend, case):
    batch = make_batch(7, width=5, scale=4.0)

    def loss(*tensors: Tensor) -> Tensor:
        return CASES[case](batch, dict(zip(LEAVES, tensors, strict=True)), backend)

    leaves = [getattr(batch, name).clone().requires_grad_() for name in LEAVES]
    assert torch.autograd.gradcheck(loss, leaves)


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
         0.3, 0, "blocked"),
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


@pytest.mark.parametrize("side", ["images", "texts"])
def test_a_frozen_side_costs_no_product(monkeypatch, side):
    batch = make_batch(30)
    products = []
    multiply = Tensor.addmm_
    monkeypatch.setattr(
        Tensor, "addmm_", lambda self, *args: products.append(self.shape) or multiply(self, *args)
    )

    def gradients(*wanted):
        leaves = {
            n: getattr(batch, n).clone().requires_grad_(n in wanted) for n in ("images", "texts")
        }
        clip_loss(leaves["images"], leaves["texts"], batch.scale, backend="blocked").backward()
        return {n: x.grad for n, x in leaves.items() if x.grad is not None}

    both = gradients("images", "texts")
    assert len(products) == 2
    products.clear()
    one = gradients(side)
    assert len(products) == 1
    assert one.keys() == {side}
    torch.testing.assert_close(one[side], both[side], rtol=0, atol=0)


@pytest.mark.parametrize("backend", CANDIDATES)
def test_a_second_derivative_is_refused_and_the_reference_has_it(backend):
    batch = make_batch(8)
    images = batch.images.requires_grad_()

    def second(name: str) -> Tensor:
        loss = siglip_loss(images, batch.texts, batch.scale, batch.bias, backend=name)
        (first,) = torch.autograd.grad(loss, images, create_graph=True)
        return torch.autograd.grad(first.square().sum(), images)[0]

    with pytest.raises(RuntimeError, match='no second derivative; use backend="reference"'):
        second(backend)
    assert second("reference").abs().max() > 0


def test_what_is_kept_is_features_and_a_few_vectors():
    size, width = 512, 16
    batch = make_batch(size, torch.float32, width=width)
    images, texts = batch.images.requires_grad_(), batch.texts.requires_grad_()
    kept = saved_bytes(
        lambda: clip_loss(images, texts, batch.scale, keys=batch.keys, backend="blocked"),
        [images, texts],
    )
    assert 0 < kept <= 4 * size * (2 * 4 + 2) + 64  # two times four vectors, and int64 keys
    dense = saved_bytes(
        lambda: clip_loss(images, texts, batch.scale, keys=batch.keys, backend="reference"),
        [images, texts],
    )
    assert dense > 4 * size * size
