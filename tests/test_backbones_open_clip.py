"""Every configuration that open_clip ships: the ViTs are patched, the others refused."""

from __future__ import annotations

import collections
import warnings
from typing import Any

import pytest
import torch
from tiny_towers import snapshot
from torch import nn

import fastht
from fastht.backbones import find_backbone

# open_clip 3.3.0
COUNTS = {"native": 56, "vit": 38, "vitamin": 15, "eva02": 5, "eva": 2, "other": 28}

ONE_OF_EACH = [
    "ViT-B-32",
    "coca_ViT-L-14",
    "xlm-roberta-base-ViT-B-32",
    "ViT-SO400M-14-SigLIP-384",
    "vit_medium_patch16_gap_256",
    "vit_relpos_medium_patch16_cls_224",
    "MobileCLIP-B",
    "PE-Core-T-16-384",
    "PE-Core-bigG-14-448",
    "ViTamin-S",
    "EVA02-B-16",
    "EVA01-g-14",
    "RN50",
    "convnext_tiny",
    "MobileCLIP2-S0",
    "swin_base_patch4_window7_224",
]


@pytest.fixture(autouse=True)
def _two_blocks_on_the_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model

    def shallow(name: str, **kwargs: Any) -> nn.Module:
        if name.startswith(("vit", "eva")):
            kwargs["depth"] = 2
        return create(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", shallow)


def _vision_tower(name: str) -> nn.Module:
    """Build a configuration's vision tower alone: some text towers would need a download."""
    import open_clip

    config = open_clip.get_model_config(name)
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    if isinstance(vision.get("layers"), int):
        vision["layers"] = 2
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # initialisation has no effect on the meta device
        return open_clip.model._build_vision_tower(
            config["embed_dim"], vision, quick_gelu=config.get("quick_gelu", False)
        )


def _kind(tower: nn.Module) -> str:
    """Name a tower's sort without asking fastht."""
    import open_clip

    if isinstance(tower, open_clip.transformer.VisionTransformer):
        return "native"
    if isinstance(tower, open_clip.modified_resnet.ModifiedResNet):
        return "other"
    architecture = tower.trunk.default_cfg["architecture"]
    return next(
        (k for k in ("vitamin", "vit", "eva02", "eva") if architecture.startswith(k)), "other"
    )


def _patch_run_unpatch(tower: nn.Module) -> None:
    """Patch a tower, run it forward and backward, and take the adapters out again."""
    before = snapshot(tower)
    backbone = find_backbone(tower)
    with torch.device("meta"):
        assert fastht.patch(tower) is tower
        assert set(fastht.adapters(tower)) == {0, 1}
        image_size = tower.image_size
        if hasattr(tower, "trunk"):  # a TimmModel keeps the trunk's own size, whatever it was given
            image_size = tower.trunk.patch_embed.img_size
        out = tower(torch.empty(1, 3, *image_size))
        out = out[0] if isinstance(out, tuple) else out
        out.sum().backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(tower))
    own = {id(p) for p in fastht.adapter_parameters(tower)}
    assert all(p.grad is None for p in tower.parameters() if id(p) not in own)
    # The grid of the image is the one that the tower was built for.
    assert backbone.patch_projection._forward_hooks["fastht"].state.grid_size == backbone.grid_size
    fastht.unpatch(tower)
    assert snapshot(tower) == before


def _try(name: str) -> str:
    tower = _vision_tower(name)
    kind = _kind(tower)
    if kind == "other":
        before = snapshot(tower)
        found = type(getattr(tower, "trunk", tower)).__name__
        with pytest.raises(fastht.UnsupportedModelError, match=rf"{found}; fastht patches the ViT"):
            fastht.patch(tower)
        assert snapshot(tower) == before
    else:
        _patch_run_unpatch(tower)
    return kind


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_one_configuration_of_each_kind(name: str) -> None:
    _try(name)


@pytest.mark.sweep
def test_every_configuration() -> None:
    import open_clip

    counts: collections.Counter[str] = collections.Counter()
    failed = {}
    for name in open_clip.list_models():
        try:
            counts[_try(name)] += 1
        except Exception as error:  # all of them are shown, not the first alone
            failed[name] = f"{type(error).__name__}: {error}"
    assert not failed
    if open_clip.__version__ == "3.3.0":
        assert counts == COUNTS
        assert sum(COUNTS.values()) == 144
