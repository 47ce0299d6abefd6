"""Results of runs: found on disk, summed up over seeds by hand, and written as tables."""

import csv
import math

import pytest
from fabricated_runs import classification, leave, segmentation

from fastht.data import DataError
from fastht.tasks.results.finished_runs import find_runs, read_run
from fastht.tasks.results.tables import (
    score_label,
    score_text,
    scores_of,
    summarise,
    table_columns,
    text_table,
    write_table,
)


def test_seeds_are_summed_up_by_hand():
    runs = [segmentation(d, seed=s, before=b) for s, d, b in ((0, 0.8, 0.1), (1, 0.7, 0.3))]
    (row,) = summarise(runs)
    assert row["seeds"] == 2
    assert row["dice"] == pytest.approx(0.75)
    assert row["dice_sd"] == pytest.approx(0.1 / math.sqrt(2))  # over n - 1
    assert row["dice_before"] == pytest.approx(0.2)
    assert row["dice_std"] == pytest.approx(0.1)
    assert row["images"] == 100
    assert row["train_images"] == 400
    assert row["trainable_parameters"] == 1_200_000
    assert not any("dice_std_" in name or "images_" in name for name in row)


def test_one_run_has_no_standard_deviation_over_seeds():
    (row,) = summarise([segmentation(0.8)])
    assert row["dice"] == 0.8
    assert row["dice_sd"] is None
    assert score_text(row, "dice") == "80.0"


def test_runs_without_a_value_are_left_out_and_counted():
    distances = (8.0, math.nan, 10.0)
    (row,) = summarise([segmentation(0.8, seed=s, hd95=d) for s, d in enumerate(distances)])
    assert row["hd95"] == 9
    assert row["hd95_sd"] == pytest.approx(math.sqrt(2))
    assert row["hd95_undefined"] == 1
    assert "dice_undefined" not in row
    assert score_text(row, "hd95") == "9.00 ± 1.41 (2 of 3 seeds)"


def test_a_score_without_any_value_is_not_defined():
    (row,) = summarise([classification(0.8, auc=math.nan, seed=s) for s in range(2)])
    assert math.isnan(row["auc"])
    assert row["auc_sd"] is None
    assert math.isnan(row["auc_before"])
    assert score_text(row, "auc") == "undefined"
    assert score_text(row, "f1") == "-"


def test_rows_keep_apart_what_is_no_repeat_in_order_of_appearance():
    runs = [
        segmentation(0.8, method="lora"),
        segmentation(0.7),
        segmentation(0.6, seed=1, method="lora"),
        segmentation(0.5, percent=5.0),
        segmentation(0.5, data="sets/DDTI"),
        segmentation(0.5, model="ViT-L-14/openai"),
        segmentation(0.5, trained_on="sets/DDTI"),
        segmentation(0.5, split="val"),
        classification(0.5),
    ]
    rows = summarise(runs)
    assert [row["method"] for row in rows] == ["lora", *["ht"] * 7]
    assert [row["seeds"] for row in rows] == [2, 1, 1, 1, 1, 1, 1, 1]
    assert [row.get("trained_on") for row in rows] == [*[None] * 5, "sets/DDTI", None, None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 0}, "runs/a and runs/b have the same seed, 0.* leave one out"),
        ({"seed": 1, "trainable_parameters": 7}, "runs/a and runs/b do not train as many"),
    ],
)
def test_what_differs_in_more_than_the_seed_is_not_averaged(change, message):
    runs = [segmentation(0.8, folder="runs/a"), segmentation(0.7, folder="runs/b", **change)]
    with pytest.raises(ValueError, match=message):
        summarise(runs)


def test_a_run_is_read_as_it_was_written(tmp_path):
    written = classification(0.75, auc=math.nan)
    folder = leave(tmp_path / "run", written)
    read = read_run(folder)
    assert read["folder"] == folder
    assert math.isnan(read["after"].pop("auc"))
    assert math.isnan(read["before"].pop("auc"))
    assert read["after"] == {"accuracy": 0.75}
    assert {name: read[name] for name in written if name not in ("before", "after")} == {
        name: value for name, value in written.items() if name not in ("before", "after")
    }


def test_runs_are_found_at_any_depth_in_natural_order_and_others_passed_over(tmp_path):
    leave(tmp_path / "ht2", segmentation(0.8))
    for share in ("10-percent", "2-percent"):
        for seed in (10, 9):
            leave(tmp_path / "ht" / share / f"seed-{seed}", segmentation(0.8))
    leave(tmp_path / "contrastive", {"before": {}, "after": {"val_loss": 1.0}})
    expected = [f"ht/{share}-percent/seed-{seed}" for share in (2, 10) for seed in (9, 10)]
    found = [run["folder"].relative_to(tmp_path).as_posix() for run in find_runs(tmp_path)]
    assert found == [*expected, "ht2"]
    (alone,) = find_runs(tmp_path / "ht" / "2-percent" / "seed-9")
    assert alone["folder"] == tmp_path / "ht" / "2-percent" / "seed-9"


def test_folders_without_runs_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        find_runs(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no results\.json that names a task"):
        find_runs(tmp_path)
    with pytest.raises(DataError, match=r"no results\.json; give the folder of a run"):
        read_run(tmp_path)
    leave(tmp_path / "other", {"after": {"val_loss": 1.0}})
    with pytest.raises(DataError, match="names no task and method"):
        read_run(tmp_path / "other")
    with pytest.raises(DataError, match="names a task"):
        find_runs(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"task": "segment", "metho', "Unterminated"),
        ('{"task": "segment", "method": "ht"}', "percent is None"),
        (segmentation(0.8, seed="zero"), "seed is 'zero'"),
        (segmentation(0.8, hd95="far"), "after, hd95 is 'far'"),
        (segmentation(0.8, after={}), "no scores"),
    ],
)
def test_damaged_results_are_named(tmp_path, content, message):
    folder = tmp_path / "run"
    if isinstance(content, str):
        folder.mkdir()
        (folder / "results.json").write_text(content)
    else:
        leave(folder, content)
    for read in (lambda: read_run(folder), lambda: find_runs(tmp_path)):
        with pytest.raises(DataError, match=rf"^.*run.results\.json: damaged \(.*{message}.*$"):
            read()


def test_the_table_file_holds_all_columns_of_all_rows(tmp_path):
    rows = summarise([segmentation(0.8, hd95=math.nan), classification(0.5)])
    write_table(tmp_path / "table.csv", rows)
    read = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [row["task"] for row in read] == ["segment", "classify"]
    assert float(read[0]["dice"]) == 0.8
    assert read[0]["dice_sd"] == ""
    assert read[0]["hd95"] == "nan"
    assert read[1]["dice"] == ""
    assert float(read[1]["accuracy"]) == 0.5
    with pytest.raises(ValueError, match="no rows"):
        write_table(tmp_path / "empty.csv", [])


def test_the_text_table_is_aligned_and_in_units():
    runs = [segmentation(d, seed=s) for s, d in enumerate((0.81, 0.79))]
    runs += [segmentation(0.7, method="lora", trainable_parameters=900)]
    lines = text_table(summarise(runs), ["dice", "hd95"]).splitlines()
    assert lines[0].split("   ") == ["method", "seeds", "trainable", "  Dice (%)", "  HD95 (px)"]
    assert lines[2].split() == ["ht", "2", "1,200,000", "80.0", "±", "1.4", "8.00", "±", "0.00"]
    assert lines[3].split() == ["lora", "1", "900", "70.0", "8.00"]
    assert len({len(line) for line in lines}) == 1


def test_scores_default_to_all_and_can_be_those_before_training():
    rows = summarise([segmentation(0.8, before=0.25)])
    assert scores_of(rows) == ["dice", "iou", "hd95"]
    assert list(table_columns(rows))[-3:] == ["Dice (%)", "IoU (%)", "HD95 (px)"]
    assert table_columns(rows, ["dice_before"])["Dice before (%)"] == ["25.0"]
    with pytest.raises(ValueError, match="no row has 'auc'; choose of dice, iou, hd95"):
        table_columns(rows, ["auc"])


def test_empty_predictions_and_missing_distances_are_shown_where_there_are_any():
    fine = summarise([segmentation(0.8)])
    assert not {"nothing predicted", "without distance"} & table_columns(fine).keys()
    runs = [segmentation(0.8, seed=s, empty_predictions=2, without_distance=3) for s in range(2)]
    columns = table_columns(summarise([*runs, segmentation(0.7, method="lora")]))
    assert columns["nothing predicted"] == ["4 of 100", "0 of 50"]
    assert columns["without distance"] == ["6 of 100", "0 of 50"]


def test_columns_appear_where_rows_differ():
    rows = summarise([segmentation(0.8), segmentation(0.8, percent=2.5, model="other")])
    columns = table_columns(rows)
    assert columns["share"] == ["100 %", "2.5 %"]
    assert columns["model"] == ["ViT-B-16/openai", "other"]
    rows = summarise([segmentation(0.8), segmentation(0.6, trained_on="sets/DDTI", test_images=9)])
    assert table_columns(rows)["trained on"] == ["-", "sets/DDTI"]
    assert table_columns(rows)["test images"] == ["50", "9"]
    assert not {"model", "share", "prompts", "split"} & table_columns(rows).keys()


def test_a_table_too_wide_for_a_terminal_is_turned_on_its_side():
    scores = {f"image_to_text_recall@{k}": k / 100 for k in range(10, 15)}
    lines = text_table(summarise([segmentation(0.8, after=scores)])).splitlines()
    assert lines[0].split() == ["method", "ht"]
    assert lines[-1].split() == ["image", "to", "text", "recall@14", "(%)", "14.0"]
    assert len({len(line) for line in lines}) == 1


def test_other_tasks_and_data_are_never_in_one_table():
    for other in (classification(0.5), segmentation(0.5, data="sets/DDTI")):
        with pytest.raises(ValueError, match="one task and data set"):
            text_table(summarise([segmentation(0.8), other]))
    with pytest.raises(ValueError, match="one task and data set"):
        text_table([])


@pytest.mark.parametrize(
    ("score", "label", "value", "text"),
    [
        ("image_to_text_recall@10", "image to text recall@10 (%)", 0.256, "25.6"),
        ("zero_shot_accuracy", "zero shot accuracy (%)", 1.0, "100.0"),
        ("f1", "F1 (%)", 0.5, "50.0"),
        ("asd", "ASD (px)", 1.234, "1.23"),
        ("val_loss", "val loss", 2.34567, "2.3457"),
        ("text_to_image_mean_rank", "text to image mean rank", 12.345, "12.3"),
    ],
)
def test_scores_have_their_names_and_units(score, label, value, text):
    assert score_label(score) == label
    assert score_text({score: value}, score) == text


@pytest.mark.parametrize(
    ("score", "label"),
    [
        ("dice", "Dice (%)"),
        ("hd95", "HD95 (px)"),
        ("dice_before", "Dice before (%)"),
        ("dice_native", "Dice native (%)"),
        ("hd95_native_px", "HD95 native (px)"),
        ("asd_mm", "ASD (mm)"),
        ("nsd_native@2px", "NSD native@2px (%)"),
        ("nsd@0.5mm", "NSD@0.5mm (%)"),
    ],
)
def test_labels_tell_sizes_and_units_apart(score, label):
    assert score_label(score) == label


def test_counts_at_the_own_size_are_no_scores():
    counts = {"empty_truths_native": 1, "with_spacing": 3, "spacing_refused": 0}
    runs = [segmentation(0.8, seed=seed) for seed in (0, 1)]
    for run in runs:
        run["after"] = run["after"] | counts | {"hd95_mm": 1.5}
    (row,) = summarise(runs)
    assert row["with_spacing"] == 6
    assert "hd95_mm" in scores_of([row])
    assert not {*counts} & {*scores_of([row])}
    assert score_text(row, "hd95_mm") == "1.50 ± 0.00"
