"""Scores before and after: as people read them, and as files."""

import csv
import json
import math

from fastht.tasks.results.comparison import comparison_table, write_comparison

BEFORE = {"val_loss": 2.0, "recall@1": 0.125, "mean_rank": 12.0, "auc": math.nan}
AFTER = {"val_loss": 1.5, "recall@1": 1.0, "mean_rank": 3.25, "auc": 0.5}


def test_the_table_aligns_numbers_in_their_units():
    assert comparison_table("held out", {"before": BEFORE, "after": AFTER}).splitlines() == [
        "held out       before     after",
        "-------------------------------",
        "loss           2.0000    1.5000",
        "recall@1       12.5 %   100.0 %",
        "mean rank        12.0       3.2",
        "auc         undefined    50.0 %",
    ]


def test_the_files_hold_the_numbers(tmp_path):
    write_comparison(tmp_path, {"task": "retrieve", "before": BEFORE, "after": AFTER})
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == {"task": "retrieve", "before": BEFORE | {"auc": None}, "after": AFTER}
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert rows[1] == {"score": "recall@1", "before": "0.125", "after": "1.0"}
    assert [row["score"] for row in rows] == list(BEFORE)


INTERVALS = {
    "note": "95 % intervals over 9 patients.",
    "before": {"recall@1": [0.1, 0.15], "auc": [math.nan, math.nan]},
    "after": {"recall@1": [0.9, 1.0], "mean_rank": [3.0, 3.5]},
    "difference": {"recall@1": [0.8, 0.9], "mean_rank": [-9.0, -8.5], "auc": [math.nan] * 2},
}


def test_intervals_stand_behind_their_scores_and_the_paired_difference_beside_them():
    table = comparison_table("held out", {"before": BEFORE, "after": AFTER}, INTERVALS)
    assert table.splitlines()[2:] == [
        "loss                     2.0000                  1.5000",
        "recall@1    12.5 % [10.0, 15.0]   100.0 % [90.0, 100.0]   +87.5 % [+80.0, +90.0]",
        "mean rank                  12.0          3.2 [3.0, 3.5]        -8.8 [-9.0, -8.5]",
        "auc                   undefined                  50.0 %                undefined",
        "[low, high]: 95 % intervals over 9 patients.",
    ]


def test_the_csv_has_columns_for_the_ends(tmp_path):
    results = {"before": BEFORE, "after": AFTER, "intervals": INTERVALS}
    write_comparison(tmp_path, results)
    rows = {row["score"]: row for row in csv.DictReader((tmp_path / "results.csv").open())}
    assert rows["recall@1"] == {
        "score": "recall@1",
        "before": "0.125",
        "before_low": "0.1",
        "before_high": "0.15",
        "after": "1.0",
        "after_low": "0.9",
        "after_high": "1.0",
        "difference": "0.875",
        "difference_low": "0.8",
        "difference_high": "0.9",
    }
    assert rows["val_loss"]["after_low"] == rows["val_loss"]["difference"] == ""
    assert rows["mean_rank"]["before_low"] == ""
