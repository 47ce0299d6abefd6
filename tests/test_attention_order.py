"""Tokens in the order in which nn.MultiheadAttention reads them, while a frozen tower trains."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vits import VITS, loss

import fastht
from fastht import attention_order
from fastht.backbones import find_backbone
from fastht.lora import add_lora
from fastht.saved_bytes import saved_bytes

CONFIG = fastht.HTConfig(dropout=0.0, init="paper", bottleneck_dim=8)


class Products(TorchDispatchMode):
    """Counts batched products with a stack of one and the same matrix."""

    def __init__(self):
        super().__init__()
        self.repeated = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.expand.default and args[1][0] > 1:
            tensor = args[0]
            self.repeated += tensor.dim() == 2 or (tensor.dim() == 3 and tensor.shape[0] == 1)
        return function(*args, **(kwargs or {}))


def patched(**options):
    torch.manual_seed(1)
    return fastht.patch(VITS["clip"].build(), CONFIG, **options).train()


def blocks(model):
    return find_backbone(model).blocks


def gradients(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    vit = VITS["clip"]
    return torch.autograd.grad(loss(vit.features(model, vit.image(batch=3))), parameters)


def repeated(model):
    with Products() as products:
        gradients(model)
    return products.repeated


@pytest.mark.parametrize("recompute", ["none", "block"])
def test_frozen_projections_are_no_batched_products(recompute):
    model = patched(recompute=recompute)
    ordered = repeated(model)
    attention_order.remove(blocks(model))
    assert repeated(model) >= ordered + len(blocks(model))


def test_values_gradients_and_kept_bytes_stay():
    vit = VITS["clip"]
    model = patched()
    image = vit.image(batch=3)

    def kept():
        return saved_bytes(lambda: loss(vit.features(model, image)), [*model.parameters(), image])

    ordered, ordered_bytes = gradients(model), kept()
    attention_order.remove(blocks(model))
    for a, b in zip(ordered, gradients(model), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert ordered_bytes <= kept()


def test_what_is_not_concerned_is_left_alone():
    model = patched()
    attention = blocks(model)[1].attn
    tokens = torch.randn(2, 16, attention.embed_dim).requires_grad_()
    hook = attention._forward_pre_hooks["fastht"]
    ordered = hook(attention, (tokens, tokens, tokens, "mask"))
    assert torch.equal(ordered[0], tokens)
    assert ordered[0] is ordered[1] is ordered[2]
    assert ordered[0].transpose(0, 1).is_contiguous()
    assert ordered[3] == "mask"
    assert hook(attention, (tokens, tokens, tokens.clone())) is None  # no self-attention
    with torch.no_grad():
        assert hook(attention, (tokens,) * 3) is None
    with fastht.disable_adapter(model):
        assert hook(attention, (tokens,) * 3) is None
    assert hook(attention.eval(), (tokens,) * 3) is None
    attention.train().in_proj_weight.requires_grad_(True)  # whose products PyTorch folds itself
    assert hook(attention, (tokens,) * 3) is None


def test_copies_pickles_and_unpatching():
    model = patched()
    expected = gradients(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(torch.equal(a, b) for a, b in zip(gradients(other), expected, strict=True))
        assert attention_order.is_installed(blocks(other)[0].attn)
    fastht.unpatch(model)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_script_of_a_tower_in_training():
    model = patched()
    vit = VITS["clip"]
    image = vit.image()
    tower = find_backbone(model).tower
    expected = tower(image)
    torch.testing.assert_close(torch.jit.script(tower)(image), expected, rtol=1e-4, atol=1e-5)


def test_lora_beside_adapters():
    model = VITS["clip"].build()
    fastht.patch(model, CONFIG)
    add_lora(model, 4)
    assert all(torch.isfinite(g).all() for g in gradients(model.train()))


def test_towers_that_read_sequences_first_have_none():
    model = fastht.patch(VITS["openai"].build(), CONFIG)
    assert not any(attention_order.is_installed(m) for m in model.modules())
