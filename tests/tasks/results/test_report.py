"""`fastht report`: runs of folders compared, apart for each task and data set."""

import csv
import math

import pytest
import tyro
from fabricated_runs import classification, leave, segmentation
from PIL import Image

from fastht.data import DataError
from fastht.files import write_json
from fastht.tasks.results.report import ReportArguments, report


@pytest.fixture
def runs(tmp_path):
    """Segmentation with two methods, two seeds, two shares; classification of other data."""
    folder = tmp_path / "runs"
    for method, gain in (("ht", 0.05), ("lora", 0.0)):
        for percent, dice in ((5.0, 0.5), (100.0, 0.8)):
            for seed in range(2):
                run = segmentation(
                    dice + gain + 0.01 * seed, method=method, percent=percent, seed=seed
                )
                leave(folder / "seg" / f"{method}-{percent:g}-{seed}", run)
    leave(folder / "cls", classification(0.75, auc=math.nan, data="sets/DDTI"))
    return folder


def report_of(*folders, out):
    assert report(ReportArguments(folders, out)) == 0
    return (out / "report.md").read_text(encoding="utf-8")


def test_it_prints_and_writes_each_task_by_itself(runs, tmp_path, capsys):
    page = report_of(runs, out=tmp_path / "report")
    printed = capsys.readouterr().out
    segment, classify = "segment: sets/BUSI", "classify: sets/DDTI"
    for text in (printed, page):
        assert text.index(classify) < text.index(segment)  # runs/cls is before runs/seg
        first, second = text.split(segment, 1)
        assert "85.5 ± 0.7" in second
        assert "85.5" not in first
        assert "75.0" in first
        assert "undefined" in first
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    assert [(row["task"], row["method"], row["percent"]) for row in rows] == [
        ("classify", "ht", "100.0"),
        ("segment", "ht", "5.0"),
        ("segment", "ht", "100.0"),
        ("segment", "lora", "5.0"),
        ("segment", "lora", "100.0"),
    ]


def test_the_page_shows_every_picture_and_names_every_run(runs, tmp_path):
    out = tmp_path / "report"
    page = report_of(runs, out=out)
    pictures = sorted(file.name for file in out.glob("*.png"))
    assert pictures == [
        "comparison-classify-ddti.png",
        "comparison-segment-busi-100-percent.png",
        "comparison-segment-busi-5-percent.png",
        "few-shot-segment-busi.png",
    ]
    for name in pictures:
        assert f"]({name})" in page
        with Image.open(out / name) as picture:
            assert min(picture.size) > 150
    for file in runs.rglob("results.json"):
        assert f"`{file.parent}`" in page


def test_tables_of_the_page_have_as_many_cells_in_every_line(runs, tmp_path):
    leave(runs / "odd", segmentation(0.5, method="a|b"))
    lines = report_of(runs, out=tmp_path / "report").replace(r"\|", "/").splitlines()
    assert any("a/b" in line for line in lines)
    tables, previous = [], ""
    for line in lines:
        if line.startswith("|"):
            if not previous.startswith("|"):
                tables.append([])
            tables[-1].append(line.count("|"))
        previous = line
    assert len(tables) == 4  # scores and runs of two data sets
    assert all(len(set(table)) == 1 for table in tables)


def test_a_folder_named_twice_counts_once(runs, tmp_path):
    page = report_of(runs, runs / "cls", runs / ".." / "runs", out=tmp_path / "report")
    assert page == report_of(runs, out=tmp_path / "again")


def test_experiments_of_the_same_seeds_are_told_apart_by_their_folders(tmp_path, capsys):
    for name, dice in (("a", 0.8), ("b", 0.6)):
        for percent in (100.0, 10.0 if name == "a" else 20.0):
            run = segmentation(dice, percent=percent)
            leave(tmp_path / name / f"ht-{percent:g}", run)
    leave(tmp_path / "a" / "mona", segmentation(0.7, method="mona"))
    report_of(tmp_path / "a", tmp_path / "b", out=tmp_path / "report")
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    methods = [row["method"] for row in rows]
    a, b = f"ht ({tmp_path / 'a'})", f"ht ({tmp_path / 'b'})"
    assert methods == [a, a, "mona", b, b]
    report_of(tmp_path, out=tmp_path / "report")
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    assert [row["method"] for row in rows] == ["ht (a)", "ht (a)", "mona", "ht (b)", "ht (b)"]


def test_the_settings_in_which_runs_of_one_name_differ_are_told(tmp_path, capsys):
    for name, precision in (("ac", "fp32"), ("bf", "bf16")):
        for seed in (0, 1):
            folder = leave(tmp_path / name / "ht" / f"seed-{seed}", segmentation(0.8, seed=seed))
            options = {"blocks": [3, 6], "trainer": {"precision": precision, "lr": 1e-4}}
            write_json(folder / "run.json", {"method": "ht", "seed": seed, "options": options})
    leave(tmp_path / "ac" / "mona" / "seed-0", segmentation(0.7, method="mona"))
    line = "ht of ac, bf: differs in precision fp32, bf16."
    assert f"- {line}\n" in report_of(tmp_path, out=tmp_path / "report")
    assert line in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "report" / "report.csv").open()))
    assert [(r["method"], r["seeds"]) for r in rows] == [
        ("ht (ac)", "2"),
        ("mona", "1"),
        ("ht (bf)", "2"),
    ]


def test_copies_of_a_run_are_told_apart_though_nothing_is_known_of_them(tmp_path, capsys):
    for name in ("1", "2"):
        leave(tmp_path / "x" / name, segmentation(0.8))
    report_of(tmp_path, out=tmp_path / "report")
    assert "ht: runs of 1, 2 are apart; their settings are not known." in capsys.readouterr().out


def test_seeds_in_different_folders_are_summed_up(tmp_path):
    folders = [
        leave(tmp_path / f"{seed}", segmentation(dice, seed=seed))
        for seed, dice in enumerate((0.7, 0.9))
    ]
    assert "80.0 ± 14.1" in report_of(*folders, out=tmp_path / "report")


def test_data_of_the_same_name_have_pictures_of_their_own(tmp_path):
    for place in ("x", "y"):
        leave(tmp_path / place, segmentation(0.8, data=f"{place}/BUSI"))
    report_of(tmp_path, out=tmp_path / "report")
    found = sorted(file.name for file in (tmp_path / "report").glob("*.png"))
    assert found == ["comparison-segment-busi-2.png", "comparison-segment-busi.png"]


def test_runs_with_other_scores_and_other_data_to_train_on_are_shown(tmp_path):
    leave(tmp_path / "a", segmentation(0.8))
    leave(tmp_path / "a" / "eval", segmentation(0.4, trained_on="sets/DDTI"))
    leave(tmp_path / "b", segmentation(0.8, method="lora", after={"iou": 0.5}))
    page = report_of(tmp_path, out=tmp_path / "report")
    assert "| ht | sets/DDTI |" in page
    assert "| lora | - | 1 | 1,200,000 | - | - | 50.0 |" in page


def test_what_starts_from_a_base_is_shown_beside_it_and_heads_what_all_share(tmp_path, capsys):
    for method, accuracy in (("ht", 0.75), ("lora", 0.7)):
        run = classification(accuracy, task="zeroshot", method=method, prompts="breast")
        leave(tmp_path / method, run)
    page = report_of(tmp_path, out=tmp_path / "report")
    heading = "zeroshot: sets/BUSI, ViT-B-16/openai, prompts breast"
    assert f"## {heading}\n" in page
    assert f"{heading}\n" in capsys.readouterr().out
    assert "| accuracy before (%) | accuracy (%) | AUC (%) |" in page
    assert "| 50.0 | 75.0 | 90.0 |" in page


def test_nothing_to_compare_is_told(tmp_path):
    with pytest.raises(ValueError, match="no runs to compare; name folders"):
        report(ReportArguments((), tmp_path / "report"))
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        report(ReportArguments((tmp_path / "nowhere",), tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_folders_are_given_without_a_name(runs, tmp_path):
    parsed = tyro.cli(
        ReportArguments, args=[str(runs), str(tmp_path), "--out", str(tmp_path / "report")]
    )
    assert parsed == ReportArguments((runs, tmp_path), tmp_path / "report")
