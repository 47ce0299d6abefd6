"""Activations computed again in the backward pass: the same numbers to the bit, in less memory."""

import copy
import pickle

import pytest
import torch
from torch import nn
from vits import VITS, loss

import fastht
from fastht.backbones import find_backbone
from fastht.lora import add_lora
from fastht.saved_bytes import saved_bytes

CONFIG = fastht.HTConfig(dropout=0.3, init="paper", bottleneck_dim=8)


def patched(vit, **options):
    torch.manual_seed(1)
    return fastht.patch(vit.build(), CONFIG, **options).train()


def gradients(model, vit, seed=5):
    torch.manual_seed(seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    value = loss(vit.features(model, vit.image()))
    return torch.autograd.grad(value, parameters, allow_unused=True)


def kept(model, vit):
    image = vit.image()
    return saved_bytes(
        lambda: loss(vit.features(model, image)), [*model.parameters(), *model.buffers(), image]
    )


@pytest.mark.parametrize("recompute", ["mlp", "block"])
@pytest.mark.parametrize("name", VITS)
def test_gradients_are_the_same_to_the_bit_in_every_family(name, recompute):
    vit = VITS[name]
    base = vit.build()
    before = kept(model := patched(vit), vit)
    expected = gradients(model, vit)
    model = patched(vit, recompute=recompute)
    actual = gradients(model, vit)
    for a, b in zip(actual, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    less = kept(model, vit)
    assert less < before
    fastht.unpatch(model)
    keys = [sorted(vars(module)) for module in model.modules()]
    assert keys == [sorted(vars(module)) for module in base.modules()]
    assert not any(m._forward_hooks for m in model.modules())


def test_bytes_by_the_row():
    """Of a block's rows of D numbers a token, four go with the MLP's, and one stays of a block."""
    vit = VITS["registers"]
    rows = {}
    for recompute in ("none", "mlp", "block"):
        model = patched(vit, recompute=recompute)
        backbone = find_backbone(model)
        patch = backbone.tower.patch_embed.patch_size
        tokens = vit.image()[:, 0, :: patch[0], :: patch[1]].numel()
        tokens += 2 * backbone.num_prefix_tokens
        rows[recompute] = kept(model, vit) / (4 * tokens * backbone.dim)
    one_block = len(backbone.blocks) - 1  # the first one gets no gradient
    assert rows["none"] - rows["mlp"] == pytest.approx(4 * one_block, abs=0.1)
    assert rows["none"] - rows["block"] > 9 * one_block


@pytest.mark.parametrize("recompute", ["mlp", "block"])
def test_no_adapter_runs_twice(recompute):
    vit = VITS["clip"]
    model = patched(vit, recompute=recompute)
    calls = []
    for adapter in fastht.adapters(model).values():
        adapter.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients(model, vit)
    assert len(calls) == len(fastht.adapters(model))


@pytest.mark.parametrize(("recompute", "again"), [("none", 0), ("mlp", 1), ("block", 3)])
def test_how_many_products_run_again(recompute, again):
    vit = VITS["siglip"]
    model = patched(vit, recompute=recompute)
    value = loss(vit.features(model, vit.image()))
    products = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: products.append(1))
    value.backward()
    # Of a timm block's four: fc1; or qkv, proj and fc1. The first block gets no gradient.
    assert len(products) == again * (len(find_backbone(model).blocks) - 1)


def test_adapters_in_the_last_blocks_alone():
    vit = VITS["siglip"]
    config = fastht.HTConfig(dropout=0.3, init="paper", bottleneck_dim=8, layers=[0])
    found = []
    for recompute in ("none", "mlp", "block"):
        torch.manual_seed(1)
        model = fastht.patch(vit.build(), config, recompute=recompute).train()
        found.append((kept(model, vit), gradients(model, vit)))
    assert found[0][0] > found[1][0] > found[2][0]  # the blocks after it are spared too
    for _, other in found[1:]:
        assert all(map(torch.equal, other, found[0][1]))


def test_dropout_of_the_base_and_trained_parts_of_it():
    vit = VITS["siglip"]
    found = []
    for recompute in ("none", "mlp", "block"):
        model = patched(vit, recompute=recompute)
        for block in find_backbone(model).blocks:
            block.mlp.drop1.p = 0.2
            block.mlp.fc1.requires_grad_(True)
            block.norm2.requires_grad_(True)
        found.append(gradients(model, vit))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_lora_beside_the_adapters():
    vit = VITS["siglip"]
    found = []
    for recompute in ("none", "mlp", "block"):
        model = patched(vit, recompute=recompute)
        torch.manual_seed(3)
        add_lora(model, 2, zeros=False)
        found.append(gradients(model.train(), vit))
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


@pytest.mark.parametrize("recompute", ["mlp", "block"])
def test_copies_compute_by_their_own_weights(recompute):
    vit = VITS["native"]
    model = patched(vit, recompute=recompute)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        expected = gradients(other, vit)
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        assert all(map(torch.equal, gradients(other, vit), expected))
        model = copy.deepcopy(other)


@pytest.mark.parametrize("recompute", ["mlp", "block"])
def test_compiled(recompute):
    vit = VITS["siglip"]
    config = fastht.HTConfig(dropout=0.0, init="paper", bottleneck_dim=8)
    model = fastht.patch(vit.build(), config, recompute=recompute).train()
    expected = gradients(model, vit)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for a, b in zip(gradients(compiled, vit), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("recompute", ["mlp", "block"])
def test_nothing_is_done_where_nothing_is_recorded(recompute):
    vit = VITS["native"]
    model = patched(vit, recompute=recompute).eval()
    plain = patched(vit).eval()
    with torch.no_grad():
        assert torch.equal(vit.features(model, vit.image()), vit.features(plain, vit.image()))


def test_what_cannot_be_recomputed_is_refused_and_the_model_left_alone():
    from tiny_towers import tiny_tower

    model = tiny_tower()
    with pytest.raises(ValueError, match=r"block 0 \(TinyBlock\) has no LayerNorm and MLP.*block"):
        fastht.patch(model, recompute="mlp")
    assert not any(isinstance(m, fastht.HTAdapter) for m in model.modules())
    with pytest.raises(ValueError, match=r"recompute is 'all'; choose one of 'none', 'mlp', 'bl"):
        fastht.patch(model, recompute="all")
    fastht.patch(model, recompute="block")
    with pytest.raises(ValueError, match=r"recompute='block'.*unpatch first"):
        fastht.patch(model)


def test_a_forward_that_somebody_has_replaced_is_not_taken_away():
    vit = VITS["native"]
    model = vit.build()
    block = find_backbone(model).blocks[1]
    block.forward = nn.Module.__call__.__get__(block)
    with pytest.raises(ValueError, match=r"block 1 was replaced already.*switch that off"):
        fastht.patch(model, recompute="block")


def test_replicas_of_data_parallel_are_refused():
    from fastht.recompute import _run_block

    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"on meta.*DistributedDataParallel"):
        _run_block(layer, torch.zeros(1, 2, device="meta", requires_grad=True))
