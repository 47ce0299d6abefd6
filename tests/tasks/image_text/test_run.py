"""A run of `fastht train` read again: its model, the base in it, its split; and what is no run."""

import csv
import json
import shutil

import pytest
import torch

import fastht
from fastht.data import DataError
from fastht.tasks.image_text.adapted import adapt, as_base
from fastht.tasks.image_text.run import file_key, load_clip, read_split
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.state import ResumeError

METHODS = ["ht", "lora", "lora-text"]


@pytest.fixture(scope="module")
def runs(trained):
    """Runs by their method, to be read."""
    return {method: trained(method) for method in METHODS}


@pytest.fixture
def run(runs, tmp_path):
    """A copy of a run for a test to damage."""
    shutil.copytree(runs["ht"], tmp_path / "run")
    return tmp_path / "run"


def frozen_base(name):
    """PyTorch rounds otherwise where weights have gradients."""
    return build_clip(name, "none")[0].eval().requires_grad_(False)


def encode(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        images = model.encode_image(torch.randn(3, 3, 32, 32, generator=generator))
        texts = model.encode_text(torch.randint(1, 400, (3, 32), generator=generator))
    return images, texts


@pytest.mark.parametrize("method", METHODS)
def test_as_base_is_bitwise_the_base_and_ends(method, tiny_model):
    base = frozen_base(tiny_model)
    model = build_clip(tiny_model, "none")[0].eval()
    adapt(model, method, config=fastht.HTConfig(), lora_rank=4, backend="auto")
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    with as_base(model, method):
        found = encode(model)
    images, texts = encode(base)
    assert torch.equal(found[0], images)
    assert torch.equal(found[1], texts)
    adapted = encode(model)
    assert not torch.allclose(adapted[0], images, atol=1e-3)
    assert torch.allclose(adapted[1], texts, atol=1e-3) == (method != "lora-text")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable.keys()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_loaded_as_base_and_as_trained(method, runs, tiny_model, pairs):
    clip = load_clip(runs[method], "unused", "unused", None)
    assert (clip.name, clip.method) == (f"{tiny_model}/none", method)
    assert clip.describe() == {
        "model": f"{tiny_model}/none",
        "method": method,
        "percent": 100.0,
        "seed": 0,
        "trained_on": str(pairs),
    }
    seen = {version: encode(clip.model) for version in clip.versions()}
    assert list(seen) == ["before", "after"]
    base = frozen_base(tiny_model)
    assert torch.equal(seen["before"][0], encode(base)[0])
    assert not torch.allclose(seen["after"][0], seen["before"][0], atol=1e-3)
    texts = clip.embedder(["a text"])
    with as_base(clip.model, method):
        assert torch.equal(clip.embedder(["a text"]), texts) == (method != "lora-text")


def test_a_model_without_adapter_is_its_base_and_one_with_it_has_both(runs, tiny_model):
    clip = load_clip(None, tiny_model, "none", None)
    assert list(clip.versions()) == ["before"]
    assert clip.describe()["method"] == "base"
    assert "trained_on" not in clip.describe()
    assert not clip.trained_on("anything.png")
    adapted = load_clip(None, tiny_model, "none", runs["ht"] / "adapter")
    run = load_clip(runs["ht"], "unused", "unused", None)
    assert torch.equal(encode(adapted.model)[0], encode(run.model)[0])
    assert not torch.equal(encode(adapted.model)[0], encode(clip.model)[0])


def test_the_split_names_every_sample_by_its_absolute_file(runs, pairs, monkeypatch):
    rows = list(csv.DictReader((runs["ht"] / "split.csv").open()))
    assert {row["file"] for row in rows} == {str(pairs.parent / f"{i:02}.png") for i in range(40)}
    assert sorted(row["split"] for row in rows) == ["train"] * 30 + ["val"] * 10
    clip = load_clip(runs["ht"], "unused", "unused", None)
    monkeypatch.chdir(pairs.parent)
    sides = {row["file"]: row["split"] for row in rows}
    for i in range(40):
        trained = sides[str(pairs.parent / f"{i:02}.png")] == "train"
        assert clip.trained_on(f"{i:02}.png") == trained
        assert clip.trained_on(f"../{pairs.parent.name}/{i:02}.png::3") == trained


def test_one_trained_sample_of_a_file_is_enough(tmp_path):
    (tmp_path / "split.csv").write_text("file,split\n/a.png,train\n/a.png,val\n/b.png,val\n")
    assert read_split(tmp_path) == {"/a.png": "train", "/b.png": "val"}


def test_files_are_the_same_through_links_and_members_of_a_tar_are_not(tmp_path):
    (tmp_path / "real.png").touch()
    (tmp_path / "link.png").symlink_to("real.png")
    assert file_key(str(tmp_path / "link.png")) == file_key(str(tmp_path / "real.png"))
    shard = str(tmp_path / "s.tar")
    assert file_key(f"{shard}::a.png") != file_key(f"{shard}::b.png")
    assert file_key(f"{shard}::a.png") == file_key(f"{tmp_path}/x/../s.tar::a.png")


@pytest.mark.parametrize("method", ["ht", "lora"])
def test_a_run_without_weights_is_unfinished(method, runs, tmp_path):
    for name in ("arguments.json", "split.csv"):
        shutil.copy(runs[method] / name, tmp_path / name)
    with pytest.raises(ValueError, match=r"has no (adapter|lora.safetensors): .* --resume"):
        load_clip(tmp_path, "unused", "unused", None)


def test_what_is_no_run_is_named(run, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is no run of fastht train: arguments\.json"):
        load_clip(tmp_path / "nowhere", "unused", "unused", None)
    with pytest.raises(ValueError, match="--run and --adapter are both given"):
        load_clip(run, "unused", "unused", run / "adapter")
    (run / "split.csv").unlink()
    with pytest.raises(DataError, match=r"split\.csv: cannot be read"):
        load_clip(run, "unused", "unused", None)
    arguments = json.loads((run / "arguments.json").read_text())
    del arguments["method"]
    (run / "arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(ValueError, match=r"no run of this version .* lacks method; train anew"):
        load_clip(run, "unused", "unused", None)
    (run / "arguments.json").write_text("{")
    with pytest.raises(ValueError, match="is no run of fastht train"):
        load_clip(run, "unused", "unused", None)


def test_damaged_weights_are_named(runs, tmp_path):
    shutil.copytree(runs["lora"], tmp_path / "run")
    file = tmp_path / "run" / "lora.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ResumeError, match=r"lora\.safetensors cannot be read"):
        load_clip(tmp_path / "run", "unused", "unused", None)
