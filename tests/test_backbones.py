"""Which towers are recognised, what is read from them, and how others are refused."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
from tiny_towers import snapshot
from torch import Tensor, nn
from vits import (
    ALL_VITS,
    GRID,
    MORE_VITS,
    PATCH,
    Vit,
    open_clip_tower,
    openai_tower,
    timm_hybrid,
    timm_vit,
    transformers_vit,
)

import fastht
from fastht.backbones import find_backbone
from fastht.wrappers import plain_name


@pytest.fixture(params=list(ALL_VITS))
def vit(request: pytest.FixtureRequest) -> Vit:
    return ALL_VITS[request.param]


def test_reads_every_structure(vit: Vit) -> None:
    backbone = find_backbone(vit.build())
    assert backbone.family == vit.family
    assert backbone.grid_size == vit.built_grid
    assert backbone.num_prefix_tokens == vit.prefix_tokens
    assert len(backbone.blocks) == 2
    assert backbone.shape() == {
        "dim": backbone.dim,
        "depth": 2,
        "grid_size": list(vit.built_grid),
        "num_prefix_tokens": vit.prefix_tokens,
    }


class _Seen:
    """What the first adapter of a patched model is called with."""

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[tuple[Tensor, tuple[int, int], int]] = []
        fastht.adapters(model)[0].register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple[Tensor, tuple[int, int], int]) -> None:
        self.calls.append(args)


class _Identity(nn.Module):
    """Stands in for a block: the adapter then sees the tokens before any attention mixes them."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Any:
        return (x,) if self.as_tuple else x


def _first_block_replaced(vit: Vit) -> nn.Module:
    """Build the model with a first block that passes its input on."""
    model = vit.build()
    backbone = find_backbone(model)
    container = next(
        module
        for module in backbone.tower.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        and len(module) == 2
        and module[0] is backbone.blocks[0]
    )
    identity = _Identity(vit.tuples)
    identity.weight = nn.Parameter(torch.zeros(1))  # the adapter is made on a parameter's device
    container[0] = identity
    return model


def test_tokens_are_the_patches_in_row_major_order_after_the_prefix(vit: Vit) -> None:
    # The image is not square, so that rows and columns cannot be mistaken for each other.
    model = fastht.patch(_first_block_replaced(vit))
    seen = _Seen(model)
    image = vit.image(batch=1)
    places = [(0, 0), (1, 3), (2, 1)]
    # A hybrid's stem looks beyond a patch: there the patch's middle changes most at its own token.
    inner = vit.patch // 4
    with torch.no_grad():
        vit.features(model, image)
        for row, column in places:
            changed = image.clone()
            top, left = row * vit.patch + inner, column * vit.patch + inner
            changed[..., top : top + 2 * inner, left : left + 2 * inner] += 1.0
            vit.features(model, changed)

    assert {call[1:] for call in seen.calls} == {(GRID, vit.prefix_tokens)}
    before = seen.calls[0][0]
    assert before.shape[:2] == (1, vit.prefix_tokens + GRID[0] * GRID[1])
    for (row, column), (after, _, _) in zip(places, seen.calls[1:], strict=True):
        moved = (after - before).abs().sum(dim=2)[0]
        assert moved.argmax() == vit.prefix_tokens + row * GRID[1] + column
        assert moved[: vit.prefix_tokens].eq(0).all()
        if vit.patch == PATCH:  # no hybrid
            assert (moved > 0).sum() == 1


def test_adapter_reaches_seven_by_seven_patches_around_a_change() -> None:
    grid, prefix, place = (9, 13), 2, (3, 8)
    config = fastht.HTConfig(variant="freq_enhanced", init="paper")  # a gate would reach everywhere
    torch.manual_seed(0)
    adapter = fastht.HTAdapter(16, config).double().eval()
    x = torch.randn(1, prefix + grid[0] * grid[1], 16, dtype=torch.float64)
    changed = x.clone()
    changed[0, prefix + place[0] * grid[1] + place[1]] += 1.0
    with torch.no_grad():
        moved = (adapter(changed, grid, prefix) - adapter(x, grid, prefix)).abs().sum(dim=2)[0]
    reached = moved[prefix:].view(grid) > 1e-9
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[0:7, 5:12] = True
    assert torch.equal(reached, expected)
    assert moved[:prefix].max() == 0


@pytest.mark.parametrize(
    ("build", "drop"),
    [
        (functools.partial(timm_vit, "vit_small_patch14_reg4_dinov2", patch_drop_rate=0.5), "drop"),
        (functools.partial(timm_vit, "eva02_base_patch16_clip_224", patch_drop_rate=0.5), "drop"),
        (functools.partial(open_clip_tower, patch_dropout=0.5), "force_patch_dropout=0.0"),
    ],
)
def test_patch_dropout_is_refused(build: functools.partial[nn.Module], drop: str) -> None:
    model = build()
    with pytest.raises(fastht.UnsupportedModelError, match=rf"patch dropout.*{drop}"):
        fastht.patch(model)


def test_patch_dropout_of_zero_is_taken() -> None:
    assert find_backbone(open_clip_tower(patch_dropout=0.0)).num_prefix_tokens == 1


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("cait_xxs24_224", {"depth": 2}),
        ("convit_tiny", {"depth": 2}),
        ("xcit_nano_12_p16_224", {"depth": 2}),
        ("samvit_base_patch16", {"depth": 2}),
        ("naflexvit_base_patch16_gap", {"depth": 2}),
        ("test_resnet", {}),
    ],
)
def test_towers_of_another_structure_are_refused(name: str, kwargs: dict[str, int]) -> None:
    import timm

    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    found = type(model).__name__
    with pytest.raises(fastht.UnsupportedModelError, match=f"{found}.*fastht patches the ViT"):
        fastht.patch(model)


# What transformers has of other structures, some of which look like a plain tower in part.
_ELSEWHERE: dict[str, dict[str, Any]] = {
    "ViTMAE": {},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2},
    "Hiera": {},
    "VideoMAE": {},
    "Timesformer": {},
    "Vilt": {},
    "Yolos": {"image_size": [32, 32]},
    "Segformer": {},
    "Pvt": {},
    "VitDet": {},
    "PixtralVision": {},
    "SamVision": {},
    "SegGpt": {"image_size": [64, 32], "pretrain_image_size": 32},
    "MllamaVision": {"attention_heads": 2, "intermediate_layers_indices": [0]},
}


@pytest.mark.parametrize("name", _ELSEWHERE)
def test_other_towers_of_transformers_are_refused(name: str) -> None:
    import transformers

    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{name}Config")(**_ELSEWHERE[name])
        model = getattr(transformers, f"{name}Model")(config)
    before = snapshot(model)
    with pytest.raises(fastht.UnsupportedModelError, match=r"fastht patches the ViT|ViTModel"):
        fastht.patch(model)
    assert snapshot(model) == before


def test_eomt_is_refused() -> None:
    import transformers

    with torch.device("meta"):
        config = transformers.EomtConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        model = transformers.EomtForUniversalSegmentation(config)
    with pytest.raises(fastht.UnsupportedModelError, match="number of tokens changes"):
        fastht.patch(model)


def test_tokens_in_windows_are_refused() -> None:
    for windows in (1, 2):
        model = transformers_vit(
            "RfDetrDinov2Backbone", "RfDetrDinov2Config", num_windows=windows, out_indices=[-1]
        )
        if windows == 1:
            assert len(find_backbone(model).blocks) == 2
        else:
            with pytest.raises(fastht.UnsupportedModelError, match=r"RfDetr.*not towers with win"):
                fastht.patch(model)


def test_siglip2_needs_one_grid_a_batch() -> None:
    vit = MORE_VITS["transformers-siglip2"]
    model = fastht.patch(vit.build())
    patches = torch.randn(2, 15, 3 * PATCH * PATCH)
    mask = torch.ones(2, 15, dtype=torch.long)
    for shapes in ([[3, 5], [5, 3]], [[3, 4], [3, 4]]):
        with pytest.raises(ValueError, match="give images of one size a batch, without padding"):
            model(patches, mask, torch.tensor(shapes))


# The layout of blocks


def test_padded_images_are_refused() -> None:
    """Idefics and its kin hide padding from attention; the convolutions would read it."""
    model = transformers_vit("Idefics3VisionTransformer", "Idefics3VisionConfig")
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1, :, 3] = False
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def features(mask: Tensor | None) -> Tensor:
        return model(image, patch_attention_mask=mask).last_hidden_state

    with torch.no_grad():
        base = features(mask)
        fastht.patch(model, fastht.HTConfig(init="paper", dropout=0.0))
        with pytest.raises(ValueError, match=r"are padded.*one size a batch, without padding"):
            features(mask)
        torch.testing.assert_close(features(torch.ones_like(mask)), features(None))
        with fastht.disable_adapter(model):
            assert torch.equal(features(mask), base)
        fastht.unpatch(model)
        assert torch.equal(features(mask), base)


class _Attention(nn.Module):
    """Batch first without saying so, as in open_clip 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v))


class _Block(nn.Module):
    def __init__(self, width: int, turned: bool) -> None:
        super().__init__()
        self.turned = turned
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x.transpose(0, 1) if self.turned else x)
        y = self.attn(y)
        x = x + (y.transpose(0, 1) if self.turned else y)
        return x + self.mlp(self.ln_2(x))


def _silent_tower(turned: bool) -> nn.Module:
    torch.manual_seed(0)
    tower = openai_tower()
    tower.transformer.resblocks = nn.Sequential(*(_Block(32, turned) for _ in range(2)))
    if not turned:
        tower.forward = functools.partial(_batch_first_forward, tower)
    return tower


def _batch_first_forward(tower: nn.Module, image: Tensor) -> Tensor:
    x = tower.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat([tower.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
    return tower.ln_post(tower.transformer.resblocks(tower.ln_pre(x))[:, 0]) @ tower.proj


@pytest.mark.parametrize("turned", [False, True])
def test_blocks_that_do_not_say_their_layout_are_tried(turned: bool) -> None:
    tower = _silent_tower(turned)
    for parameter in tower.transformer.resblocks.parameters():
        nn.init.zeros_(parameter)  # as fresh layers may be: nothing mixes yet
    assert find_backbone(tower).sequence_first == turned
    with torch.device("meta"):
        meta = _silent_tower(turned).to("meta")
    assert find_backbone(meta).sequence_first == turned

    # As many images as tokens, which no check of shapes tells apart: images must not mix.
    tower = _silent_tower(turned)
    fastht.patch(tower, fastht.HTConfig(init="paper", dropout=0.0))
    images = torch.randn(17, 3, 4 * PATCH, 4 * PATCH)
    others = torch.randn_like(images)
    others[5] = images[5]
    with torch.no_grad():
        torch.testing.assert_close(tower(others)[5], tower(images)[5])
        assert not torch.allclose(tower(others)[4], tower(images)[4], atol=1e-3)


def test_a_layout_that_cannot_be_told_is_refused() -> None:
    tower = _silent_tower(False)
    for block in tower.transformer.resblocks:
        block.attn = nn.Identity()
    before = snapshot(tower)
    with pytest.raises(fastht.UnsupportedModelError, match="images might be mixed"):
        fastht.patch(tower)
    assert snapshot(tower) == before


def test_an_unknown_release_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastht.patch(open_clip_tower())
    monkeypatch.setattr(open_clip, "__version__", "5.0.1")
    with pytest.warns(UserWarning, match=r"open_clip 5\.0\.1 is newer than fastht knows"):
        fastht.patch(open_clip_tower())


def test_a_model_without_any_tower_is_refused() -> None:
    with pytest.raises(fastht.UnsupportedModelError, match="no vision transformer in Sequential"):
        fastht.patch(nn.Sequential(nn.Linear(2, 2)))


def test_the_refusal_names_what_stands_where_the_tower_would() -> None:
    model = nn.Module()
    model.visual = nn.Module()
    model.visual.trunk = nn.Conv2d(1, 1, 1)
    match = "Module with visual=Module, trunk=Conv2d; fastht patches the ViT towers of open_clip"
    with pytest.raises(fastht.UnsupportedModelError, match=match):
        fastht.patch(model)


def test_several_towers_are_refused_by_name() -> None:
    model = nn.ModuleDict({"student": openai_tower(), "teacher": openai_tower()})
    match = r"several vision transformers \('student', 'teacher'\).*passing that submodule"
    with pytest.raises(fastht.UnsupportedModelError, match=match):
        fastht.patch(model)
    fastht.patch(model["student"])
    assert not hasattr(model["teacher"].transformer.resblocks[0], "ht")


def test_an_adapter_within_a_tower_is_not_a_second_tower() -> None:
    model = fastht.patch(openai_tower())
    assert find_backbone(model).tower is model


def test_compiled_parts_are_looked_into() -> None:
    model = nn.Module()
    model.visual = torch.compile(openai_tower(), backend="eager")
    blocks = model.visual._orig_mod.transformer.resblocks
    blocks[1] = torch.compile(blocks[1], backend="eager")
    backbone = find_backbone(model)
    assert backbone.path == "visual._orig_mod"
    assert model.get_submodule(backbone.path) is backbone.tower
    assert backbone.blocks == (blocks[0], blocks[1]._orig_mod)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("visual._orig_mod.blocks.0._checkpoint_wrapped_module.ls", "visual.blocks.0.ls"),
        ("_orig_mod.proj", "proj"),
        ("my_orig_mod.proj", "my_orig_mod.proj"),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name) == plain


def test_hybrid_stem_gives_the_grid() -> None:
    model = timm_hybrid("vitamin_small_224")
    assert find_backbone(model).patch_projection is model.patch_embed.proj
