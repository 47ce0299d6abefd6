"""Adapters saved from one model and loaded into another give the same outputs."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_towers import images, randomize, snapshot, tiny_tower
from torch import nn

import fastht
from fastht import CheckpointError, HTConfig, NotPatchedError, load_adapter, save_adapter

CONFIG = HTConfig(bottleneck_dim=4)


@pytest.fixture(autouse=True)
def _no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trained(config: HTConfig = CONFIG, seed: int = 0, **tower: Any) -> nn.Module:
    model = tiny_tower(seed, **tower)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fastht.patch(model, config)
    randomize(fastht.adapter_parameters(model))
    return model.eval()


@pytest.mark.parametrize("variant", ["hybrid", "noise_aware", "freq_enhanced", "baseline"])
@pytest.mark.parametrize("spectral", ["channel", "full"])
@pytest.mark.parametrize("patched", [False, True])
def test_a_loaded_adapter_gives_the_saved_outputs(
    tmp_path: Path, variant: Any, spectral: Any, patched: bool
) -> None:
    config = HTConfig(variant, spectral, bottleneck_dim=5)
    source = trained(config)
    save_adapter(source, tmp_path)
    target = tiny_tower()
    base = target(images())
    if patched:
        fastht.patch(target, config)
    assert load_adapter(target, tmp_path) is target
    assert torch.equal(target(images()), source(images()))
    assert not torch.equal(target(images()), base)
    assert fastht.adapters(target)[0].config == config
    trainable = [name for name, p in target.named_parameters() if p.requires_grad]
    assert trainable
    assert all(".ht." in name for name in trainable)
    assert torch.equal(fastht.unpatch(target)(images()), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_adapters_of_other_dtypes_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    source = trained().to(dtype)
    save_adapter(source, tmp_path)
    for target in (
        load_adapter(tiny_tower(), tmp_path).to(dtype),
        load_adapter(fastht.patch(tiny_tower(), CONFIG).to(dtype), tmp_path),
    ):
        saved, loaded = (fastht.adapter_state_dict(model) for model in (source, target))
        if dtype == torch.float64 and target is not source:
            saved = {name: tensor.float().double() for name, tensor in saved.items()}
            loaded = {name: tensor.float().double() for name, tensor in loaded.items()}
        assert all(torch.equal(saved[name], tensor) for name, tensor in loaded.items())
        assert loaded["blocks.0.gamma"].dtype == dtype


def test_negative_layers_name_the_same_blocks_after_loading(tmp_path: Path) -> None:
    source = trained(HTConfig(bottleneck_dim=4, layers=[-1, 0]), depth=3)
    save_adapter(source, tmp_path)
    target = load_adapter(tiny_tower(depth=3), tmp_path)
    assert list(fastht.adapters(target)) == [0, 2]
    assert torch.equal(target(images()), source(images()))
    positive = fastht.patch(tiny_tower(depth=3), HTConfig(bottleneck_dim=4, layers=[2, 0]))
    assert torch.equal(load_adapter(positive, tmp_path)(images()), source(images()))


def test_the_patched_models_own_dropout_and_init_stay(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    own = HTConfig(bottleneck_dim=4, dropout=0.5, init="paper")
    target = load_adapter(fastht.patch(tiny_tower(), own), tmp_path)
    assert fastht.adapters(target)[0].config == own
    assert torch.equal(target(images()), trained()(images()))


def test_the_filter_choice_of_a_variant_without_filter_does_not_matter(tmp_path: Path) -> None:
    save_adapter(trained(HTConfig("baseline", "full", bottleneck_dim=4)), tmp_path)
    target = fastht.patch(tiny_tower(), HTConfig("baseline", "channel", bottleneck_dim=4))
    load_adapter(target, tmp_path)


def test_a_full_filter_fits_other_image_sizes_and_can_be_saved_from_there(tmp_path: Path) -> None:
    source = trained(HTConfig(spectral="full", bottleneck_dim=4), grid=(3, 4))
    save_adapter(source, tmp_path / "first")
    larger = load_adapter(tiny_tower(grid=(5, 6)), tmp_path / "first")
    assert torch.equal(larger(images((5, 6))), source(images((5, 6))))
    # What is saved is the filter as it was learnt, with the grid that it was learnt on.
    save_adapter(larger, tmp_path / "second")
    again = load_adapter(tiny_tower(grid=(3, 4)), tmp_path / "second")
    assert torch.equal(again(images()), source(images()))


@pytest.mark.parametrize("grid", [(5, 6), (3, 5)], ids=["other shape", "same shape"])
def test_a_full_filter_is_not_loaded_over_one_of_another_grid(tmp_path: Path, grid: Any) -> None:
    # Grids 3x4 and 3x5 both keep 3 columns of frequencies, but not the same ones.
    config = HTConfig(spectral="full", bottleneck_dim=4)
    save_adapter(trained(config, grid=(3, 4)), tmp_path)
    target = fastht.patch(tiny_tower(grid=grid), config)
    before = snapshot(target)
    with pytest.raises(CheckpointError, match=r"filter_grid_size=\(3, 4\).*unpatch\(model\) first"):
        load_adapter(target, tmp_path)
    assert snapshot(target) == before
    load_adapter(fastht.unpatch(target), tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_same_base_in_any_precision_does_not_warn(tmp_path: Path, dtype: torch.dtype) -> None:
    save_adapter(trained(), tmp_path)
    load_adapter(tiny_tower().to(dtype), tmp_path)
    load_adapter(fastht.patch(tiny_tower(), CONFIG).to(dtype), tmp_path)


@pytest.mark.parametrize("other", ["all", "a block", "the patch projection"])
def test_a_base_with_other_weights_warns_once(tmp_path: Path, other: str) -> None:
    save_adapter(trained(), tmp_path, base_model="tiny/first")
    target = tiny_tower(seed=1 if other == "all" else 0)
    if other == "a block":
        randomize(target.transformer.resblocks[1].mlp.parameters())
    if other == "the patch projection":
        randomize(target.conv1.parameters())
    before = snapshot(target)
    message = r"of this shape but with other weights \(tiny/first\)"
    with pytest.raises(UserWarning, match=message):  # warnings are errors here
        load_adapter(target, tmp_path)
    assert snapshot(target) == before
    with pytest.warns(UserWarning, match=message) as caught:
        load_adapter(target, tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(fastht.adapters(target)) == 2


def test_the_base_is_described_but_without_weights_it_has_no_fingerprint(tmp_path: Path) -> None:
    model = trained(depth=3, grid=(2, 5))
    save_adapter(model, tmp_path, base_model="tiny/first")
    base = json.loads((tmp_path / "adapter_config.json").read_text())["base_model"]
    assert len(base.pop("fingerprint")) == 8
    assert base == {
        "dim": 12,
        "depth": 3,
        "grid_size": [2, 5],
        "num_prefix_tokens": 1,
        "name": "tiny/first",
        "settings": {"norm_eps": 1e-5},
    }
    with torch.no_grad():
        model.conv1.weight.fill_(float("nan"))
    save_adapter(model, tmp_path)
    base = json.loads((tmp_path / "adapter_config.json").read_text())["base_model"]
    assert base["fingerprint"] is None
    load_adapter(tiny_tower(seed=5, depth=3), tmp_path)  # nothing to compare: no warning


def test_adapters_that_share_weights_are_saved(tmp_path: Path) -> None:
    source = trained()
    first, second = fastht.adapters(source).values()
    second.down = first.down
    save_adapter(source, tmp_path)
    assert torch.equal(load_adapter(tiny_tower(), tmp_path)(images()), source(images()))


def test_a_saved_adapter_does_not_change_with_the_model(tmp_path: Path) -> None:
    source = trained()
    save_adapter(source, tmp_path)
    before = source(images())
    randomize(fastht.adapter_parameters(source), seed=9)
    assert torch.equal(load_adapter(source, tmp_path)(images()), before)


class Compiled(nn.Module):
    """Stands for torch.compile's wrapper, whose import takes seconds."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def test_a_compiled_model_loads_and_saves_as_the_model_inside(tmp_path: Path) -> None:
    save_adapter(Compiled(trained()), tmp_path)
    target = tiny_tower()
    compiled = Compiled(target)
    assert load_adapter(compiled, tmp_path) is compiled
    assert torch.equal(target(images()), trained()(images()))


@pytest.mark.filterwarnings("ignore")
def test_sharded_adapters_are_gathered_to_save_and_refused_to_load(tmp_path: Path) -> None:
    distributed = pytest.importorskip("torch.distributed")
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        source = trained()
        expected = source(images())
        for block in source.transformer.resblocks:
            fsdp.fully_shard(block, mesh=mesh)
        fsdp.fully_shard(source, mesh=mesh)
        save_adapter(source, tmp_path)
        assert torch.equal(load_adapter(tiny_tower(), tmp_path)(images()), expected)
        with pytest.raises(CheckpointError, match="load the adapter first, then shard"):
            load_adapter(source, tmp_path)
        bare = tiny_tower()
        fsdp.fully_shard(bare, mesh=mesh)
        with pytest.raises(ValueError, match="patch first, then wrap"):
            load_adapter(bare, tmp_path)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_adapter_is_not_saved_and_the_last_good_one_stays(
    tmp_path: Path, value: float
) -> None:
    model = trained()
    save_adapter(model, tmp_path)
    files = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    with torch.no_grad():
        fastht.adapters(model)[1].up.weight[0, 0] = value
    with pytest.raises(CheckpointError, match=r"blocks.1.up.weight holds NaN or Inf.*diverged"):
        save_adapter(model, tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == files


def test_a_model_without_adapters_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(NotPatchedError):
        save_adapter(tiny_tower(), tmp_path / "new")
    with pytest.raises(CheckpointError, match="name is not a text"):
        save_adapter(trained(), tmp_path / "new", base_model=Path("a"))  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_an_open_clip_adapter_loads_into_the_vision_tower_alone(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 24},
        text_cfg={"context_length": 4, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1},
    ).eval()
    fastht.patch(model, CONFIG)
    randomize(fastht.adapter_parameters(model))
    image = torch.randn(2, 3, 24, 24)
    expected = model.encode_image(image)
    save_adapter(model, tmp_path)

    load_adapter(fastht.unpatch(model).visual, tmp_path)
    assert torch.equal(model.encode_image(image), expected)
    # And back: what the tower alone was patched with is saved and loaded through the model.
    save_adapter(model.visual, tmp_path)
    load_adapter(model, tmp_path)
    assert torch.equal(model.encode_image(image), expected)
