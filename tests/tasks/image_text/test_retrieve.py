"""`fastht retrieve`: the numbers of a run's held-out pairs, others' data, and queries."""

import csv
import json
import shutil

import pytest
from clip_runs import train_pairs

from fastht.cli import main
from fastht.data import DataError
from fastht.data.overlap.remembered import REMEMBERED_NAME
from fastht.tasks.image_text.retrieve import RetrieveArguments, retrieve

METHODS = ["ht", "lora-text"]


@pytest.fixture(scope="module")
def runs(trained):
    """Runs by their method, to be read."""
    return {method: trained(method) for method in METHODS}


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("method", METHODS)
def test_a_runs_held_out_pairs_give_its_own_numbers(method, runs, pairs, tmp_path, capsys):
    out = tmp_path / "out"
    assert retrieve(RetrieveArguments(run=runs[method], workers=0, out=out)) == 0
    results, trained = results_of(out), results_of(runs[method])
    assert (results["task"], results["method"]) == ("retrieve", method)
    assert results["data"] == results["trained_on"] == str(pairs)
    assert (results["test_images"], results["captions"], results["left_out"]) == (10, 10, 30)
    for version in ("before", "after"):
        found = results[version]
        recalls = {name: value for name, value in trained[version].items() if "recall" in name}
        assert len(recalls) == 6
        assert {name: found[name] for name in recalls} == recalls
        assert found["rsum"] == pytest.approx(sum(recalls.values()))
        assert 1 <= found["image_to_text_median_rank"] <= 10
        assert 0 <= found["image_to_image_precision@5"] <= 1
    assert results["after"]["image_to_image_precision@1"] >= 0.9
    table = {r["score"]: r for r in csv.DictReader((out / "results.csv").open())}
    assert float(table["rsum"]["after"]) == results["after"]["rsum"]
    assert (out / "retrieved.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "30 of them left out" in printed
    assert "rsum" in printed
    assert "SIMULATED" not in printed


def test_an_image_with_several_captions_is_one_candidate_to_train_and_to_retrieve(
    pairs, tiny_model, tmp_path
):
    """Each image comes twice, the second time in other words."""
    lines = pairs.read_text().splitlines()
    twice = [line.replace("Ultrasound", "Sonogram number") for line in lines[1:]]
    table = pairs.with_name("twice.csv")
    table.write_text("\n".join([*lines, *twice]))
    trained = train_pairs(table, tiny_model, tmp_path / "run")
    retrieve(RetrieveArguments(run=tmp_path / "run", workers=0, out=tmp_path / "out"))
    found = results_of(tmp_path / "out")
    assert trained["held_out_samples"] == 20
    assert trained["gallery"] == results_of(tmp_path / "run")["gallery"]
    assert (trained["gallery"]["images"], trained["gallery"]["captions"]) == (10, 20)
    for version in ("before", "after"):
        recalls = {name: value for name, value in trained[version].items() if "recall" in name}
        assert {name: found[version][name] for name in recalls} == recalls
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({row["file"] for row in rows}) == len(rows) == 10
    for score in ("image_to_text_recall@1", "zero_shot_accuracy"):
        mean = sum(float(row[score]) for row in rows) / 10
        assert mean == pytest.approx(trained["after"][score])
        assert trained["intervals"]["after"][score][0] <= mean


def test_of_other_data_what_trained_the_run_is_left_out(runs, pairs, tmp_path):
    lines = pairs.read_text().splitlines()
    shutil.copy(pairs.with_name("00.png"), pairs.with_name("new.png"))
    other = pairs.with_name("other.csv")
    other.write_text("\n".join([*lines, "new.png,Ultrasound of one more dark cyst,cyst"]))
    retrieve(RetrieveArguments(run=runs["ht"], data=str(other), workers=0, out=tmp_path / "out"))
    results = results_of(tmp_path / "out")
    assert (results["test_images"], results["left_out"]) == (11, 30)


def test_the_base_alone_and_unlabelled_data(pairs, tiny_model, tmp_path, capsys):
    table = pairs.with_name("plain.csv")
    lines = pairs.read_text().splitlines()
    table.write_text("\n".join(line.rsplit(",", 1)[0] for line in lines))
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    retrieve(RetrieveArguments(data=str(table), **options))
    results = results_of(tmp_path / "out")
    assert results["before"] == results["after"]
    assert (results["method"], results["test_images"]) == ("base", 40)
    assert not any("precision" in name for name in results["after"])
    printed = capsys.readouterr().out
    assert "after" not in printed
    assert "left out, as" not in printed


def test_a_query_names_the_nearest_images(runs, tmp_path, capsys):
    bright, dark = (
        f"Ultrasound 3 showing a {what}"
        for what in ("bright echogenic solid mass", "anechoic fluid filled cyst")
    )
    options = {"run": runs["ht"], "workers": 0, "out": tmp_path / "out"}
    odd = {}
    for query in (bright, dark):
        retrieve(RetrieveArguments(query=query, **options))
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        found = [line for line in lines if line and line[0].isdigit() and line[-1].endswith(".png")]
        assert [line[0] for line in found] == ["1", "2", "3", "4", "5"]
        similarities = [float(line[1]) for line in found]
        assert similarities == sorted(similarities, reverse=True)
        odd[query] = sum(int(line[2][-6:-4]) % 2 for line in found)
    assert odd[bright] >= odd[dark] + 2  # odd numbers are bright; half of the images are
    assert (tmp_path / "out" / "query.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_query_is_cleaned_as_captions_are(runs, tmp_path, capsys):
    options = {"run": runs["ht"], "workers": 0, "out": tmp_path / "out"}
    said = {}
    for query in (
        "Le\u0301sion  hypo\u00e9chog\u00e8ne",
        "L\u00e9sion hypoe\u0301choge\u0300ne\ufffd",
    ):
        retrieve(RetrieveArguments(query=query, **options))
        lines = capsys.readouterr().out.splitlines()
        said[query] = [line for line in lines if line[:1].isdigit() and line.endswith(".png")]
    one, other = said.values()
    assert one == other
    with pytest.raises(ValueError, match="--query '肿块' has no letters"):
        retrieve(RetrieveArguments(query="肿块", cleaning="paper", **options))


def test_the_sample_is_the_default(tiny_model, tmp_path, capsys):
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    retrieve(RetrieveArguments(**options))
    assert results_of(tmp_path / "out")["test_images"] == 320
    assert "SIMULATED" in capsys.readouterr().out


def test_moved_images_and_an_empty_query_are_named(runs, pairs, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(pairs.parent, folder)
    run = tmp_path / "run"
    shutil.copytree(runs["ht"], run)
    arguments = json.loads((run / "arguments.json").read_text())
    arguments["data"] = str(folder / pairs.name)
    (run / "arguments.json").write_text(json.dumps(arguments))
    with pytest.raises(DataError, match="no image is left that the run held out; were the images"):
        retrieve(RetrieveArguments(run=run, workers=0, out=tmp_path / "out"))
    with pytest.raises(ValueError, match="--query is empty"):
        retrieve(RetrieveArguments(run=run, query=" ", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command(runs, tmp_path, capsys):
    command = ["retrieve", "--run", str(runs["ht"]), "--out", str(tmp_path / "out")]
    assert main([*command, "--workers", "0"]) == 0
    assert (tmp_path / "out" / "results.json").exists()
    assert main([*command, "--run", str(tmp_path)]) == 1
    assert "is no run of fastht train" in capsys.readouterr().err


def test_the_gallery_is_told_and_hits_of_every_kind_are_counted(runs, tmp_path, capsys):
    retrieve(RetrieveArguments(run=runs["ht"], workers=0, out=tmp_path / "out"))
    results = results_of(tmp_path / "out")
    ties = "ties count against the right answer"
    assert results["gallery"] == {"images": 10, "captions": 10, "ties": ties}
    assert f"gallery: 10 images, 10 captions; {ties}" in capsys.readouterr().out
    after = results["after"]
    # All captions differ, so that the exact image is the only right one.
    assert after["text_to_image_exact_recall@1"] == after["text_to_image_recall@1"]
    assert not any("patient" in name for name in after)
    assert after["gap"] == pytest.approx(after["paired"] - after["unmatched"])
    assert after["rank_percentile"] > results["before"]["rank_percentile"]
    assert after["image_effective_rank"] >= 1
    intervals = results["intervals"]
    assert (intervals["unit"], intervals["units"]) == ("image", 10)
    for version in ("before", "after"):
        assert intervals[version].keys() == results[version].keys()
        for name, (low, high) in intervals[version].items():
            assert low - 1e-9 <= results[version][name] <= high + 1e-9, name
    low, high = intervals["difference"]["gap"]
    assert low <= after["gap"] - results["before"]["gap"] <= high
    assert results["provenance"]["left_out"] == {"the run trained on": 30}


def test_data_that_the_run_does_not_know_is_told(runs, pairs, tmp_path, capsys):
    for name in ("pairs.csv", "00.png", "01.png"):
        shutil.copy(pairs.with_name(name), tmp_path / name)
    older = shutil.copytree(runs["ht"], tmp_path / "older")
    (older / REMEMBERED_NAME).unlink()  # as of versions that know images by their paths alone
    copied = {"data": str(tmp_path / "pairs.csv"), "run": older, "workers": 0}
    retrieve(RetrieveArguments(**copied, out=tmp_path / "out"))
    assert "NOTE: no file of this data is in the split" in capsys.readouterr().out
    retrieve(RetrieveArguments(**copied | {"data": str(pairs)}, out=tmp_path / "out"))
    assert "NOTE" not in capsys.readouterr().out


def test_results_lie_in_the_folder_of_the_run_by_default(runs, pairs, tmp_path):
    run = shutil.copytree(runs["ht"], tmp_path / "run")
    retrieve(RetrieveArguments(run=run, data=str(pairs), workers=0))
    assert (run / "retrieve-pairs" / "results.json").exists()


def test_patients_are_counted_where_they_are_known(pairs, tiny_model, tmp_path):
    lines = pairs.read_text().splitlines()
    table = pairs.with_name("patients.csv")
    rows = [f"{line},p{i // 2}" for i, line in enumerate(lines[1:])]
    table.write_text("\n".join([f"{lines[0]},patient", *rows]))
    options = {"model": tiny_model, "pretrained": "none", "workers": 0, "out": tmp_path / "out"}
    retrieve(RetrieveArguments(data=str(table), **options))
    after = results_of(tmp_path / "out")["after"]
    for direction in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert after[f"{direction}_patient_recall@{k}"] >= after[f"{direction}_recall@{k}"]
