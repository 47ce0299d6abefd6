"""Prices of recomputing: on fake tensors they are those of steps that are taken."""

from pathlib import Path

import pytest
import torch

import fastht
from benchmarks import prices
from fastht import backends
from fastht.backbones import find_backbone
from fastht.bench.towers import ModelSpec
from fastht.recompute import reinstall
from fastht.saved_bytes import saved_bytes

SMALL = ModelSpec(
    "timm",
    "vit_tiny_patch16_224",
    32,
    (("patch_size", 8), ("embed_dim", 64), ("depth", 4), ("num_heads", 2)),
)


@pytest.mark.skipif(not backends()["cpu"].usable, reason="needs the native extension")
def test_bytes_of_fake_tensors_are_those_of_real_ones():
    found = prices.prices(SMALL)
    model = fastht.patch(SMALL.build(), backend="cpu").train()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    images = torch.zeros(6, 3, 32, 32)

    def kept(batch):
        with torch.autocast("cpu", torch.bfloat16):
            return saved_bytes(
                lambda: model(images[:batch]).float().sum(),
                [*model.parameters(), *model.buffers(), images],
            )

    for setting in ("none", "mlp", "block"):
        reinstall(find_backbone(model).blocks, setting)
        assert kept(6) - kept(5) == pytest.approx(found[setting].kept, rel=0.01)
    # Negative control: the settings are told apart.
    assert found["none"].kept > 1.2 * found["mlp"].kept > 1.5 * found["block"].kept


def test_what_runs_again_is_counted():
    operations = prices.count_operations(SMALL, ("none", "mlp:2", "mlp", "block"))
    tokens, dim, recorded = 17, 64, 3  # blocks but the first
    assert operations["mlp"] - operations["none"] == recorded * 2 * tokens * 4 * dim * dim
    assert operations["mlp:2"] - operations["none"] == 2 * 2 * tokens * 4 * dim * dim
    attention = 2 * 2 * tokens * tokens * dim
    block = 2 * tokens * 8 * dim * dim + attention
    assert operations["block"] - operations["none"] == recorded * block


@pytest.mark.skipif(not backends()["cpu"].usable, reason="needs the native extension")
def test_the_fewest_blocks_for_a_share_of_loras_bytes():
    pytest.importorskip("peft")
    whole = prices.beside_lora(SMALL, "output", share=1e9)
    assert (whole.fewest, whole.more) == ("none", 0.0)
    parts = whole.ht
    wanted = (parts["mlp:1"] + parts["mlp:2"]) / 2
    found = prices.beside_lora(SMALL, "output", share=wanted)
    assert found.fewest == "mlp:2"
    assert parts["mlp:2"] <= wanted < parts["mlp:1"] < parts["none"]
    assert prices.beside_lora(SMALL, "auto", share=1e9).ht["none"] > parts["none"]
    operations = prices.count_operations(SMALL, ("none", "mlp:2"))
    assert found.more == operations["mlp:2"] / operations["none"] - 1 > 0


@pytest.mark.sweep
def test_the_page_has_the_prices_of_its_first_model():
    page = (Path(__file__).parent.parent / "docs/patch.md").read_text(encoding="utf-8")
    first = prices.MODELS[:1]
    for line in [*prices.table(first).splitlines(), *prices.shares_table(first).splitlines()]:
        assert line in page
