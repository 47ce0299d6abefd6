"""What each method trains, in every kind of tower, and what it says where it cannot."""

import pytest
import torch
from tiny_towers import tiny_tower
from torch import nn
from vits import VITS

import fastht
from fastht.backbones import find_backbone
from fastht.bench.methods import (
    LORA_RANK,
    METHODS,
    UnusableError,
    find_method,
    front_names,
    remark,
)

pytest.importorskip("peft")

CONFIG = fastht.HTConfig(bottleneck_dim=8, init="paper")
# These do not call their projections as layers; what becomes of them is in test_step.py.
BYPASSING = ("eva01", "beit")
LORA_VITS = [name for name in VITS if name not in BYPASSING]


def prepared(vit, method):
    model = VITS[vit].build()
    METHODS[method].prepare(model, CONFIG, "auto")
    return model


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_methods_go_by_their_own_names():
    assert all(name == method.name for name, method in METHODS.items())
    assert {name for name, m in METHODS.items() if m.compiled} == {
        name for name in METHODS if name.endswith("-compiled")
    }
    assert {name for name, m in METHODS.items() if m.fused} == {
        name for name in METHODS if name.startswith("ht") and "reference" not in name
    }
    for name, method in METHODS.items():
        assert method.recompute == next(
            (r for r in ("mlp", "block") if f"-{r}" in name),
            ("library" if "checkpointed" in name else "none"),
        )


def test_methods_of_some_blocks_go_by_the_number():
    method = find_method("lora-block:6-compiled")
    assert (method.name, method.recompute) == ("lora-block:6-compiled", "block:6")
    assert (method.compiled, method.fused) == (True, False)
    assert method.detail.endswith("in 6 blocks alone, torch.compile")
    assert find_method("ht-mlp") is METHODS["ht-mlp"]
    assert find_method("ht-mlp:1").fused
    for name in ("ht-mlp:0", "ht-none:2", "frozen-mlp:2", "ht-mlp:2-twice", "ht-reference-mlp:1"):
        with pytest.raises(ValueError, match=f"no method '{name}'; choose of .* such as ht-mlp:6"):
            find_method(name)


def test_the_front_has_both_kinds_with_each_setting():
    names = front_names(24)
    assert len(names) == len(set(names)) == 19
    assert "ht-checkpointed" in names
    names.remove("ht-checkpointed")
    for kind in ("lora", "ht"):
        own = [name.removeprefix(kind) for name in names if name.startswith(kind)]
        assert own[:6] == ["", "-mlp:6", "-mlp:12", "-mlp", "-block:12", "-block"]
        assert own[6:] == ["-compiled", "-mlp-compiled", "-block-compiled"]
    assert "ht-mlp:1" in front_names(1)
    assert all(find_method(name).name == name for name in names)


@pytest.mark.parametrize("vit", ["native", "clip", "siglip", "transformers-clip"])
def test_frozen_trains_nothing(vit):
    assert trained(prepared(vit, "frozen")) == set()


@pytest.mark.parametrize("vit", VITS)
def test_full_trains_the_vision_tower_and_nothing_else(vit):
    model = prepared(vit, "full")
    path = find_backbone(model).path
    inside = {name for name, _ in model.named_parameters() if not path or name.startswith(path)}
    assert trained(model) == inside
    assert not {name for name in inside if "text" in name or "logit_scale" in name}


@pytest.mark.parametrize("method", ["mona", "ht-reference", "ht-reference-compiled", "ht"])
@pytest.mark.parametrize("vit", ["clip", "vitamin", "transformers-siglip"])
def test_adapters_are_all_that_trains(vit, method):
    model = prepared(vit, method)
    own = {id(p) for p in fastht.adapter_parameters(model)}
    assert {id(p) for p in model.parameters() if p.requires_grad} == own
    assert len(fastht.adapters(model)) == len(find_backbone(model).blocks)


def test_the_variants_and_backends_are_what_the_names_say():
    configs = {name: fastht.adapters(prepared("siglip", name))[0] for name in ("mona", "ht")}
    assert configs["mona"].config == fastht.HTConfig(
        variant="baseline", bottleneck_dim=8, init="paper"
    )
    assert configs["mona"].backend == "reference"
    assert configs["ht"].config == CONFIG
    assert configs["ht"].backend == "auto"
    assert fastht.adapters(prepared("siglip", "ht-reference"))[0].backend == "reference"


def test_the_configuration_is_the_users():
    model = VITS["native"].build()
    METHODS["ht"].prepare(model, fastht.HTConfig(variant="noise_aware", layers=[1]), "auto")
    assert list(fastht.adapters(model)) == [1]
    assert fastht.patch(model, fastht.HTConfig(variant="noise_aware", layers=[1])) is model


@pytest.mark.parametrize("vit", LORA_VITS)
def test_lora_is_on_every_projection_of_every_vision_block(vit):
    model = prepared(vit, "lora")
    backbone = find_backbone(model)
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert weights
    assert all("lora_A" in name or "lora_B" in name for name in weights)
    inside = set()
    for block in backbone.blocks:
        own = [p for p in block.parameters() if p.requires_grad]
        inside |= {id(p) for p in own}
        # Two factors for each projection: in and out, or three in and out.
        assert len(own) in (4, 8)
        assert all(LORA_RANK in p.shape and bool(p.any()) for p in own)
    assert {id(p) for p in weights.values()} == inside


def test_lora_leaves_the_patch_embedding_and_the_text_tower_alone():
    names = trained(prepared("siglip", "lora"))
    assert not [name for name in names if "patch_embed" in name or "attn_pool" in name]
    assert all(name.startswith("visual.") for name in trained(prepared("clip", "lora")))


def test_lora_changes_the_features_from_the_start():
    vit = VITS["siglip"]
    image = vit.image()
    with torch.no_grad():
        assert not torch.allclose(prepared("siglip", "lora")(image), vit.build()(image), atol=1e-4)


def test_a_tower_that_lora_cannot_take_is_unusable():
    with pytest.raises(UnusableError, match=r"block 0 of TinyTower"):
        METHODS["lora"].prepare(tiny_tower(), CONFIG, "auto")


def test_updates_of_whole_weights_are_remarked():
    assert "nn.MultiheadAttention" in remark(prepared("native", "lora"))
    for vit, method in (("siglip", "lora"), ("native", "ht"), ("native", "full")):
        assert remark(prepared(vit, method)) is None


def test_preparing_does_not_replace_the_model():
    model = VITS["clip"].build()
    attention = model.visual.transformer.resblocks[0].attn
    assert isinstance(attention, nn.MultiheadAttention)
    assert METHODS["lora"].prepare(model, CONFIG, "auto") is None
    assert model.visual.transformer.resblocks[0].attn is attention
