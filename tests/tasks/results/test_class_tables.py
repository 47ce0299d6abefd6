"""Scores of single classes as tables, chance, calibration and warnings as lines."""

import math

from fastht.tasks.results.class_tables import class_columns, class_report, class_text
from fastht.tasks.results.tables import score_label, score_text, score_unit, scores_of, summarise

CALIBRATION = {
    "bins": 6,
    "temperature": 1.7312,
    "fitted_images": 32,
    "at_bound": False,
    "note": "temperature fitted on 32 images of val",
    "uncalibrated": {"ece": 0.2, "brier": 0.5, "nll": 0.9},
    "calibrated": {"ece": 0.05, "brier": 0.4, "nll": 0.7},
}
SCORES = {
    "accuracy": 0.75,
    "recall": 0.7,
    "balanced_accuracy": 0.7,
    "sensitivity/a/b": 0.5,
    "specificity/a/b": 0.875,
    "ppv/a/b": math.nan,
    "sensitivity/cyst": 1.0,
    "ece": 0.125,
}


def results(**changes):
    return {"classes": ["a/b", "cyst"], "before": {}, "after": SCORES} | changes


def test_classes_have_a_row_each_and_nothing_undefined_is_a_number():
    columns = class_columns({"after": SCORES}, ["a/b", "cyst"])
    assert columns["class"] == ["a/b", "cyst"]
    assert columns["sensitivity (%)"] == ["50.0", "100.0"]
    assert columns["PPV (%)"] == ["undefined", "-"]
    assert "version" not in columns
    lines = class_text(columns).splitlines()
    assert lines[0].split("   ")[0] == "class"
    assert lines[2].startswith("a/b")
    assert len({len(line) for line in lines[2:]}) == 1


def test_versions_stand_below_each_other_and_intervals_behind_scores():
    intervals = {"after": {"sensitivity/cyst": [0.8, 1.0], "sensitivity/a/b": [None, None]}}
    versions = {"before": {"sensitivity/cyst": 0.25}, "after": SCORES}
    columns = class_columns(versions, ["a/b", "cyst"], intervals)
    assert columns["class"] == ["a/b", "a/b", "cyst", "cyst"]
    assert columns["version"] == ["before", "after"] * 2
    assert columns["sensitivity (%)"] == ["-", "50.0", "25.0", "100.0 [80.0, 100.0]"]


def test_runs_of_older_versions_and_other_tasks_have_no_such_table():
    assert class_columns({"after": {"accuracy": 0.5}}, ["a", "b"]) == {}
    assert class_report({"before": {"dice": 0.1}, "after": {"dice": 0.5}}) == ""
    assert class_report(results(before={"accuracy": 0.1}, after={"accuracy": 0.5})) == ""


def test_the_report_of_classes_tells_chance_calibration_and_warnings():
    chance = {"majority": 0.6, "majority_class": "cyst", "prior_matched": 0.52}
    text = class_report(
        results(chance=chance, calibration={"after": CALIBRATION}, warnings=["w", "w"])
    )
    assert "Accuracy without looking: 60.0 % by always 'cyst', 52.0 % by guessing" in text
    assert "ECE 0.200, Brier 0.500, NLL 0.900; at temperature 1.73: ECE 0.050" in text
    assert "(temperature fitted on 32 images of val)" in text
    assert text.count("WARNING: w") == 1
    bound = class_report(results(calibration={"after": CALIBRATION | {"at_bound": True}}))
    assert "temperature 1.73, AT ITS BOUND" in bound
    without = CALIBRATION | {"calibrated": None, "temperature": None, "note": "no val side"}
    assert "no val side" in class_report(results(calibration={"after": without}))


def test_tables_show_the_scores_that_matter_and_files_all():
    run = {
        "task": "classify",
        "method": "ht",
        "percent": 100.0,
        "model": "m",
        "data": "d",
        "seed": 0,
        "before": {},
        "after": SCORES,
    }
    rows = summarise([run, run | {"seed": 1}])
    assert scores_of(rows) == ["accuracy", "balanced_accuracy", "ece"]
    assert rows[0]["sensitivity/a/b"] == 0.5
    assert score_text(rows[0], "sensitivity/a/b") == "50.0 ± 0.0"
    assert score_text(rows[0], "ece") == "0.125 ± 0.000"
    assert score_label("macro_f1") == "macro F1 (%)"
    assert score_unit("sensitivity_at_90_specificity/x_hd95") == (100, "%")
    assert score_unit("brier") == (1, "")
    old = [run | {"after": {"accuracy": 0.5, "recall": 0.5, "f1": 0.4}}]
    assert scores_of(summarise(old)) == ["accuracy", "recall", "f1"]
