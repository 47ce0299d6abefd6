"""Image towers of runs of ``fastht train``: what they compute, what trains, what is unseen."""

import csv
import dataclasses
import json
import shutil

import pytest
import torch
from clip_runs import train_pairs

pytest.importorskip("monai")
pytest.importorskip("peft")
pytest.importorskip("torchmetrics")

import fastht
from fastht.cli import main
from fastht.data import CaseSet, DataError
from fastht.data.cases import Case
from fastht.data.signature import Entry
from fastht.tasks.image_text.run import load_clip
from fastht.tasks.images.commands import train
from fastht.tasks.images.experiment import build_model, load_split
from fastht.tasks.images.run import _groups
from fastht.tasks.images.run_tower import RunTower, keep_run_sides, read_run_tower
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.seen import keep_data
from fastht.tasks.training.state import ResumeError

KINDS = {
    "ht": {"method": "ht", "train_towers": "image", "tower_lr_scale": 1.0},
    "lora": {"method": "lora", "lora_rank": 4},
    "none": {"method": "none", "train_towers": "both", "tower_lr_scale": 1.0},
}
QUICK = TrainerConfig(epochs=1, batch_size=10, lr=1e-2, workers=0)


@pytest.fixture(scope="module")
def runs(table, tiny_model, tmp_path_factory):
    """The folder of runs on the table, by kind."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in KINDS.items():
        train_pairs(table, tiny_model, folder / name, trainer=QUICK, **options)
    return folder


def pixels():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_tower_is_what_the_run_made_of_it(runs, kind):
    tower = read_run_tower(runs / kind).build(32).module.eval()
    assert not any(p.requires_grad for p in tower.parameters())
    clip = load_clip(runs / kind, "unused", "unused", None)
    found = {}
    for version in clip.versions():
        found[version] = clip.model.visual(pixels())
    torch.testing.assert_close(tower(pixels()), found["after"], rtol=1e-4, atol=1e-5)
    assert (found["after"] - found["before"]).abs().max() > 1e-3  # the base is told from it
    names = " ".join(name for name, _ in tower.named_modules())
    assert ("ht" in names.split(".")) or ".ht" in names if kind == "ht" else ".ht" not in names
    assert "lora" not in names


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_and_what_it_starts_from(arguments, runs, kind):
    chosen = dataclasses.replace(arguments, from_run=runs / kind)
    tower = read_run_tower(runs / kind).build(32).module.eval()
    with torch.no_grad():
        expected = tower(pixels())
    names = set()
    for method in ("linear-probe", "full"):
        model = build_model(chosen, "classify", method, 3).module.eval()
        with torch.no_grad():
            torch.testing.assert_close(model.tower(pixels()), expected)
        names = trained(model)
        own = {name for name, _ in model.named_parameters()}
        assert names == (own if method == "full" else {"linear.weight", "linear.bias"})
        model.train()(pixels()).sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == names
    assert any(".ht." in name for name in names) == (kind == "ht")
    # Towers learn at a tenth of the rate of the head; vectors do not decay.
    groups = _groups(model)
    assert [(g.lr_scale, g.decays) for g in groups] == [(0.1, True), (0.1, False)]
    assert {p.ndim > 1 for p in groups[0].parameters} == {True}
    assert sum(len(g.parameters) for g in groups) == len(names) - 2

    for method in ("frozen", "lora"):
        model = build_model(chosen, "classify", method, 3).module
        added = {n for n in trained(model) if n.startswith("features.")}
        assert all("lora_" in name for name in added)
        assert bool(added) == (method == "lora")
        kept = fastht.adapters(model.features.model) if kind == "ht" else {}
        assert all(adapter.config.dropout == 0 for adapter in kept.values())
        assert bool(kept) == (kind == "ht")


def test_ht_methods_go_on_with_the_runs_adapters(arguments, runs):
    chosen = dataclasses.replace(arguments, from_run=runs / "ht")
    model = build_model(chosen, "classify", "ht", 3).module
    own = fastht.adapter_state_dict(read_run_tower(runs / "ht").build(32).module)
    found = fastht.adapter_state_dict(model.features.model)
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], own[name]) for name in own)
    assert {".ht." in n for n in trained(model) if n.startswith("features.")} == {True}
    with pytest.raises(ValueError, match="method mona is variant='baseline'"):
        build_model(chosen, "classify", "mona", 3)
    # A run without adapters gets new ones on what it trained.
    other = dataclasses.replace(chosen, from_run=runs / "none")
    fresh = fastht.adapters(build_model(other, "classify", "ht", 3).module.features.model)
    assert {adapter.config.bottleneck_dim for adapter in fresh.values()} == {8}


def sides(folder, side):
    with (folder / "split.csv").open() as file:
        return {row["patient"] for row in csv.DictReader(file) if row["split"] == side}


def test_a_labelled_set_is_told_apart_by_what_the_run_has_not_seen(
    arguments, runs, tmp_path, capsys
):
    chosen = dataclasses.replace(
        arguments,
        from_run=runs / "ht",
        methods=("linear-probe", "full"),
        model="unused",
        pretrained="unused",
        trainer=dataclasses.replace(arguments.trainer, epochs=2),
    )
    assert train("classify", chosen) == 0
    assert "with what it trained" in capsys.readouterr().out
    seen = sides(runs / "ht", "train")
    digest = read_run_tower(runs / "ht").sha256
    for method in chosen.methods:
        run = arguments.out / method / "seed-0"
        results = json.loads((run / "results.json").read_text())
        assert results["from_run"] == str(runs / "ht")
        assert results["tower"]["sha256"] == digest
        assert (results["tower"]["method"], results["tower"]["train_towers"]) == ("ht", "image")
        assert results["model"] == arguments.model + "/none"
        assert sides(run, "train") == seen
        assert sides(run, "val")
        assert sides(run, "test")
        assert not (sides(run, "val") | sides(run, "test")) & seen
    # Negative control: without the run its patients are tested.
    alone = load_split(arguments, "classify")
    assert {case.patient for case in alone.side("test")} & seen

    moved = tmp_path / "moved"
    shutil.copytree(runs / "ht", moved)
    described = json.loads((run / "run.json").read_text())
    described["options"]["from_run"] = str(moved)
    (run / "run.json").write_text(json.dumps(described))
    out = str(tmp_path / "again")
    assert main(["classify", "eval", str(run), "--out", out]) == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert again["after"] == pytest.approx(results["after"], nan_ok=True)
    shutil.copy(runs / "none" / "towers.safetensors", moved / "towers.safetensors")
    capsys.readouterr()
    assert main(["classify", "eval", str(run), "--out", out]) == 1
    assert "are no longer those that" in capsys.readouterr().err


def test_what_cannot_be_a_start_is_one_error(arguments, runs, tmp_path):
    chosen = dataclasses.replace(arguments, from_run=runs / "lora")
    with pytest.raises(ValueError, match=r"32 x 32 pixels, and --image-size is 48; give --image-s"):
        build_model(dataclasses.replace(chosen, image_size=48), "classify", "linear-probe", 3)
    with pytest.raises(ValueError, match="--start and --from-run are both given"):
        dataclasses.replace(chosen, start=tmp_path)
    with pytest.raises(ValueError, match="is no run of fastht train"):
        train("classify", dataclasses.replace(chosen, from_run=tmp_path))
    assert not arguments.out.exists()
    broken = tmp_path / "broken"
    shutil.copytree(runs / "lora", broken)
    (broken / "lora.safetensors").write_bytes(b"damaged")
    with pytest.raises(
        ResumeError, match=r"lora\.safetensors cannot be read .*; give the run's folder"
    ):
        build_model(dataclasses.replace(chosen, from_run=broken), "classify", "full", 3)
    (broken / "lora.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no lora\.safetensors: its training has not finished"):
        read_run_tower(broken)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"text": "tiny-bert"}, r"a dual encoder \(ViT-B-16/openai \+ tiny-bert\).*"),
        ({"head": "mlp-8"}, r"a dual encoder .*--model ViT-B-16 --pretrained openai$"),
        (
            {"model": "echocare:e.pth", "text": "tiny-bert"},
            r"EchoCare's encoder .*--model echocare:e\.pth$",
        ),
        ({}, None),  # the negative control: such a run is looked at further
    ],
)
def test_runs_of_other_towers_are_told_what_they_are(tmp_path, options, what):
    base = {"data": "sample", "model": "ViT-B-16", "pretrained": "openai"}
    arguments = base | {"method": "ht", "lora_rank": 4} | options
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    expected = r"has no adapter: its training has not finished" if what is None else what
    with pytest.raises(ValueError, match=expected):
        read_run_tower(tmp_path)


def fabricated(folder, rows):
    """A run that has patients on sides, images named after them."""
    folder.mkdir()
    keep_data(folder, [Entry(f"/data/{p}.png", side, f"{p}.png", patient=p) for p, side in rows])
    return RunTower(folder, {}, "")


def case_set(patients, split=None):
    cases = [
        Case(f"{p}-{i}", f"/data/{p}.png", patient=p, split=split) for p in patients for i in "ab"
    ]
    return CaseSet(tuple(cases), "somewhere", "table")


def test_patients_of_the_run_keep_its_sides(tmp_path):
    rows = [("p0", "train"), ("p1", "train"), *((f"p{i}", "val") for i in range(2, 12))]
    tower = fabricated(tmp_path / "run", rows)
    cases = case_set([*(f"p{i}" for i in range(12)), "new"])
    same, dealt = keep_run_sides(tower, cases, 0.1, 0.2, seed=0)
    assert same is cases
    assert {name: side for name, side in dealt.items() if side == "train"} == dict.fromkeys(
        ["p0-a", "p0-b", "p1-a", "p1-b"], "train"
    )
    assert "new-a" not in dealt  # as the seed has it
    for i in range(2, 12):
        assert dealt[f"p{i}-a"] == dealt[f"p{i}-b"] in ("val", "test")
    assert {*dealt.values()} == {"train", "val", "test"}
    # Another data set with patients of the same names is another matter.
    other = dataclasses.replace(
        cases, cases=tuple(dataclasses.replace(c, image="/other" + c.image) for c in cases)
    )
    assert keep_run_sides(tower, other, 0.1, 0.2, seed=0) == (other, {})
    few = fabricated(tmp_path / "few", [*((f"p{i}", "train") for i in range(11)), ("p11", "val")])
    with pytest.raises(DataError, match="trained on all but 1 of its patients"):
        keep_run_sides(few, case_set([f"p{i}" for i in range(12)]), 0.1, 0.2, seed=0)


def test_sides_of_the_data_lose_what_the_run_trained_on_and_say_so(tmp_path):
    tower = fabricated(tmp_path / "run", [("p0", "train"), ("p1", "val")])
    cases = case_set(["p0", "p1", "p2"], "test")
    train_side = case_set(["p3", "p0"], "train")
    both = dataclasses.replace(cases, cases=cases.cases + train_side.cases)
    kept, dealt = keep_run_sides(tower, both, 0.1, 0.2, seed=0)
    assert dealt == {}
    assert [c.name for c in kept.side("test")] == ["p1-a", "p1-b", "p2-a", "p2-b"]
    assert len(kept.side("train")) == 4
    assert sum(kept.left_out.values()) == 2
    assert "2 of val or test whose patient the run of --from-run trained on" in kept.describe()
