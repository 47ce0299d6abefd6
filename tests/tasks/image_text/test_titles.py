"""Several titles of an image: one an epoch, equal ones spread, as tables of captions have them."""

import csv
import json

import pytest
import torch
from accelerate.state import AcceleratorState

from fastht.cli import main
from fastht.data import DataError, Record, load_records
from fastht.tasks.image_text.semantic import TagOptions
from fastht.tasks.image_text.titles import EpochCaptions, repeats
from fastht.tasks.image_text.train import TrainArguments, train
from fastht.tasks.image_text.wording import known_wordings, wording_hash
from fastht.tasks.training.config import TrainerConfig
from fastht.tasks.training.state import ResumeError

LABELS = ("anechoic fluid filled cyst", "bright echogenic solid mass")


@pytest.fixture
def titled(pairs):
    """The tests' images with two titles each, of four in all; the last has but one."""
    rows = list(csv.DictReader(pairs.open()))
    # Names without folders: those of a temporary one would decide who is held out.
    table = pairs.with_name("titled.csv")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title", "title_2", "tier"])
        for i, row in enumerate(rows):
            titles = [f"Ultrasound showing a {row['label']}", f"A {row['label']} on ultrasound"]
            titles = titles if i < 39 else [titles[0], ""]
            writer.writerow([row["filepath"], *titles, "condition"])
    return table


def options(titled, model, out, **changes):
    config = TrainerConfig(epochs=2, batch_size=10, lr=1e-2, workers=0)
    made = {"data": str(titled), "model": model, "pretrained": "none", "val_fraction": 0.265}
    return TrainArguments(**made | {"trainer": config, "out": out} | changes)


def run(*arguments, **changes):
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return train(options(*arguments, **changes))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def records(count=40):
    return [
        Record(f"/x/{i}.png", f"text {i % 3}", name=f"{i}.png", others=(f"more {i}", "the third"))
        for i in range(count)
    ]


def test_each_caption_is_there_once_in_as_many_epochs_as_there_are():
    found = EpochCaptions(records(), seed=0)
    assert found.several
    for start in (0, 3):
        cycle = [
            [found.texts[row] for row in found.rows(epoch)] for epoch in range(start, start + 3)
        ]
        for record, texts in zip(records(), zip(*cycle, strict=True), strict=True):
            assert sorted(texts) == sorted((record.caption, *record.others))
        # Not all have their first one at a time.
        assert 5 < sum(text.startswith("text") for text in cycle[0]) < 25
    orders = [torch.stack([found.rows(e) for e in range(s, s + 3)]) for s in (0, 3)]
    assert not torch.equal(*orders)


def test_the_choice_follows_the_name_and_the_seed_alone():
    given = records()
    found = EpochCaptions(given, seed=0)
    texts = [found.texts[row] for row in found.rows(1)]
    turned = EpochCaptions(given[::-1], seed=0)
    assert [turned.texts[row] for row in turned.rows(1)][::-1] == texts
    other = EpochCaptions(given, seed=1)
    assert [other.texts[row] for row in other.rows(1)] != texts
    single = EpochCaptions([Record("a", "one"), Record("b", "one"), Record("c", "two")], seed=0)
    assert single.rows(0).tolist() == single.rows(5).tolist() == [0, 0, 1]
    assert repeats(single)
    assert not repeats(EpochCaptions([Record("a", "one"), Record("b", "two")], seed=0))


def test_a_table_of_several_titles_is_read_and_told(titled):
    found = load_records(titled)
    first = found.records[0]
    assert (first.caption, first.others) == (
        f"Ultrasound showing a {LABELS[0]}",
        (f"A {LABELS[0]} on ultrasound",),
    )
    assert found.records[39].others == ()
    assert "39 images with several captions: fastht train takes one an epoch" in found.account()
    assert "1 column not read: tier" in found.account()


def test_training_takes_one_title_an_epoch_spreads_equal_ones_and_resumes(
    titled, tiny_model, tmp_path, monkeypatch, capsys
):
    whole = run(titled, tiny_model, tmp_path / "whole")
    multiplicity = whole["caption_multiplicity"]
    assert 1 < multiplicity["multiplicity"] < multiplicity["multiplicity_shuffled"]
    assert "Equal captions are spread over the batches" in capsys.readouterr().out
    # Both titles trained.
    known = known_wordings(tmp_path / "whole")
    assert all(text in known for label in LABELS for text in (f"A {label}, on ultrasound.",))
    assert "A cyst on ultrasound" not in known
    first = run(titled, tiny_model, tmp_path / "first", titles="first")
    plain = run(titled, tiny_model, tmp_path / "plain", spread_captions=False)
    assert plain["caption_multiplicity"] is None
    losses = [r["after"]["val_loss"] for r in (whole, first, plain)]
    assert len(set(losses)) == 3

    import fastht.tasks.training.trainer as trainer_module

    finish, stops = trainer_module.Trainer._finish_epoch, [True]

    def stop(self, *given):
        finish(self, *given)
        if stops and stops.pop():
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer_module.Trainer, "_finish_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(titled, tiny_model, tmp_path / "stopped")
    resumed = run(titled, tiny_model, tmp_path / "stopped", resume=True)
    assert resumed["after"] == whole["after"]
    with pytest.raises(ResumeError, match="titles"):
        run(titled, tiny_model, tmp_path / "stopped", resume=True, titles="first")


def test_tags_of_several_captions_are_refused(titled, tiny_model, tmp_path):
    tagging = TagOptions(tags="captions", tag_graph="tokens")
    with pytest.raises(DataError, match="add --titles first"):
        run(titled, tiny_model, tmp_path / "run", tagging=tagging)


def test_a_wording_is_the_same_whatever_its_case_marks_and_articles():
    same = {"A benign thyroid nodule.", "the Benign  thyroid, nodule", "benign thyroid nodule"}
    assert len(set(map(wording_hash, same))) == 1
    assert wording_hash("benign nodule thyroid") != wording_hash("benign thyroid nodule")


def test_captions_of_the_sample_train(tiny_model, tmp_path, capsys):
    made = tmp_path / "captions"
    command = ["captions", "--data", "sample", "--captions-per-image", "2", "--model", "none"]
    assert main([*command, "--out", str(made)]) == 0
    said = capsys.readouterr().out.split("train on them: fastht ")[1].split()
    command = [*said, "--model", tiny_model, "--pretrained", "none", "--epochs", "1"]
    assert main([*command, "--workers", "0", "--out", str(tmp_path / "run")]) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["caption_multiplicity"]["multiplicity"] >= 1
    assert "320 images with several captions" in capsys.readouterr().out
