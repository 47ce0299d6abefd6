"""Dual encoders: the published heads on what towers pool, called as open_clip's models are."""

import json

import pytest
import torch
from torch import nn

from fastht.tasks.models.build import build_clip
from fastht.tasks.models.dual import DualEncoder, Tower
from fastht.tasks.models.encoders import EncoderNames, build_encoder

pytest.importorskip("transformers")

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = ["a cyst", "a solid mass of the breast", "nothing"]


def linear(inputs, module):
    return inputs @ module.weight.T + module.bias


def test_a_head_is_the_published_one():
    tower = Tower(nn.Identity(), 5, 7)
    pooled = torch.randn(4, 5)
    first, second = tower.head[0], tower.head[2]
    assert first.weight.shape == (5, 5)
    assert second.weight.shape == (7, 5)
    expected = linear(linear(pooled, first).clamp(min=0), second)
    torch.testing.assert_close(tower(pooled), expected)
    assert not torch.allclose(tower(pooled), linear(linear(pooled, first), second))
    unit = tower.embed(pooled, normalize=True)
    torch.testing.assert_close(unit, expected / expected.norm(dim=1, keepdim=True))
    # 2048 and 512 pooled features: the 5.1 million parameters of the published heads.
    heads = [Tower(nn.Identity(), width, 256).head for width in (2048, 512)]
    assert sum(p.numel() for head in heads for p in head.parameters()) == 5_114_880


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A model with a tower of timm and a text tower of its own module."""
    folder = tmp_path_factory.mktemp("trunk")
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False}
    vision |= {"image_size": 224, "timm_pool": "token", "timm_proj": "linear"}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    content = {"model_cfg": config, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["tiny_model", "trunk"])
def test_heads_stand_before_the_projections_of_open_clips_towers(request, kind):
    name = request.getfixturevalue(kind)
    plain = build_clip(name, "none")[0].eval()
    built = build_encoder(EncoderNames(name, "none", head="mlp-8"))
    model = built.model.eval()
    images = IMAGES
    if kind == "trunk":
        images = torch.nn.functional.interpolate(IMAGES, plain.visual.image_size)
    pooled = model.visual.pool(images)
    projection = plain.visual.head.proj.weight.T if kind == "trunk" else plain.visual.proj
    torch.testing.assert_close(pooled @ projection, plain.encode_image(images))
    tokens = built.tokenizer(TEXTS)
    own = plain.text if kind == "trunk" else plain
    pooled_texts = model.text.pool(tokens)
    torch.testing.assert_close(pooled_texts @ own.text_projection, plain.encode_text(tokens))
    assert model.encode_image(images).shape == model.encode_text(tokens).shape == (3, 8)
    assert not any(
        "proj" in n.split(".")[-1] for n, _ in model.text.named_parameters(recurse=False)
    )


@torch.no_grad()
def test_it_is_called_as_open_clips_models_are(tiny_model):
    built = build_encoder(EncoderNames(tiny_model, "none", "tiny-bert", "mlp-8"))
    model = built.model.eval()
    tokens = model.tokenizer(TEXTS)
    assert tokens.shape == (3, model.context_length) == (3, 128)
    images, texts, scale = model(IMAGES, tokens)
    assert scale.item() == pytest.approx(1 / 0.07)
    for found, encode, inputs in (
        (images, model.encode_image, IMAGES),
        (texts, model.encode_text, tokens),
    ):
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        assert torch.equal(found, encode(inputs, normalize=True))
        plain = encode(inputs)
        torch.testing.assert_close(found, plain / plain.norm(dim=1, keepdim=True))
    model.output_dict = True
    named = model(IMAGES, tokens)
    assert torch.equal(named["image_features"], images)
    assert torch.equal(named["text_features"], texts)
    assert built.record["text_pooling"] == "pooler"
    assert "RANDOM" in built.account


def test_heads_go_by_the_seed_and_towers_do_not(tiny_model):
    states = [
        build_encoder(EncoderNames(tiny_model, "none", "tiny-bert", "mlp-8", seed=seed))
        .model.state_dict()
        for seed in (0, 0, 1)
    ]  # fmt: skip
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name])
        drawn = ".head." in name
        assert torch.equal(tensor, states[2][name]) != drawn, name


def test_a_frozen_tower_stays_without_dropout_and_one_that_trains_does_not():
    def side(frozen):
        tower = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).requires_grad_(not frozen)
        return Tower(tower, 2, 4)

    model = DualEncoder(side(frozen=True), side(frozen=False), tokenizer=None).train()
    assert not model.visual.tower[1].training
    assert model.text.tower[1].training
    assert model.visual.head.training


def test_what_does_not_go_together_is_one_error(tiny_model):
    with pytest.raises(ValueError, match=r"32 wide and the text tower's 64.*--head mlp-256"):
        build_encoder(EncoderNames(tiny_model, "none", "tiny-bert"))
    for head in ("mlp", "mlp-0", "linear", "mlp-2.5"):
        with pytest.raises(ValueError, match=f"--head {head} is no head: give none, or mlp-N"):
            build_encoder(EncoderNames(tiny_model, "none", "tiny-bert", head))
