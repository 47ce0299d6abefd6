"""What open_clip, timm and transformers do with a tower goes on working, with adapted features."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_towers import randomize, snapshot
from torch import Tensor, nn
from vits import GRID, TEXT, VITS, Vit, loss, open_clip_model

import fastht
from fastht.backbones import find_backbone


def _patched(name: str) -> tuple[Vit, nn.Module]:
    torch.manual_seed(1)
    vit = VITS[name]
    model = fastht.patch(vit.build())
    randomize(fastht.adapter_parameters(model))
    return vit, model


def _block_outputs(model: nn.Module) -> list[Tensor]:
    """Collect what comes out of each block, adapters included, in the next forward."""
    outputs: list[Tensor] = []
    for adapter in fastht.adapters(model).values():
        adapter.register_forward_hook(lambda _, __, out: outputs.append(out))
    return outputs


# forward_intermediates


@pytest.mark.parametrize("name", ["native", "siglip", "registers", "eva02", "beit", "vitamin"])
def test_forward_intermediates_gives_adapted_features(name: str) -> None:
    vit, model = _patched(name)
    outputs = _block_outputs(model)
    with torch.no_grad():
        result = model.forward_intermediates(vit.image(), intermediates_only=True)
    maps = result["image_intermediates"] if isinstance(result, dict) else result
    assert len(maps) == len(outputs) == 2
    for feature_map, tokens in zip(maps, outputs, strict=True):
        patches = tokens[:, vit.prefix_tokens :]
        assert torch.equal(feature_map, patches.transpose(1, 2).unflatten(2, GRID))


def test_forward_intermediates_of_an_open_clip_model() -> None:
    vit, model = _patched("clip")
    image = vit.image()
    with torch.no_grad():
        out = model.forward_intermediates(image, normalize=False)
        assert torch.equal(out["image_features"], model.encode_image(image))


def test_forward_intermediates_that_stop_early() -> None:
    vit, model = _patched("registers")
    outputs = _block_outputs(model)
    model.forward_intermediates(vit.image(), indices=[0], stop_early=True, intermediates_only=True)
    assert len(outputs) == 1


# transformers


@pytest.mark.parametrize("used_before", [False, True])
@pytest.mark.parametrize("name", ["transformers-clip-vision", "transformers-siglip"])
def test_hidden_states_are_adapted(name: str, used_before: bool) -> None:
    vit = VITS[name]
    model = vit.build()
    arguments = {"interpolate_pos_encoding": True, "output_hidden_states": True}
    with torch.no_grad():
        if used_before:  # transformers puts its own hooks in at the first call
            model(pixel_values=vit.image(), **arguments)
        fastht.patch(model)
        randomize(fastht.adapter_parameters(model))
        outputs = _block_outputs(model)
        states = model(pixel_values=vit.image(), **arguments).hidden_states
        assert len(states) == 3
        for state, output in zip(states[1:], outputs, strict=True):
            assert torch.equal(state, output)
        fastht.unpatch(model)
        states = model(pixel_values=vit.image(), **arguments).hidden_states
        base = vit.build()(pixel_values=vit.image(), **arguments).hidden_states
        for state, expected in zip(states, base, strict=True):
            assert torch.equal(state, expected)


def test_a_transformers_model_saves_and_loads_its_own_way(tmp_path: Any) -> None:
    vit, model = _patched("transformers-clip-vision")
    fastht.unpatch(model).save_pretrained(tmp_path)
    loaded = fastht.patch(type(model).from_pretrained(tmp_path))
    with torch.no_grad():
        assert torch.equal(vit.features(loaded, vit.image()), vit.features(model, vit.image()))


def test_an_adapter_beside_a_model_of_transformers_is_told(tmp_path: Any) -> None:
    """transformers takes it for peft's, and fails."""
    _, model = _patched("transformers-clip-vision")
    model.config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds a model of transformers too.*folder of its own"):
        fastht.save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastht.save_adapter(model, tmp_path / "adapter")
    for path in (tmp_path, tmp_path / "adapter"):
        assert len(fastht.load_adapter(VITS["transformers-clip-vision"].build(), path).state_dict())


class _TupleLayer(nn.Module):
    """Returns its attention beside the tokens, as the layers of transformers 4 do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, str]:
        return self.layer(x, **kwargs), "attention"


class _TupleEncoder(nn.Module):
    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TupleLayer(layer) for layer in layers)

    def forward(self, inputs_embeds: Tensor, **kwargs: Any) -> Any:
        for layer in self.layers:
            inputs_embeds, attention = layer(inputs_embeds, attention_mask=None)
            assert attention == "attention"
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def test_layers_that_return_tuples() -> None:
    vit, expected = _patched("transformers-clip-vision")
    model = vit.build()
    model.encoder = _TupleEncoder(model.encoder.layers).eval()
    fastht.patch(model)
    adapters = fastht.adapters(model)
    for index, adapter in fastht.adapters(expected).items():
        adapters[index].load_state_dict(adapter.state_dict())
    with torch.no_grad():
        assert torch.equal(vit.features(model, vit.image()), vit.features(expected, vit.image()))


# open_clip's lock


def _trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def _adapter_names(model: nn.Module) -> set[str]:
    own = {id(p) for p in fastht.adapter_parameters(model)}
    return {name for name, p in model.named_parameters() if id(p) in own}


def _siglip_model() -> nn.Module:
    vision = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}
    vision |= {"timm_pool": "token", "timm_proj": "linear"}
    return open_clip_model("CustomTextCLIP", vision_cfg=vision)


LOCKABLE = {"CLIP": open_clip_model, "CustomTextCLIP": _siglip_model, "CoCa": VITS["coca"].build}


def _lock(model: nn.Module, groups: int) -> None:
    if hasattr(model, "lock_image_tower"):
        model.lock_image_tower(unlocked_groups=groups)
    else:  # CoCa
        model.visual.lock(groups)


@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize("name", LOCKABLE)
def test_lock_after_patch_leaves_the_adapters_training(name: str, groups: int) -> None:
    model, base = LOCKABLE[name](), LOCKABLE[name]()
    before = snapshot(model)
    fastht.patch(model)
    base.requires_grad_(False)  # as patch does
    for m in (model, base):
        _lock(m, groups)
    assert _trainable(model) == _trainable(base) | _adapter_names(model)
    model.visual.lock()
    assert _trainable(model) == _adapter_names(model)
    # Adapters that the user froze stay so.
    fastht.adapters(model)[1].requires_grad_(False)
    _lock(model, 0)
    assert {n for n in _trainable(model) if "blocks.1." in n} == set()
    fastht.unpatch(model)
    assert snapshot(model) == before


@pytest.mark.parametrize("groups", [0, 1])
@pytest.mark.parametrize("name", LOCKABLE)
def test_lock_before_patch_is_given_back(name: str, groups: int) -> None:
    model = LOCKABLE[name]()
    _lock(model, groups)
    before = snapshot(model)
    fastht.patch(model)
    assert _trainable(model) == _adapter_names(model)
    fastht.unpatch(model)
    assert snapshot(model) == before


def test_lock_of_the_text_tower_and_freeze_bn_stats() -> None:
    model = fastht.patch(open_clip_model())
    model.lock_text_tower()
    model.lock_image_tower(0, True)
    assert _trainable(model) == _adapter_names(model)
    assert all(isinstance(a, fastht.HTAdapter) for a in fastht.adapters(model).values())


# Whole models


@pytest.mark.parametrize("name", ["clip", "custom-text-clip", "coca"])
def test_an_open_clip_model_trains_its_adapters_on_images_and_texts(name: str) -> None:
    vit, model = _patched(name)
    image = vit.image()
    text = torch.randint(1, TEXT["vocab_size"], (2, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Frozen as a patched one: PyTorch may round otherwise with weights that could train.
        base_text = vit.build().requires_grad_(False).encode_text(text)
        assert torch.equal(model.encode_text(text), base_text)
    out = model(image, text)
    features = out["image_features"] if isinstance(out, dict) else out[0]
    loss(features).backward()
    own = fastht.adapter_parameters(model)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in own)
    assert sum(p.grad is not None for p in model.parameters()) == len(own)


def test_clip_learns_its_adapters_alone() -> None:
    vit, model = _patched("clip")
    text = torch.arange(1, 17).view(2, 8)
    base = {name: p.clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(fastht.adapter_parameters(model), lr=1e-2)
    losses = []
    for _ in range(8):
        image_features, text_features, scale = model(vit.image(), text)[:3]
        logits = scale * image_features @ text_features.T
        step = nn.functional.cross_entropy(logits, torch.arange(2))
        optimizer.zero_grad()
        step.backward()
        optimizer.step()
        losses.append(float(step.detach()))
    assert losses[-1] < 0.9 * losses[0]
    own = _adapter_names(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, base[name])}
    assert changed
    assert changed <= own


def test_set_input_size_of_a_timm_model_in_open_clip() -> None:
    model = fastht.patch(_siglip_model(), fastht.HTConfig(init="paper"))
    model.visual.set_input_size((32, 48))
    with torch.no_grad():
        assert model.encode_image(torch.zeros(1, 3, 32, 48)).shape == (1, 32)
    projection = find_backbone(model).patch_projection
    assert projection._forward_hooks["fastht"].state.grid_size == (2, 3)
