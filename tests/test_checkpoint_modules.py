"""Heads that train beside the adapters are kept with them; settings of the base are compared."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import nn
from vits import ALL_VITS, VITS, open_clip_model, open_clip_tower, timm_vit

import fastht
from fastht import CheckpointError, load_adapter, save_adapter
from fastht.backbones import find_backbone
from fastht.fingerprint import differences, settings
from fastht.patch import patched_config

NAME = "vit_small_patch14_reg4_dinov2"


def _classifier(classes: int = 3) -> nn.Module:
    return timm_vit(NAME, num_classes=classes)


def _trained() -> nn.Module:
    model = fastht.patch(_classifier(), fastht.HTConfig(dropout=0.0), modules_to_save=["head"])
    randomize([*fastht.adapter_parameters(model), *model.head.parameters()])
    return model


IMAGE = VITS["registers"].image()


def test_a_head_trains_is_saved_and_comes_back(tmp_path: Path) -> None:
    model = _trained()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"head.weight", "head.bias"} == {name for name in trainable if ".ht." not in name}
    save_adapter(model, tmp_path)
    loaded = load_adapter(_classifier(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGE), model(IMAGE))
    assert loaded.head.weight.requires_grad
    assert not loaded.norm.weight.requires_grad
    # Into a model that was patched alike, too.
    other = fastht.patch(_classifier(), patched_config(model), modules_to_save=["head"])
    load_adapter(other, tmp_path)
    assert torch.equal(other.head.weight, model.head.weight)
    # And unpatch leaves the flags of the base.
    fastht.unpatch(loaded)
    assert all(p.requires_grad for p in loaded.parameters())


def test_without_modules_the_file_is_as_before(tmp_path: Path) -> None:
    save_adapter(fastht.patch(_classifier()), tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["format_version"] == 1
    assert "modules_to_save" not in content
    save_adapter(_trained(), tmp_path)
    content = json.loads((tmp_path / "adapter_config.json").read_text())
    assert content["format_version"] == 2  # so that an older fastht asks for a newer one
    assert content["modules_to_save"] == ["head"]


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        (["hat"], ValueError, "no module of that name with parameters; it holds .*blocks, norm"),
        (["blocks"], ValueError, "holds the vision blocks"),
        ("head", TypeError, "give a list of names"),
    ],
)
def test_bad_names_leave_the_model_untouched(names: Any, error: type, match: str) -> None:
    model = _classifier()
    before = snapshot(model)
    with pytest.raises(error, match=match):
        fastht.patch(model, modules_to_save=names)
    assert snapshot(model) == before


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    save_adapter(_trained(), tmp_path)
    for model in (_classifier(5), fastht.patch(_classifier(), patched_config(_trained()))):
        before = snapshot(model)
        with pytest.raises(CheckpointError, match=r"'head'|modules_to_save=\['head'\]"):
            load_adapter(model, tmp_path)
        assert snapshot(model) == before


def test_nothing_is_left_out_when_a_part_is_saved(tmp_path: Path) -> None:
    model = nn.Sequential(timm_vit(NAME), nn.Linear(32, 2))
    fastht.patch(model, modules_to_save=["1"])
    with pytest.raises(CheckpointError, match="save the model that was given to"):
        save_adapter(model[0], tmp_path)
    save_adapter(model, tmp_path)
    outer = nn.ModuleDict({"inner": model})  # a model around it has all of it
    save_adapter(outer, tmp_path)
    load_adapter(fastht.unpatch(model), tmp_path)
    # The adapters of such a model, patched in part: nothing else was named.
    model = nn.Sequential(timm_vit(NAME), nn.Linear(32, 2))
    fastht.patch(model[0])
    save_adapter(model[0], tmp_path)


def test_a_head_that_diverged_is_refused(tmp_path: Path) -> None:
    model = _trained()
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match=r"head\.bias holds NaN or Inf"):
        save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())


# Settings of the base that have no weights


def _with_quick_gelu(quick: bool) -> nn.Module:
    from open_clip.transformer import QuickGELU

    model = open_clip_model()
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GELU) and quick:
                setattr(module, name, QuickGELU())
    return model


def test_another_activation_is_told(tmp_path: Path) -> None:
    save_adapter(fastht.patch(_with_quick_gelu(True)), tmp_path, base_model="ViT/openai")
    with pytest.warns(UserWarning, match=r"activation QuickGELU there and GELU here"):
        load_adapter(_with_quick_gelu(False), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(_with_quick_gelu(True), tmp_path)


@pytest.mark.parametrize("name", list(ALL_VITS))
def test_settings_are_found(name: str) -> None:
    found = settings(find_backbone(ALL_VITS[name].build()))
    assert found["activation"]["name"] not in ("Dropout", "Identity")
    assert found["num_heads"] == 2 or name in ("vitamin", "mobileclip", "openai")
    patched = fastht.patch(ALL_VITS[name].build())
    assert settings(find_backbone(patched)) == found  # the adapter is none of the base


def test_settings_differ_where_they_matter() -> None:
    base = settings(find_backbone(open_clip_tower()))
    wide = settings(find_backbone(open_clip_tower(head_width=8)))
    assert differences(base, base) == []
    assert differences(wide, base) == ["num_heads 2 there and 4 here"]
    assert differences(base, {}) == []  # an adapter of before
    other = base | {"activation": {"name": "tanh", "values": [-0.0455, -0.1543, 0.3457, 0.8412]}}
    assert differences(other, base) == []  # GELU by tanh
    eps = base | {"norm_eps": 1e-6}
    assert differences(eps, base) == []
    assert differences(base | {"norm_eps": 0.1}, base) == ["norm_eps 1e-05 there and 0.1 here"]
