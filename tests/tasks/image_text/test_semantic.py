"""Tags of records, soft targets from them against a loop, and trainings with both."""

import csv
import dataclasses
import json
import random
import statistics

import numpy as np
import pytest
import torch

from fastht.data import DataError, Record
from fastht.losses import target_sharpness
from fastht.losses.targets import factors
from fastht.tasks.image_text import contrastive
from fastht.tasks.image_text.semantic import TagOptions, make_targets
from fastht.tasks.image_text.tags import given_tags, tags_of
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.training.config import TrainerConfig
from fastht.taxonomy import TaxonomyError, load_taxonomy
from fastht.taxonomy.similarity import similarity_matrix

TAXONOMY = load_taxonomy()
FASTHT = TagOptions(semantic="fastht")
PUBLISHED = TagOptions(semantic="published")


def record(**cells):
    return Record("a.png", "Ultrasound of a cyst, anechoic", attributes=cells)


def random_records(n):
    generator = random.Random(0)
    rows = []
    for _ in range(n):
        cells = {}
        for dimension in TAXONOMY.dimensions.values():
            if generator.random() < 0.5:
                held = generator.choices([*dimension.values, "unheard of"], k=2)  # may repeat one
                cells[dimension.field] = ";".join(held)
        rows.append(record(**cells))
    return rows


def looped(records, missing):
    """T by loops over pairs of records, dimensions and tags."""
    similarity = similarity_matrix(TAXONOMY)
    result = torch.zeros(len(records), len(records), dtype=torch.float64)
    for i, a in enumerate(records):
        for j, b in enumerate(records):
            found = []
            for dimension in TAXONOMY.dimensions.values():
                held = [
                    [dimension.values[v].id for v in dict.fromkeys(cell) if v in dimension.values]
                    for cell in (r.attributes.get(dimension.field, "").split(";") for r in (a, b))
                ]
                if all(held):
                    found.append(
                        statistics.fmean(similarity[x, y] for x in held[0] for y in held[1])
                    )
                elif missing == "zero":
                    found.append(0.0)
            result[i, j] = statistics.fmean(found) if found else 0.0
            if i == j:
                result[i, j] = 1.0
    return result


def dense(targets):
    q, p, u, w = factors(targets.rows, targets.columns, targets.table, torch.float64)
    t = q @ p.T
    if u is not None:
        t = torch.where(u @ w.T > 0, t / (u @ w.T), 0.0)
    return t.fill_diagonal_(1.0)


@pytest.mark.parametrize("missing", ["zero", "ignore"])
def test_targets_are_those_of_a_loop(missing):
    records = random_records(40)
    tags = given_tags(records, TAXONOMY)
    options = dataclasses.replace(FASTHT, semantic_missing=missing)
    found = dense(make_targets(TAXONOMY, tags.numbers, options))
    torch.testing.assert_close(found, looped(records, missing), rtol=0, atol=1e-6)
    other = looped(records, "ignore" if missing == "zero" else "zero")
    assert (found - other).abs().max() > 0.1
    assert tags.unknown["unheard of"] > 0


EXTENSION = """
name: mine
version: 1
extends: us365k
similarity:
  dimensions: {Echogenicity: ordinal, Margins: cooccurrence, Organ_level: text}
  overrides: {Shape: {oval ~ round: 0.9}}
weights: {Shape: 3, Diagnosis: 0}
missing: zero
"""


def test_the_taxonomys_file_says_similarity_weights_and_missing(tmp_path):
    (tmp_path / "mine.yaml").write_text(EXTENSION)
    mine = load_taxonomy(str(tmp_path / "mine.yaml"))
    cells = [{"Shape": "oval", "Diagnosis": "cyst"}, {"Shape": "round", "Diagnosis": "mass"}]
    tags = given_tags([record(**cell) for cell in cells], mine)
    known = {"records": tags.values, "encode": lambda texts: np.eye(len(texts))}

    def target(taxonomy, options):
        return dense(make_targets(taxonomy, tags.numbers, options, **known))[0, 1].item()

    # Shape weighs 3 of 3 + 7, for Diagnosis weighs nothing; the others are missing and count 0.
    assert len(mine.dimensions) == 9
    assert target(mine, FASTHT) == pytest.approx(0.9 * 3 / 10)
    # An option is stronger than the file, and so is the preset that is a setting of its own.
    ignoring = dataclasses.replace(FASTHT, semantic_missing="ignore")
    assert target(mine, ignoring) == pytest.approx(0.9)
    assert target(mine, PUBLISHED) == pytest.approx(0.9 * 3 / 10)
    # Controls: the shipped file has neither, and is alike only where the tree says so.
    plain = similarity_matrix(TAXONOMY)
    values = TAXONOMY.dimensions["Shape"].values
    shape = plain[values["oval"].id, values["round"].id]
    assert shape < 0.6
    assert target(TAXONOMY, FASTHT) < 0.6
    assert FASTHT.resolved(TAXONOMY).semantic_missing == "ignore"
    with pytest.raises(TaxonomyError, match="similarity text of Organ_level needs a text tower"):
        make_targets(mine, tags.numbers, FASTHT)


def test_cells_are_read_as_values_and_what_is_unknown_is_counted():
    tags = given_tags(
        [
            record(Shape="oval; round;oval", Margins=""),
            record(Shape="roundish", Vascularity="no vascularity"),
            record(Shape=""),
        ],
        TAXONOMY,
    )
    assert tags.values == ({"Shape": ("round", "oval")}, {"Vascularity": ("no vascularity",)}, {})
    assert (tags.unknown, tags.without) == ({"roundish": 1}, 1)
    assert tags.coverage()["Shape"] == 1
    assert tags.numbers.shape == (3, 2)
    assert "1 tag left out, of 1 value that the taxonomy has not: 'roundish' (1)" in tags.describe()
    assert "1 have none" in tags.describe()
    with pytest.raises(DataError, match=r"none of the columns Diagnosis, .* --tags captions"):
        given_tags([Record("a", "b")], TAXONOMY)
    assert tags_of([record()], TAXONOMY, "captions").values[0]["Diagnosis"] == ("cyst",)


def test_sharpness_is_that_of_the_dense_softmax():
    targets = make_targets(TAXONOMY, given_tags(random_records(30), TAXONOMY).numbers, FASTHT)
    keys = torch.arange(30) // 2
    for own in (None, keys):
        t = dense(targets)
        if own is not None:
            t = torch.where(keys[:, None] == keys, 1.0, t)
        p = t.div(0.3).softmax(dim=1)
        mass, entropy = target_sharpness(targets, 0.3, own)
        assert mass == pytest.approx(p.diagonal().mean().item(), rel=1e-9)
        assert entropy == pytest.approx(-(p * p.log()).sum(dim=1).mean().item(), rel=1e-9)
    # The published setting leaves nearly everything on the diagonal, the other does not.
    published = make_targets(TAXONOMY, targets.rows[0], PUBLISHED)
    assert target_sharpness(published, 0.07)[0] > 0.99
    assert target_sharpness(targets, 0.07)[0] < 0.9


def test_presets_fill_what_is_not_asked_for_and_nonsense_is_refused():
    held = PUBLISHED.resolved()
    assert (held.semantic_missing, held.semantic_scope) == ("zero", "local")
    assert PUBLISHED.soft_labels().directions == "image"
    assert FASTHT.soft_labels().scope == "global"
    heavy = TagOptions(semantic="published", semantic_weight=2.0, semantic_missing="ignore")
    assert (heavy.soft_labels().kl, heavy.soft_labels().mse) == (0.8, 1.2)
    assert heavy.resolved().semantic_missing == "ignore"
    with pytest.raises(ValueError, match="--semantic-kl is for semantic soft labels"):
        TagOptions(semantic_kl=0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        TagOptions(semantic="fastht", semantic_temperature=0.0)
    with pytest.raises(ValueError, match="semantic_weight is 0"):
        TagOptions(semantic="fastht", semantic_weight=0.0)


def arguments(data, model, out, **tagging):
    return TrainArguments(
        data=str(data), model=model, pretrained="none", val_fraction=0.25, out=out,
        trainer=TrainerConfig(epochs=3, batch_size=10, lr=3e-3, patience=0, workers=0),
        tagging=TagOptions(**tagging),
    )  # fmt: skip


def test_training_minimises_the_semantic_loss_and_tells_of_its_targets(
    tagged_pairs, tiny_model, tmp_path, capsys
):
    run = arguments(tagged_pairs, tiny_model, tmp_path, semantic="fastht", tag_graph="tokens")
    results = train(dataclasses.replace(run, positives="label"))
    before, after = results["before"], results["after"]
    assert after["val_semantic_loss"] < before["val_semantic_loss"]
    assert after["val_total_loss"] == after["val_loss"] + after["val_semantic_loss"]
    held = results["tagging"]
    assert 0.1 < held["target_diagonal_mass"] < 0.9
    assert 0 < held["target_entropy"] < 2.31
    records = held["records"]
    assert records["samples"] == results["train_samples"]
    assert 0 < records["without_tags"] < 5
    assert records["taxonomy"] == "us365k@1"
    printed = capsys.readouterr().out
    assert f"{records['without_tags']} have none." in printed
    assert f"{held['target_diagonal_mass']:.4f} of their mass on the diagonal" in printed
    assert "plain text image to text recall@5" in printed
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {float(row["val_target_diagonal_mass"]) < 0.95 for row in rows} == {True}
    best = min(rows, key=lambda row: float(row["val_total_loss"]))
    assert results["best_epoch"] == int(float(best["epoch"]))
    assert json.loads((tmp_path / "results.json").read_text()) == results


def sigmoid_loss(cosines, scale, bias):
    """The loss of SigLIP by its formula, a mean over images of sums over texts."""
    signs = 2 * torch.eye(len(cosines), dtype=cosines.dtype) - 1
    return -torch.nn.functional.logsigmoid(signs * (scale * cosines + bias)).sum() / len(cosines)


def semantic_loss(cosines, targets, temperature=0.07):
    """0.6 of the squared error and 0.4 of the divergence both ways, by their formulas."""
    p = (targets / temperature).softmax(dim=1)
    found = [
        (p * (p.log() - (c / temperature).log_softmax(dim=1))).sum(dim=1).mean()
        for c in (cosines, cosines.T)
    ]
    return 0.6 * (cosines - targets).square().mean() + 0.4 * (found[0] + found[1]) / 2


def test_the_sigmoid_loss_takes_semantic_soft_labels_beside_it(
    tagged_pairs, tiny_model, tmp_path, monkeypatch
):
    with open(f"{tiny_model.removeprefix('local-dir:')}/open_clip_config.json") as file:
        config = json.load(file)
    config["model_cfg"] |= {"init_logit_scale": 2.3, "init_logit_bias": -10.0}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    held = {}
    judged = contrastive.ContrastiveTask._losses

    def seen(task, images, texts):
        held.update(task=task, images=images.double(), texts=texts.double())
        return judged(task, images, texts)

    monkeypatch.setattr(contrastive.ContrastiveTask, "_losses", seen)
    run = arguments(tagged_pairs, f"local-dir:{tmp_path}", tmp_path / "run", semantic="fastht")
    run = dataclasses.replace(run, loss="siglip")
    results = train(dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, epochs=1)))
    after, task = results["after"], held["task"]
    count = len(held["images"])
    assert 5 < count <= task.batch_size  # one batch
    cosines = held["images"] @ held["texts"].T
    scale = task.model.logit_scale.detach().double().exp()
    bias = task.model.logit_bias.detach().double()
    targets = dense(task.targets[1].of(torch.arange(count)))
    assert after["val_loss"] == pytest.approx(sigmoid_loss(cosines, scale, bias).item(), rel=1e-5)
    expected = semantic_loss(cosines, targets).item()
    assert after["val_semantic_loss"] == pytest.approx(expected, rel=1e-4)
    assert after["val_total_loss"] == after["val_loss"] + after["val_semantic_loss"]
    assert after["val_semantic_loss"] < results["before"]["val_semantic_loss"]
    # Negative controls: hard labels and another temperature are told from these.
    hard = torch.eye(count).double()
    for other in (semantic_loss(cosines, hard),
                  semantic_loss(cosines, targets, 0.1)):  # fmt: skip
        assert expected != pytest.approx(other.item(), rel=1e-2)


def test_a_table_without_tags_has_one_error_and_captions_are_a_remedy(pairs, tiny_model, tmp_path):
    run = arguments(pairs, tiny_model, tmp_path / "columns", semantic="published")
    with pytest.raises(DataError, match="write them by `fastht taxonomy tag TABLE"):
        train(run)
    assert not (tmp_path / "columns").exists()
    empty = pairs.with_name("empty.csv")
    first, *rows = pairs.read_text().splitlines()
    empty.write_text("\n".join([f"{first},Shape", *(f"{row}," for row in rows)]) + "\n")
    with pytest.raises(DataError, match="no training sample has a tag of us365k@1, in columns"):
        train(dataclasses.replace(run, data=str(empty)))
    tagging = dataclasses.replace(run.tagging, tags="captions")
    results = train(dataclasses.replace(run, tagging=tagging, out=tmp_path / "captions"))
    assert results["tagging"]["semantic_missing"] == "zero"
    assert results["tagging"]["records"]["tagged"]["Diagnosis"] > 10


def test_soft_labels_reach_the_weights(tagged_pairs, tiny_model, tmp_path, capsys):
    """A control of the others: without them, or with other tags, other weights come out."""
    (tmp_path / "mine.yaml").write_text(EXTENSION)
    found = {}
    for name, tagging in {
        "plain": {},
        "fastht": {"semantic": "fastht"},
        "captions": {"semantic": "fastht", "tags": "captions"},
        "published graph": {"tag_graph": "published"},
        "taxonomy": {"semantic": "fastht", "taxonomy": str(tmp_path / "mine.yaml")},
    }.items():
        run = arguments(tagged_pairs, tiny_model, tmp_path / name, **tagging)
        trainer = dataclasses.replace(run.trainer, epochs=1)
        train(dataclasses.replace(run, trainer=trainer))
        found[name] = (run.out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert len({*found.values()}) == 5
    results = json.loads((tmp_path / "taxonomy" / "results.json").read_text())
    assert results["tagging"]["semantic_missing"] == "zero"
    assert results["tagging"]["weights"] == {"Shape": 3, "Diagnosis": 0}
    assert "Dimensions weigh Diagnosis 0" in capsys.readouterr().out


def test_an_interrupted_training_goes_on_to_the_same_bits(
    tagged_pairs, tiny_model, tmp_path, monkeypatch
):
    tagging = {"semantic": "fastht", "tag_graph": "tokens"}
    mine = tagged_pairs.with_name("mine.csv")
    mine.write_text(tagged_pairs.read_text())
    run = arguments(mine, tiny_model, tmp_path / "whole", **tagging)
    train(run)
    cut = dataclasses.replace(run, out=tmp_path / "cut")
    evaluate, calls = contrastive.ContrastiveTask.evaluate, []

    def interrupted(task):
        calls.append(task)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(task)

    with monkeypatch.context() as patch:
        patch.setattr(contrastive.ContrastiveTask, "evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    train(dataclasses.replace(cut, resume=True))
    for name in ("adapter/adapter_model.safetensors", "tag_graph.safetensors"):
        assert (run.out / name).read_bytes() == (cut.out / name).read_bytes()
    # Other tags are another run.
    text = mine.read_text()
    mine.write_text(text.replace("hyperechoic", "isoechoic"))
    with pytest.raises(RuntimeError, match=r"started with other settings \(tags\)"):
        train(dataclasses.replace(cut, resume=True))
