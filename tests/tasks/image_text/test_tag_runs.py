"""Runs with tags in every part of them, from a checkpoint of the release and with whole towers."""

import csv
import dataclasses
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from fastht.tasks.image_text.align import AlignArguments, align
from fastht.tasks.image_text.attributes import AttributesArguments, attributes
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.models.build import build_clip
from fastht.tasks.training.config import TrainerConfig
from fastht.taxonomy import load_taxonomy
from fastht.taxonomy.graph import TagGraph

KINDS = ("published", "towers", "heads")


@pytest.fixture(scope="module")
def released(tiny_model, tmp_path_factory):
    """A checkpoint named as the release: a CLIP model, a graph network and something else."""
    torch.manual_seed(5)
    base = build_clip(tiny_model, "none")[0].state_dict()
    graph = TagGraph(load_taxonomy(), 16, mode="published").state_dict()
    state = {f"base_clip.{name}": tensor * 1.25 for name, tensor in base.items()} | graph
    file = tmp_path_factory.mktemp("released") / "ultrasound-clip.pt"
    torch.save({"epoch": 1, "state_dict": state | {"similarity_weight": torch.ones(())}}, file)
    return file, state


@pytest.fixture(scope="module")
def runs(tagged_pairs, tiny_model, released, tmp_path_factory):
    """Folders and results of the runs, by kind."""
    folder = tmp_path_factory.mktemp("runs")
    trainer = TrainerConfig(epochs=3, batch_size=10, lr=1e-2, patience=0, workers=0)
    plain = TrainArguments(
        data=str(tagged_pairs), model=tiny_model, pretrained="none", val_fraction=0.265,
        trainer=trainer,
    )  # fmt: skip
    chosen = {
        "published": {
            "pretrained": str(released[0]),
            "tagging": TagOptions(semantic="published", tag_graph="published"),
        },
        "towers": {
            "method": "none",
            "train_towers": "both",
            "tagging": TagOptions(semantic="fastht", tag_graph="tokens", tags="captions"),
        },
        "heads": {"method": "none"},
    }
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTHT_CACHE", str(folder / "cache"))
        for kind in KINDS:
            out = folder / kind
            found[kind] = out, train(dataclasses.replace(plain, out=out, **chosen[kind]))
            AcceleratorState._reset_state(reset_partial_state=True)
    return found


def far(found, start):
    """How far weights have gone, in parts of themselves: two draws are about 1.4 apart."""
    return ((found - start).norm() / start.norm()).item()


def test_the_published_setting_trains_whole_from_a_checkpoint_of_the_release(runs, released):
    out, results = runs["published"]
    held = results["tagging"]
    preset = ("published", "published", "zero", "local", "image")
    names = ("semantic", "tag_graph", "semantic_missing", "semantic_scope", "semantic_directions")
    assert tuple(held[name] for name in names) == preset
    assert held["target_diagonal_mass"] > 0.9  # as published: nearly hard labels
    before, after = results["before"], results["after"]
    assert after["val_total_loss"] < before["val_total_loss"]
    assert after["val_total_loss"] == after["val_loss"] + after["val_semantic_loss"]
    graph, given = load_file(out / "tag_graph.safetensors"), released[1]
    assert graph.keys() <= given.keys()
    # It starts from the checkpoint's graph network, and all of it that is used learns.
    moved = {name: far(graph[name], given[name]) for name in graph}
    weights = [name for name in graph if graph[name].ndim > 1]
    assert max(moved[name] for name in weights) < 0.8
    torch.manual_seed(0)  # as a graph that nothing was loaded into starts
    fresh = TagGraph(load_taxonomy(), 16, mode="published").state_dict()
    assert min(far(fresh[name], given[name]) for name in weights) > 1.2
    still = {name for name, distance in moved.items() if distance == 0}
    assert all("graph_encoder" not in name or "emb" in name for name in still)
    assert "text_graph_fusion.graph_proj.weight" not in still


@pytest.mark.parametrize("kind", KINDS)
def test_align_and_attributes_judge_the_run_as_it_trained(runs, kind, tmp_path, capsys):
    run, trained = runs[kind]
    options = {"run": run, "workers": 0}
    assert align(AlignArguments(out=tmp_path / "align", **options)) == 0
    found = json.loads((tmp_path / "align" / "results.json").read_text())
    for version in ("before", "after"):
        for name in ("image_to_text_recall@1", "text_to_image_recall@5"):
            assert found[version][name] == pytest.approx(trained[version][name])
    before, after = found["before"], found["after"]
    assert after["gap"] != before["gap"]
    assert "align" in str(tmp_path / "align")
    with_graph = kind != "heads"
    assert ("plain_text_gap" in after) == with_graph
    if with_graph:
        # The base has no tag graph, and afterwards the tags of the captions do something.
        assert before["plain_text_gap"] == before["gap"]
        assert after["plain_text_gap"] != after["gap"]
        name = "image_to_text_recall@1"
        assert after[f"plain_text_{name}"] == pytest.approx(trained["after"][f"plain_text_{name}"])
        low, high = found["intervals"]["after"]["plain_text_gap"]
        assert low < after["plain_text_gap"] < high
        assert not any("uniformity" in n and "image" in n for n in after if "plain" in n)
    assert ("plain text gap" in capsys.readouterr().out) == with_graph

    arguments = AttributesArguments(out=tmp_path / "attributes", probe=False, **options)
    assert attributes(arguments) == 0
    found = json.loads((tmp_path / "attributes" / "results.json").read_text())
    before, after = found["before"], found["after"]
    assert found["test_images"] == trained["held_out_samples"] == 10
    assert {"Diagnosis_accuracy", "Echogenicity_recall", "mean_accuracy"} <= after.keys()
    assert ("plain_text_mean_accuracy" in after) == with_graph
    if with_graph:
        assert before["plain_text_mean_accuracy"] == before["mean_accuracy"]


def test_us365k_trains_by_the_tags_that_it_comes_with(tagged_pairs, tiny_model, tmp_path, capsys):
    """The pairs laid out as that set, one caption of which is a refusal."""
    root = tmp_path / "us365k"
    (root / "images").mkdir(parents=True)
    with tagged_pairs.open(newline="") as file:
        rows = list(csv.DictReader(file))
    records = []
    sides = {"train": [], "valid": []}
    for i, row in enumerate(rows):
        shutil.copy(tagged_pairs.with_name(row["filepath"]), root / "images")
        caption = "A description cannot be generated." if i == 3 else row["title"]
        side = sides["valid" if i >= 30 else "train"]
        side.append({"image": row["filepath"], "caption": caption})
        tags = {name: [row[name]] for name in ("Diagnosis", "Echogenicity") if row[name]}
        records.append({"media_name": row["filepath"], "case_id": i} | tags)
    (root / "full_data.json").write_text(json.dumps(records))
    for side, listed in sides.items():
        (root / f"{side}.jsonl").write_text("\n".join(map(json.dumps, listed)))
    arguments = TrainArguments(
        data=str(root), model=tiny_model, pretrained="none", out=tmp_path / "run",
        trainer=TrainerConfig(epochs=1, batch_size=10, workers=0),
        tagging=TagOptions(semantic="fastht"),
    )  # fmt: skip
    held = train(arguments)["tagging"]["records"]
    assert held["samples"] == 29
    trained = [row for i, row in enumerate(rows[:30]) if i != 3]
    for name in ("Diagnosis", "Echogenicity"):
        assert held["tagged"][name] == sum(bool(row[name]) for row in trained)
    assert held["tagged"]["Shape"] == 0
    assert "1 caption that refuses to describe" in capsys.readouterr().out
