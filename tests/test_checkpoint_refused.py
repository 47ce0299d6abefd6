"""Loading what does not fit: one clear error, and not a byte of the model changed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_towers import TinyTower, images, randomize, snapshot, tiny_tower
from torch import nn

import fastht
from fastht import CheckpointError, HTConfig, UnsupportedModelError, load_adapter, save_adapter
from fastht.saved import CONFIG_NAME, WEIGHTS_NAME

CONFIG = HTConfig(bottleneck_dim=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = fastht.patch(tiny_tower(), CONFIG)
    randomize(fastht.adapter_parameters(model))
    save_adapter(model, tmp_path / "adapter", base_model="tiny/first")
    return tmp_path / "adapter"


def refuse(model: nn.Module, path: Any, message: str, error: Any = CheckpointError) -> None:
    before = snapshot(model)
    with pytest.raises(error, match=message) as caught:
        load_adapter(model, path)
    assert type(caught.value) is error
    assert snapshot(model) == before


def unpatched(**tower: Any) -> nn.Module:
    model = tiny_tower(**tower)
    model.conv1.weight.requires_grad_(False)  # a flag of the user's own, to be kept
    return model


def patched(config: HTConfig = CONFIG, **tower: Any) -> nn.Module:
    model = fastht.patch(unpatched(**tower), config)
    fastht.adapter_parameters(model)[0].requires_grad_(False)
    return model


def _truncate(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-1])


def _flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-2] ^= 1
    (folder / name).write_bytes(data)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    change(weights)
    safetensors.torch.save_file(weights, folder / WEIGHTS_NAME)


def _pickle(folder: Path) -> None:
    torch.save({}, folder / WEIGHTS_NAME)


def _peft(folder: Path) -> None:
    (folder / CONFIG_NAME).write_text(json.dumps({"peft_type": "LORA", "r": 8}))


def _replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated weights": (lambda f: _truncate(f, WEIGHTS_NAME), "truncated, damaged"),
    "truncated config": (lambda f: (f / CONFIG_NAME).write_text('{"format'), "not JSON text"),
    "flipped weights": (lambda f: _flip(f, WEIGHTS_NAME), "truncated, damaged"),
    "flipped config": (lambda f: _flip(f, CONFIG_NAME), "not JSON text"),
    "missing name": (lambda f: _rewrite(f, lambda w: w.popitem()), "does not match the SHA-256"),
    "extra name": (
        lambda f: _rewrite(f, lambda w: w.update(x=torch.ones(1))),
        "does not match the SHA-256",
    ),
    "no weights": (lambda f: (f / WEIGHTS_NAME).unlink(), "cannot read .*No such file"),
    "no config": (lambda f: (f / CONFIG_NAME).unlink(), "cannot read .*No such file"),
    "a pickle in disguise": (_pickle, "does not match the SHA-256"),
    "a peft adapter": (_peft, "peft wrote it"),
    "a file": (_replace_by_file, "is a file; an adapter is a folder with"),
    "nothing": (shutil.rmtree, "is not there; an adapter is a folder with"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("make", [unpatched, patched])
def test_a_damaged_folder_leaves_the_model_alone(
    folder: Path, damage: str, make: Callable[[], nn.Module]
) -> None:
    apply, message = DAMAGE[damage]
    apply(folder)
    refuse(make(), folder, message)


@pytest.mark.parametrize("make", [unpatched, patched])
@pytest.mark.parametrize(
    ("tower", "message"),
    [
        ({"dim": 8}, r"another base \(tiny/first\): dim is 12 there and 8 in this model; load"),
        ({"depth": 3}, "depth is 2 there and 3 in this model"),
    ],
)
def test_another_base_is_refused(
    folder: Path, make: Callable[..., nn.Module], tower: Any, message: str
) -> None:
    refuse(make(**tower), folder, message)


def test_another_number_of_prefix_tokens_is_refused(folder: Path) -> None:
    timm = pytest.importorskip("timm.models.vision_transformer")
    model = timm.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=1, num_classes=0, reg_tokens=4
    )
    refuse(model, folder, "num_prefix_tokens is 1 there and 5 in this model")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (HTConfig("baseline", bottleneck_dim=4), "has variant='hybrid' and .* with 'baseline'"),
        (HTConfig(bottleneck_dim=5), "has bottleneck_dim=4 and .* with 5"),
        (HTConfig(bottleneck_dim=4, layers=[1]), r"has layers=\(0, 1\) and .* with \(1,\)"),
        (HTConfig(spectral="full", bottleneck_dim=4), "has spectral='channel' and .* with 'full'"),
    ],
)
def test_a_model_patched_with_another_config_is_refused(
    folder: Path, config: HTConfig, message: str
) -> None:
    model = patched(config)
    refuse(model, folder, rf"{message}.*call fastht.unpatch\(model\) first")
    load_adapter(fastht.unpatch(model), folder)


def test_adapters_changed_by_hand_are_refused(folder: Path) -> None:
    model = patched()
    fastht.adapters(model)[0].gamma = nn.Parameter(torch.ones(1))  # would broadcast
    refuse(model, folder, "changed after fastht.patch")


@pytest.mark.parametrize("make", [TinyTower, lambda: fastht.patch(TinyTower(), CONFIG)])
def test_a_model_without_memory_is_refused(folder: Path, make: Callable[[], nn.Module]) -> None:
    with torch.device("meta"):
        model = make()
    refuse(model, folder, "meta device.*to_empty")


def test_weights_that_overflow_in_the_models_dtype_are_refused(tmp_path: Path) -> None:
    source = fastht.patch(tiny_tower(), CONFIG)
    with torch.no_grad():
        fastht.adapters(source)[1].up.bias.fill_(1e6)
    save_adapter(source, tmp_path)
    message = "blocks.1.up.bias is too large for the model's torch.float16 adapters; give them"
    refuse(patched().half(), tmp_path, message)


def test_a_wrapped_model_is_refused_before_it_is_patched_and_not_after(folder: Path) -> None:
    refuse(nn.DataParallel(unpatched()), folder, "patch first, then wrap", ValueError)
    model = fastht.patch(tiny_tower(), CONFIG)
    load_adapter(nn.DataParallel(model), folder)
    assert torch.equal(model(images()), load_adapter(tiny_tower(), folder)(images()))


def test_a_model_without_a_vision_transformer_is_refused(folder: Path) -> None:
    refuse(nn.Linear(2, 2), folder, "found no vision transformer", UnsupportedModelError)


def test_a_block_whose_own_attribute_is_in_the_way_is_refused(folder: Path) -> None:
    model = unpatched()
    model.transformer.resblocks[1].ht = nn.Identity()
    refuse(model, folder, "does not fit the model: block 1 .* attribute 'ht' of its own")


def test_an_unknown_backend_is_refused(folder: Path) -> None:
    model = unpatched()
    before = snapshot(model)
    with pytest.raises(ValueError, match="no-such-backend") as caught:
        load_adapter(model, folder, backend="no-such-backend")
    assert not isinstance(caught.value, CheckpointError)
    assert snapshot(model) == before


def test_paths_may_be_text_or_pathlike_and_a_tilde_is_a_name_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("~", "~/a b", Path("ü") / "x"):
        save_adapter(patched(), path)
        load_adapter(unpatched(), str(path))
        load_adapter(unpatched(), Path(path))
    assert not (tmp_path / "home").exists()
    assert (tmp_path / "~" / "a b" / CONFIG_NAME).is_file()


def test_saving_to_a_file_or_a_dead_link_is_an_error_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for name in ("file", "link"):
        with pytest.raises(CheckpointError, match=f"{name} is a file.*name a folder"):
            save_adapter(patched(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(OSError, match="file"):
        save_adapter(patched(), tmp_path / "file" / "below")


def test_a_linked_folder_is_read_and_written_in_place(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    source = patched()
    randomize(fastht.adapter_parameters(source), seed=4)
    save_adapter(source, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(load_adapter(unpatched(), folder)(images()), source(images()))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_folder_without_permission_is_an_error_and_keeps_its_adapter(folder: Path) -> None:
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(PermissionError):
            save_adapter(patched(), folder)
        load_adapter(unpatched(), folder)
        folder.chmod(0)
        refuse(unpatched(), folder, "Permission denied")
    finally:
        folder.chmod(stat.S_IRWXU)
    load_adapter(unpatched(), folder)
