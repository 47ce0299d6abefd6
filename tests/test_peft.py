"""HT adapters and peft's LoRA in one model, in either order."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tiny_towers import randomize
from torch import Tensor, nn
from vits import VITS, Vit, loss

import fastht

peft = pytest.importorskip("peft")

VIT = VITS["registers"]


def _config(**options: object) -> object:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["qkv"], **options})


def _output(model: nn.Module, vit: Vit = VIT) -> Tensor:
    with torch.no_grad():
        return vit.features(model, vit.image())


def _trainable(model: nn.Module) -> dict[str, int]:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return {kind: sum(kind in name for name in names) for kind in (".ht.", "lora_")} | {
        "base": sum(".ht." not in name and "lora_" not in name for name in names)
    }


def test_lora_after_patch_is_told_to_have_frozen_the_adapters() -> None:
    model = peft.get_peft_model(fastht.patch(VIT.build()), _config()).train()
    assert _trainable(model)[".ht."] == 0
    with pytest.warns(UserWarning, match=r"peft's get_peft_model freezes.*requires_grad_\(True\)"):
        loss(VIT.features(model, VIT.image())).backward()
    for parameter in fastht.adapter_parameters(model):
        parameter.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(VIT.features(model, VIT.image())).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(model))


def test_patch_after_lora_says_what_it_freezes() -> None:
    model = peft.get_peft_model(VIT.build(), _config())
    with pytest.warns(UserWarning, match="freezes the 4 parameters that LoRA trains"):
        fastht.patch(model)
    assert _trainable(model) == {".ht.": 2 * 21, "lora_": 0, "base": 0}
    fastht.unpatch(model)
    assert _trainable(model) == {".ht.": 0, "lora_": 4, "base": 0}


@pytest.mark.parametrize("through", ["peft", "base"])
def test_unpatch_through_peft_is_whole(through: str) -> None:
    base = VIT.build()
    fastht.patch(base)
    model = peft.get_peft_model(base, _config(init_lora_weights=False))
    with fastht.disable_adapter(model):
        expected = _output(model)
    randomize(fastht.adapter_parameters(model))
    assert not torch.allclose(_output(model), expected, atol=1e-3)
    fastht.unpatch(model if through == "peft" else base)
    assert torch.equal(_output(model), expected)
    assert _trainable(model) == {".ht.": 0, "lora_": 4, "base": 0}  # LoRA goes on alone
    for either in (base, model):
        with pytest.raises(fastht.NotPatchedError):
            fastht.unpatch(either)
    fastht.patch(fastht.unpatch(fastht.patch(base)))


def test_all_linear_leaves_the_adapters_alone() -> None:
    model = fastht.patch(VIT.build())
    model = peft.get_peft_model(model, _config(target_modules="all-linear"))
    assert not any("lora_" in name for name, _ in fastht.adapters(model)[0].named_modules())
    # By name it is refused rather than put where it has no effect.
    with pytest.raises(ValueError, match=r"ReadLayer.*not supported|not supported"):
        peft.get_peft_model(fastht.patch(VIT.build()), _config(target_modules=["down", "up"]))


def test_adapters_in_modules_to_save_of_peft(tmp_path: Path) -> None:
    config = fastht.HTConfig(dropout=0.0)
    model = fastht.patch(VIT.build(), config)
    randomize(fastht.adapter_parameters(model))
    before = _output(model)
    model = peft.get_peft_model(model, _config(modules_to_save=["ht"]))
    assert len(fastht.adapters(model)) == 2
    assert torch.equal(_output(model), before)
    assert _trainable(model)["lora_"] == 4
    assert all(p.requires_grad for p in fastht.adapter_parameters(model))
    loss(VIT.features(model, VIT.image())).backward()
    assert all(p.grad is not None for p in fastht.adapter_parameters(model))
    randomize(fastht.adapter_parameters(model), seed=5)
    with model.disable_adapter():  # LoRA off, and peft's first copy of the adapters
        assert torch.equal(_output(model), before)
    fastht.save_adapter(model, tmp_path)
    loaded = fastht.load_adapter(VIT.build(), tmp_path)
    assert torch.equal(_output(loaded), _output(model))  # LoRA starts as nothing
    fastht.unpatch(model)
    assert not any(".ht." in name for name, _ in model.named_parameters())


def test_both_files_together_are_the_model(tmp_path: Path) -> None:
    model = fastht.patch(VIT.build(), fastht.HTConfig(dropout=0.0))
    model = peft.get_peft_model(model, _config(init_lora_weights=False))
    randomize(fastht.adapter_parameters(model))
    model.save_pretrained(tmp_path / "lora")
    fastht.save_adapter(model, tmp_path / "ht")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = peft.PeftModel.from_pretrained(VIT.build(), tmp_path / "lora")
        fastht.load_adapter(again, tmp_path / "ht")
    torch.testing.assert_close(_output(again), _output(model), rtol=0, atol=1e-6)
