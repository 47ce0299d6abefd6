"""NextGen-UIA's files become adapters that compute the same; anything else is refused, unrun."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import vits
from nextgen_layout import HOSTS, VARIANTS, PublishedMona, published_file
from saved_adapters import same
from tiny_towers import TinyTower, images, randomize, tiny_tower
from torch import Tensor, nn

import fastht
from fastht import CheckpointError, import_nextgen_uia, load_adapter
from fastht.saved import read_adapter

DIM, CHANNELS = 12, 8
GRID = (3, 4)


def published(
    variant: str = "hybrid", count: int = 2, dim: int = DIM, dtype: torch.dtype = torch.float64
) -> list[PublishedMona]:
    """Make adapters as after some training: no parameter is left at its initial value."""
    adapters = [PublishedMona(dim, CHANNELS, variant).to(dtype).eval() for _ in range(count)]
    for index, adapter in enumerate(adapters):
        randomize(adapter.parameters(), seed=index)
    return adapters


@pytest.fixture(autouse=True)
def _seeded_and_on_a_fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def downstream(flat: dict[str, Tensor], head: str) -> dict[str, Any]:
    """Wrap the adapters as their segmentation and classification save them."""
    heads = {"reduces": nn.Linear(DIM, 6), "blocks": nn.LayerNorm(6), head: nn.Linear(6, 2)}
    return {name: module.state_dict() for name, module in heads.items()} | {"mona": flat}


@pytest.fixture
def pth(tmp_path: Path) -> Callable[..., Path]:
    def write(content: Any, **kwargs: Any) -> Path:
        torch.save(content, tmp_path / "best_model.pth", **kwargs)
        return tmp_path / "best_model.pth"

    return write


def equal_outputs(model: nn.Module, theirs: list[PublishedMona]) -> None:
    x = torch.randn(2, 1 + GRID[0] * GRID[1], DIM, dtype=torch.float64)
    ours = fastht.adapters(model)
    assert list(ours) == list(range(len(theirs)))
    for adapter, mona in zip(ours.values(), theirs, strict=True):
        expected = mona(x, GRID)
        torch.testing.assert_close(adapter.eval()(x, GRID, 1), expected, rtol=0, atol=1e-12)
        assert (expected - x).abs().max() > 0.1


@pytest.mark.parametrize(
    ("layout", "prefix"),
    [
        ("finetune", ""),
        ("finetune", "module."),
        ("finetune", "clip_model."),
        ("seg_head", ""),
        ("seg_head", "clip_model."),
        ("cls_head", "module.clip_model."),
    ],
)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_imported_adapter_computes_what_the_published_module_computes(
    pth: Any, variant: str, host: str, layout: str, prefix: str
) -> None:
    theirs = published(variant)
    flat = published_file(theirs, host, prefix)
    path = pth(flat if layout == "finetune" else downstream(flat, layout))
    folder = path.parent / "adapter"
    imported = import_nextgen_uia(path, folder)
    assert (imported.config.variant, imported.config.bottleneck_dim) == (variant, CHANNELS)
    assert (imported.config.dropout, imported.config.layers) == (0.1, (0, 1))
    assert same(imported, read_adapter(folder))
    patched = fastht.patch(tiny_tower().double(), fastht.HTConfig(variant, bottleneck_dim=CHANNELS))
    equal_outputs(load_adapter(patched, folder), theirs)


@pytest.mark.parametrize(
    ("host", "build"),
    [
        ("open_clip", vits.open_clip_tower),
        ("timm", lambda: vits.timm_vit("vit_tiny_patch16_224")),
        ("openai", vits.openai_tower),
    ],
)
def test_a_whole_tower_computes_what_theirs_computes(pth: Any, host: str, build: Any) -> None:
    model = build().double()
    grid = vits.GRID if host != "openai" else (4, 4)
    image = torch.randn(2, 3, 8 * grid[0], 8 * grid[1], dtype=torch.float64)
    theirs = published(dim=32)
    blocks = model.blocks if host == "timm" else model.transformer.resblocks

    def run_theirs(mona: PublishedMona) -> Callable[..., Tensor]:
        first = (lambda x: x.transpose(0, 1)) if host == "openai" else (lambda x: x)
        return lambda block, args, out: first(mona(first(out), grid))

    hooks = [
        block.register_forward_hook(run_theirs(mona))
        for block, mona in zip(blocks, theirs, strict=True)
    ]
    expected = model(image)
    for hook in hooks:
        hook.remove()
    base = model(image)

    folder = pth(published_file(theirs, host)).parent / "adapter"
    import_nextgen_uia(folder.parent / "best_model.pth", folder)
    outputs = load_adapter(model, folder)(image)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-11)
    assert (outputs - base).abs().max() > 0.1


def test_adapters_in_the_first_blocks_alone_are_imported(pth: Any) -> None:
    path = pth(published_file(published(count=2)))
    import_nextgen_uia(path, path.parent / "adapter")
    model = load_adapter(TinyTower(depth=5), path.parent / "adapter")
    assert list(fastht.adapters(model)) == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("legacy", [False, True])
def test_other_dtypes_containers_and_torchs_old_format_are_read(
    pth: Any, dtype: torch.dtype, legacy: bool
) -> None:
    flat = published_file(published(dtype=dtype))
    content = OrderedDict((name, nn.Parameter(tensor)) for name, tensor in flat.items())
    adapter = import_nextgen_uia(
        str(pth(content, _use_new_zipfile_serialization=not legacy)),
    )
    gamma = adapter.weights["blocks.1.gamma"]
    assert torch.equal(gamma, flat[HOSTS["open_clip"].format(1) + "gamma"])
    assert gamma.dtype == dtype
    assert not gamma.requires_grad


def test_names_without_mona_are_left_out(pth: Any) -> None:
    flat = published_file(published())
    whole = flat | {"visual.conv1.weight": torch.ones(3), "logit_scale": torch.ones(())}
    ours, expected = (import_nextgen_uia(pth(content)).weights for content in (whole, flat))
    assert ours.keys() == expected.keys()


def refuse(path: Path, message: str) -> None:
    out = path.parent / "adapter"
    before = sorted(os.listdir(path.parent))
    with pytest.raises(CheckpointError, match=message) as caught:
        import_nextgen_uia(path, out)
    assert str(path) in str(caught.value)
    assert sorted(os.listdir(path.parent)) == before


def without(*ends: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda flat: {n: t for n, t in flat.items() if not n.endswith(ends)}


def changed(end: str, tensor: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda flat: {n: tensor if n.endswith(end) else t for n, t in flat.items()}


def added(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda flat: flat | {name: torch.ones(DIM)}


def first_release(flat: dict[str, Any]) -> dict[str, Any]:
    """Their first release has adapters in both towers of OpenAI's CLIP, named alike."""
    vision = published_file(published("baseline"), "openai")
    return vision | {name.removeprefix("visual."): tensor for name, tensor in vision.items()}


def mixed_variants(flat: dict[str, Any]) -> dict[str, Any]:
    other = published_file(published("noise_aware"))
    return {n: t for n, t in flat.items() if ".0." in n} | {
        n: t for n, t in other.items() if ".1." in n
    }


BLOCK = HOSTS["open_clip"]
NAN = torch.full((DIM,), float("nan"), dtype=torch.float64)
CONTENTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an empty dict": (lambda flat: {}, "no parameter whose name contains 'mona'"),
    "no adapters": (lambda flat: {"visual.proj": torch.ones(1)}, "no parameter whose name"),
    "empty mona": (lambda flat: downstream({}, "seg_head"), "no parameter whose name"),
    "LoRA": (lambda flat: {"adapter_type": "lora", "lora_state_dict": {}}, "no parameter whose"),
    "a list": (lambda flat: list(flat.values()), "holds a list, not named tensors"),
    "a tensor": (lambda flat: torch.ones(2), "holds a Tensor, not named tensors"),
    "a key less in one block": (without("1.mona.clip_mona.gamma"), r"block 1 lacks gamma"),
    "a key less in the first": (without("0.mona.clip_mona.gamma"), r"block 0 lacks gamma"),
    "no gate bias": (without("noise_estimator.3.bias"), r"block 0 lacks noise_gate.2.bias"),
    "variants mixed": (mixed_variants, r"block 1 lacks spectral_filter, .*'hybrid' of block 0"),
    "no first block": (lambda f: {n: t for n, t in f.items() if ".0." not in n}, r"blocks \[1\]"),
    "unknown name": (added(BLOCK.format(0) + "delta"), "delta, which is no name of NextGen-UIA's"),
    "strange tower": (added("vit.blocks.0.mona.gamma"), "vit.blocks.0.mona.gamma, which is no"),
    "endless number": (added(BLOCK.format("9" * 5000) + "gamma"), "which is no name"),
    "two models": (
        lambda flat: flat | {f"teacher.{name}": tensor for name, tensor in flat.items()},
        r"more than one model \(.*teacher.visual",
    ),
    "blocks of two models": (
        lambda flat: {
            n.replace("visual", "teacher.visual") if ".1." in n else n: t for n, t in flat.items()
        },
        r"more than one model \(teacher.visual.*, visual",
    ),
    "wrapped and not": (added("visual.transformer.resblocks.0.mona.gamma"), "more than one model"),
    "the first release": (first_release, "text tower .* first release, which computes something"),
    "no tensor": (changed("0.mona.clip_mona.gamma", [1.0]), "gamma is a list, not a tensor"),
    "NaN": (changed("1.mona.clip_mona.gamma", NAN), "blocks.1.gamma holds NaN or Inf"),
    "integers": (changed("1.mona.clip_mona.gamma", torch.ones(DIM).long()), "dtype torch.int64"),
    "meta": (changed("gammax", torch.ones(DIM, device="meta")), "gammax is on the meta device"),
    "sparse": (changed("gammax", torch.ones(DIM).to_sparse()), "torch.sparse_coo, not a dense"),
    "a wide projector": (changed("projector.weight", torch.ones(8, 9, 1, 1)), r"\(8, 9\)"),
    "a 3x3 projector": (changed("projector.weight", torch.ones(8, 8, 3, 3)), r"\(8, 8, 3, 3\)"),
    "a 1x1 first kernel": (changed("conv1.weight", torch.ones(8, 1, 1, 1)), r"\(8, 1, 1, 1\)"),
    "another width in one block": (
        lambda flat: published_file([*published(count=1), *published(count=1, dim=7)]) | {},
        r"blocks.0|blocks.1",
    ),
    "a number for gamma": (changed("gamma", torch.ones(())), r"shape \(\)"),
    "no features": (changed("gamma", torch.ones(0)), "dim is 0"),
    "a narrow bottleneck": (changed("project1.bias", torch.ones(3)), r"bottleneck_dim is 3"),
    "a full filter": (changed("freq_filter", torch.ones(8, 3, 3)), r"\(8, 3, 3\)"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize("case", CONTENTS)
def test_other_contents_are_refused_and_nothing_is_written(pth: Any, case: str) -> None:
    change, message = CONTENTS[case]
    flat = published_file(published())
    path = pth(change(flat))
    refuse(path, message)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("forced", [False, True])
def test_code_in_a_file_does_not_run(
    pth: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool, forced: bool
) -> None:
    if forced:  # torch's switch for loads that do not say what they allow
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = published_file(published()) | {"mona": Bomb(tmp_path / "ran")}
    path = pth(content, _use_new_zipfile_serialization=not legacy)
    refuse(path, "no .pth file of plain tensors; fastht does not unpickle anything else")
    path.write_bytes(pickle.dumps(content, protocol=2))
    refuse(path, "no .pth file of plain tensors")
    assert not (tmp_path / "ran").exists()


def test_files_of_other_kinds_are_refused(tmp_path: Path, pth: Any) -> None:
    refuse(tmp_path / "absent.pth", "cannot read .*No such file")
    (tmp_path / "folder.pth").mkdir()
    refuse(tmp_path / "folder.pth", "cannot read .*[Dd]irectory")
    for data in (
        b"",
        b"epoch 3: loss 0.1\n" * 100,
        b"PK\x03\x04",
        b"\x80\x02.",
        random.Random(0).randbytes(500),
    ):
        (tmp_path / "file.pth").write_bytes(data)
        refuse(tmp_path / "file.pth", r"no .pth file of plain tensors|damaged or no .pth file")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_gives_one_clear_error(pth: Any, legacy: bool) -> None:
    path = pth(published_file(published()), _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    rng = random.Random(0)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        refuse(path, r"no .pth file of plain tensors|damaged or no .pth file")
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole) // 4)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with suppress(CheckpointError):  # no other error; without a hash some damage goes unseen
            import_nextgen_uia(path)


def test_an_import_replaces_what_stood_in_the_folder_only_if_it_succeeds(pth: Any) -> None:
    path = pth(published_file(published()))
    folder = path.parent / "adapter"
    import_nextgen_uia(path, folder)
    files = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    pth({})
    with pytest.raises(CheckpointError):
        import_nextgen_uia(path, folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == files
    with torch.no_grad():
        assert load_adapter(tiny_tower(), folder)(images()).isfinite().all()
