"""LoRA on vision towers, and on the text tower beside them."""

import sys

import pytest
import torch
from tiny_towers import tiny_tower
from vits import VITS, timm_vit

from fastht.backbones import find_backbone
from fastht.lora import NoLoraError, add_lora, disable_lora, lora_targets, merge_lora

pytest.importorskip("peft")


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_separate_projections_are_taken_one_by_one():
    targets = lora_targets(VITS["eva02"].build())
    assert {name.rpartition(".")[2] for name in targets} == {"q_proj", "k_proj", "v_proj", "proj"}
    assert len(targets) == 2 * 4


def test_multihead_attention_computes_with_updated_weights():
    """Also its gradients: peft 0.21 gives half of the output projection's."""
    model, plain = VITS["native"].build().eval(), VITS["native"].build().eval()
    add_lora(model, 4, zeros=False)
    pairs = zip(find_backbone(model).blocks, find_backbone(plain).blocks, strict=True)
    factors = []
    for adapted, attention in ((block.attn, other.attn) for block, other in pairs):
        for module, name, update in (
            (attention, "in_proj_weight", adapted.parametrizations.in_proj_weight[0]),
            (attention.out_proj, "weight", adapted.out_proj.parametrizations.weight[0]),
        ):
            a, b = (f.detach().clone().requires_grad_() for f in (update.lora_A, update.lora_B))
            factors += [(update.lora_A, a), (update.lora_B, b)]
            weight = getattr(module, name).detach() + 2 * b @ a
            delattr(module, name)
            setattr(module, name, weight)
    image = VITS["native"].image()
    outputs = [made(image) for made in (model, plain)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert len(factors) == 2 * 2 * 2
    for ours, explicit in factors:
        torch.testing.assert_close(ours.grad, explicit.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("vit", ["siglip", "native"])
def test_disabled_and_after_a_step_the_base_is_what_it_was_to_the_bit(vit):
    image = VITS[vit].image()
    model, base = VITS[vit].build().eval(), VITS[vit].build().eval().requires_grad_(False)
    with torch.no_grad():
        expected = base(image)
    add_lora(model, 4, zeros=False)
    model(image).square().sum().backward()
    with torch.no_grad():
        assert not torch.equal(model(image), expected)
        with disable_lora(model):
            assert torch.equal(model(image), expected)
        assert not torch.equal(model(image), expected)


@pytest.mark.parametrize("vit", ["siglip", "native"])
def test_with_a_factor_of_zeros_the_model_starts_as_its_base(vit):
    image = VITS[vit].image()
    model, base = VITS[vit].build().eval(), VITS[vit].build().eval()
    add_lora(model, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(image), base(image))
    assert all("lora_" in name for name in trained(model))


def test_only_the_named_blocks_are_adapted():
    model = VITS["siglip"].build()
    add_lora(model, 4, layers=[1])
    blocks = find_backbone(model).blocks
    assert not trained(blocks[0])
    assert trained(blocks[1])


def test_the_text_tower_is_adapted_where_asked():
    model = VITS["clip"].build()
    add_lora(model, 4, text=True)
    names = trained(model)
    assert any(name.startswith("visual.") for name in names)
    assert any(not name.startswith("visual.") for name in names)
    assert all("lora_" in name for name in names)
    with pytest.raises(NoLoraError, match="outside the vision tower"):
        add_lora(VITS["siglip"].build(), text=True)


def test_a_block_without_projections_is_named():
    with pytest.raises(NoLoraError, match=r"block 0 of TinyTower, a TinyBlock with ln=LayerNorm"):
        add_lora(tiny_tower())
    parallel = timm_vit("vit_pwee_patch16_reg1_gap_256", depth=1)
    with pytest.raises(NoLoraError, match=r"ParallelScalingBlock with .*attn_out_proj=Linear"):
        add_lora(parallel)


def test_without_peft_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(NoLoraError, match=r"needs peft: pip install 'peft>=0.15'"):
        add_lora(VITS["siglip"].build())


@pytest.mark.parametrize("vit", ["siglip", "native"])
def test_merged_it_computes_the_same_without_anything_of_lora(vit):
    image = VITS[vit].image()
    model, base = VITS[vit].build().eval(), VITS[vit].build().eval()
    add_lora(model, 4, zeros=False)
    with torch.no_grad():
        expected, plain = model(image), base(image)
        merge_lora(model)
        found = model(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 1e-2
    # The names are those of the model as it was built: its weights fit into a new one.
    state = model.state_dict()
    assert state.keys() == base.state_dict().keys()
    base.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(base(image), found)
    assert not any("lora" in name.lower() for name, _ in model.named_modules())
