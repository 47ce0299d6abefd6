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
