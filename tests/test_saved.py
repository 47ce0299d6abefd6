"""The folder of an adapter: what it records, and that it is read whole and unchanged or not."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from saved_adapters import make, same

import fastht
from fastht import CheckpointError, HTConfig
from fastht.saved import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    _json,
    _seal,
    read_adapter,
    write_adapter,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_adapter(make(), tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, change: Any, reseal: bool = False) -> None:
    """Change the config; ``reseal`` brings its SHA-256 up to date, as a forger would."""
    content = json.loads((folder / CONFIG_NAME).read_text())
    change(content)
    if reseal:
        del content["config_sha256"]
        content = _seal(content)
    (folder / CONFIG_NAME).write_bytes(_json(content))


def put_weights(folder: Path, data: bytes) -> None:
    """Replace the weights, with a config that vouches for them."""
    (folder / WEIGHTS_NAME).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit(folder, lambda content: content.update(weights_sha256=digest), reseal=True)


@pytest.mark.parametrize("variant", ["hybrid", "noise_aware", "freq_enhanced", "baseline"])
@pytest.mark.parametrize("spectral", ["channel", "full"])
@pytest.mark.parametrize("layers", [None, (-1,)])
def test_what_was_written_is_read(tmp_path: Path, variant: Any, spectral: Any, layers: Any) -> None:
    config = HTConfig(variant, spectral, bottleneck_dim=5, dropout=0, init="paper", layers=layers)
    adapter = make(config=config)
    write_adapter(adapter, tmp_path / "new" / "folder")
    assert same(read_adapter(tmp_path / "new" / "folder"), adapter)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_and_memory_layout_is_kept_by_value(tmp_path: Path, dtype: torch.dtype) -> None:
    adapter = make()
    weights = {name: tensor.to(dtype) for name, tensor in adapter.weights.items()}
    weights["blocks.0.down.weight"] = torch.randn(8, 4).to(dtype).T  # transposed
    weights["blocks.0.gamma"] = torch.tensor(0.5, dtype=dtype).expand(8)  # expanded
    weights["blocks.1.gamma"] = weights["blocks.0.gammax"]  # tied
    weights["blocks.1.norm.bias"] = torch.randn(16).to(dtype)[::2]  # strided view
    adapter = replace(adapter, weights=weights)
    write_adapter(adapter, tmp_path)
    assert same(read_adapter(tmp_path), adapter)


def test_the_config_records_what_it_says(folder: Path) -> None:
    content = json.loads((folder / CONFIG_NAME).read_text())
    assert (content["format"], content["format_version"]) == ("fastht-adapter", 1)
    assert content["fastht_version"] == fastht.__version__
    assert content["base_model"] == make().base
    assert HTConfig.from_dict(content["config"]) == make().config
    data = (folder / WEIGHTS_NAME).read_bytes()
    assert content["weights_sha256"] == hashlib.sha256(data).hexdigest()
    assert sorted(os.listdir(folder)) == [CONFIG_NAME, WEIGHTS_NAME]
    assert set(safetensors.torch.load(data)) == set(make().weights)


def test_the_same_adapter_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_adapter(make(), tmp_path / "again")
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_flipped_bit_is_an_error(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    rng = random.Random(0)
    every = range(len(whole))
    positions = every if name == CONFIG_NAME else [*every[:20], *rng.sample(every, 40)]
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_adapter(folder)
    (folder / name).write_bytes(whole)
    assert same(read_adapter(folder), make())


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_an_error(folder: Path, name: str, share: float) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=name):
        read_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_an_absent_file_or_a_folder_in_its_place_is_an_error(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"cannot read .*{name}.*complete once"):
        read_adapter(folder)
    (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"cannot read .*{name}"):
        read_adapter(folder)


def test_files_of_two_adapters_do_not_mix(folder: Path, tmp_path: Path) -> None:
    write_adapter(make(seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / WEIGHTS_NAME, folder)
    with pytest.raises(CheckpointError, match=r"does not match the SHA-256.*copy the folder again"):
        read_adapter(folder)


def base(**change: Any) -> Any:
    return lambda content: content["base_model"].update(change)


def config(**change: Any) -> Any:
    return lambda content: content["config"].update(change)


EDITS = {
    "text for a number": config(dropout="0.1"),
    "NaN": config(dropout=float("nan")),
    "true for an integer": config(bottleneck_dim=True),
    "huge bottleneck": config(bottleneck_dim=10**30),
    "unknown variant": config(variant="newest"),
    "variant of other weights": config(variant="baseline"),
    "unknown config field": config(rank=4),
    "config is a list": lambda content: content.update(config=[1]),
    "block out of range": config(layers=[7]),
    "layers are text": config(layers="01"),
    "no config": lambda content: content.pop("config"),
    "negative dim": base(dim=-8),
    "other dim": base(dim=9),
    "fractional dim": base(dim=8.0),
    "huge dim": base(dim=10**30),
    "huge depth": base(depth=10**15),
    "unknown depth": base(depth=None),
    "negative prefix": base(num_prefix_tokens=-1),
    "grid is a number": base(grid_size=3),
    "grid of three": base(grid_size=[1, 2, 3]),
    "name is a number": base(name=3),
    "endless name": base(name="x" * 5000),
    "fingerprint is text": base(fingerprint="abc"),
    "fingerprint of text": base(fingerprint=["a"]),
    "infinite fingerprint": base(fingerprint=[float("inf")]),
    "unknown base field": base(colour="blue"),
    "no base": lambda content: content.pop("base_model"),
    "base is text": lambda content: content.update(base_model="ViT"),
    "filter grid without filter": lambda content: content.update(filter_grid_size=[3, 4]),
    "filter grid is text": lambda content: content.update(filter_grid_size="34"),
    "no filter grid": lambda content: content.pop("filter_grid_size"),
    "hash is a number": lambda content: content.update(weights_sha256=3),
    "no hash": lambda content: content.pop("weights_sha256"),
    "previous is a list": lambda content: content.update(weights_sha256="", previous=["old"]),
    "newer format": lambda content: content.update(format_version=2),
    "format is text": lambda content: content.update(format_version="1"),
    "no format": lambda content: content.pop("format"),
}


@pytest.mark.parametrize("change", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("reseal", [False, True], ids=["edited", "forged"])
def test_a_config_edited_by_hand_is_an_error(folder: Path, change: Any, reseal: bool) -> None:
    edit(folder, change, reseal)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder)
    assert str(folder) in str(caught.value)


def test_a_plausible_edit_is_told_and_says_what_to_do(folder: Path) -> None:
    edit(folder, config(dropout=0.5))
    with pytest.raises(CheckpointError, match=r"own SHA-256.*edited by hand; copy.*save.*again"):
        read_adapter(folder)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe{",
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b"[" * 200_000,
        b'{"a":' * 50_000,
        b'{"n": ' + b"9" * 9999 + b"}",
        b" " * (2 << 20),
        b"null",
        b"[]",
        pickle.dumps({"format": "fastht-adapter"}),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_a_config_that_is_no_json_object_is_an_error(folder: Path, data: bytes) -> None:
    (folder / CONFIG_NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match=CONFIG_NAME):
        read_adapter(folder)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("dump", [pickle.dump, torch.save])
def test_a_pickle_in_disguise_is_refused_and_not_run(
    folder: Path, tmp_path: Path, dump: Any
) -> None:
    with open(tmp_path / "pickle", "wb") as file:
        dump({"blocks.0.gamma": Bomb(tmp_path / "ran")}, file)
    data = (tmp_path / "pickle").read_bytes()
    put_weights(folder, data)
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_adapter(folder)
    (folder / CONFIG_NAME).write_bytes(data)
    with pytest.raises(CheckpointError, match="not JSON text"):
        read_adapter(folder)
    assert not (tmp_path / "ran").exists()


def wrong_weights() -> dict[str, tuple[Any, str]]:
    name = "blocks.0.gamma"
    good = make().weights
    nan = torch.full((8,), float("nan"))
    return {
        "NaN": (good | {name: nan}, "gamma holds NaN or Inf"),
        "Inf": (good | {name: torch.full((8,), float("inf"))}, "gamma holds NaN or Inf"),
        "integers": (
            good | {name: torch.ones(8, dtype=torch.int32)},
            "gamma has dtype torch.int32",
        ),
        "8 bits": (good | {name: torch.ones(8).to(torch.float8_e4m3fn)}, "float8_e4m3fn; adapters"),
        "shape": (good | {name: torch.ones(9)}, r"gamma has shape \(9,\); its config needs \(8,\)"),
        "missing": ({n: t for n, t in good.items() if n != name}, r"1 missing \(blocks.0.gamma\)"),
        "extra": (good | {"blocks.2.gamma": torch.ones(8)}, r"1 unexpected \(blocks.2.gamma\)"),
        "none": ({}, r"missing \(.*, \.\.\.\)"),
    }


@pytest.mark.parametrize("case", wrong_weights())
def test_wrong_weights_are_neither_read_nor_written(folder: Path, case: str) -> None:
    weights, message = wrong_weights()[case]
    with pytest.raises(CheckpointError, match=f"the adapter to save.*{message}"):
        write_adapter(replace(make(), weights=weights), folder)
    assert same(read_adapter(folder), make())
    put_weights(folder, safetensors.torch.save(weights))
    with pytest.raises(CheckpointError, match=f"{folder}.*{message}"):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [(torch.ones(8, device="meta"), "meta device"), (torch.ones(8).to_sparse(), "sparse")],
)
def test_tensors_without_plain_numbers_are_not_written(
    tmp_path: Path, tensor: torch.Tensor, message: str
) -> None:
    adapter = replace(make(), weights=make().weights | {"blocks.0.gamma": tensor})
    with pytest.raises(CheckpointError, match=message):
        write_adapter(adapter, tmp_path / "new")
    assert not (tmp_path / "new").exists()
