"""Paired differences of runs: on the same resamples, over patients, or not at all and said why."""

import csv
import json
import math
import statistics

import pytest
import torch
from fabricated_runs import classification, leave, segmentation

from fastht.tasks.images.paired import report
from fastht.tasks.results.report import ReportArguments
from fastht.tasks.results.tables import write_table
from fastht.tasks.scores.classification import classification_scores
from fastht.tasks.scores.intervals import Resampling

PATIENTS, SIZE = 12, 3
N = PATIENTS * SIZE
NAMES = [f"patient {i // SIZE}" for i in range(N)]
FILES = [f"images/{i:02}.png" for i in range(N)]


def difficulty(seed=0):
    return torch.rand(N, generator=torch.Generator().manual_seed(seed)).double()


def rows_of(dice, patients=NAMES, files=FILES):
    rows = [{"file": file, "dice": value} for file, value in zip(files, dice.tolist(), strict=True)]
    if patients is not None:
        rows = [row | {"patient": p} for row, p in zip(rows, patients, strict=True)]
    return rows


def leave_run(folder, dice, before=None, **fields):
    """A run of these Dice scores of its images, with its predictions."""
    options = {name: fields.pop(name) for name in ("patients", "files") if name in fields}
    known = {} if before is None else {"before": before.nanmean().item()}
    leave(folder, segmentation(dice.nanmean().item(), **known, **fields))
    write_table(folder / "predictions.csv", rows_of(dice, **options))
    if before is not None:
        write_table(folder / "predictions-before.csv", rows_of(before, **options))
    return folder


def differences(*folders, out):
    assert report(ReportArguments(folders, out)) == 0
    found = json.loads((out / "report.json").read_text())
    return {(d["compared"], d["score"]): d for d in found["differences"]}


def test_a_difference_is_of_the_same_images_in_the_same_resamples(tmp_path, capsys):
    a, b, start = difficulty(0), 0.9 * difficulty(0) + 0.05, difficulty(1) / 9
    leave_run(tmp_path / "runs" / "a", a, method="frozen")
    leave_run(tmp_path / "runs" / "b", b, start, method="ht")
    out = tmp_path / "report"
    found = differences(tmp_path / "runs", out=out)
    made = Resampling(NAMES, FILES)
    of_a, of_b, of_start = (made.means(values) for values in (a, b, start))
    assert found.keys() == {("ht: after minus before", "dice"), ("ht minus frozen", "dice")}
    pair = found["ht minus frozen", "dice"]
    assert (pair["unit"], pair["units"], pair["images"]) == ("patient", PATIENTS, N)
    assert pair["difference"] == pytest.approx((b - a).mean().item())
    assert [pair["low"], pair["high"]] == pytest.approx(made.difference(of_b, of_a))
    trained = found["ht: after minus before", "dice"]
    assert [trained["low"], trained["high"]] == pytest.approx(made.difference(of_b, of_start))
    # The images' difficulty is in both: unpaired, the interval would be far wider.
    low, high = made.difference(of_b, made.means(a[torch.randperm(N)]))
    assert pair["high"] - pair["low"] < (high - low) / 3
    # Each score has its own interval too.
    (row,) = [r for r in csv.DictReader((out / "report.csv").open()) if r["method"] == "ht"]
    assert float(row["dice_low"]) == pytest.approx(made.mean(b).low)
    table = list(csv.DictReader((out / "differences.csv").open()))
    assert {row["compared"] for row in table} == {key[0] for key in found}
    printed, page = capsys.readouterr().out, (out / "report.md").read_text()
    for text in (printed, page):
        assert "ht minus frozen" in text
        assert f"{100 * pair['difference']:+.1f} [{100 * pair['low']:+.1f}, " in text
        assert "95 % intervals over 12 patients" in text
    assert "frozen has no paired difference, not from its images" in printed


def test_seeds_are_averaged_in_each_resample(tmp_path):
    for seed in range(2):
        leave_run(tmp_path / f"a{seed}", difficulty(seed), method="frozen", seed=seed)
        leave_run(tmp_path / f"b{seed}", difficulty(seed) + 0.1 * seed, method="ht", seed=seed)
    found = differences(tmp_path, out=tmp_path / "report")
    pair = found["ht minus frozen", "dice"]
    assert (pair["seeds"], pair["difference"]) == ("2", pytest.approx(0.05))
    assert [pair["low"], pair["high"]] == pytest.approx([0.05, 0.05])
    (row, _) = csv.DictReader((tmp_path / "report" / "report.csv").open())
    mean = (difficulty(0) + difficulty(1)) / 2  # within the image first
    low, high = Resampling(NAMES, FILES).mean(mean)
    assert [float(row["dice_low"]), float(row["dice_high"])] == pytest.approx([low, high])


def probabilities(seed):
    made = torch.randn(N, 3, generator=torch.Generator().manual_seed(seed))
    return made.softmax(dim=1).double()


def test_scores_that_are_no_means_are_computed_in_each_resample(tmp_path):
    labels, classes = [i % 3 for i in range(N)], ("benign", "cyst", "malignant")
    for method, seed in (("frozen", 0), ("ht", 1)):
        found = classification_scores(probabilities(seed), torch.tensor(labels))
        run = classification(0.0, method=method) | {"before": {}, "after": found}
        leave(tmp_path / method, run)
        columns = zip(*probabilities(seed).T.tolist(), strict=True)
        write_table(
            tmp_path / method / "predictions.csv",
            [
                {"file": file, "patient": name, "label": classes[label]}
                | {f"p({c})": p for c, p in zip(classes, row, strict=True)}
                for file, name, label, row in zip(FILES, NAMES, labels, columns, strict=True)
            ],
        )
    found = differences(tmp_path, out=tmp_path / "report")
    for score in ("accuracy", "f1", "auc", "balanced_accuracy"):
        pair = found["ht minus frozen", score]
        gaps = []
        for weights in Resampling(NAMES, FILES).weights[:200].long():
            chosen = torch.arange(N).repeat_interleave(weights)
            scores = [
                classification_scores(probabilities(seed)[chosen], torch.tensor(labels)[chosen])
                for seed in (1, 0)
            ]
            gaps.append(scores[0][score] - scores[1][score])
        # Of 200 of the 2,000 resamples: the spread is that of all of them within a few percent.
        spread = statistics.stdev(gaps)
        assert pair["high"] - pair["low"] == pytest.approx(3.92 * spread, rel=0.2)
        assert pair["low"] < statistics.fmean(gaps) < pair["high"]


def notes(*folders, out, capsys):
    capsys.readouterr()
    differences(*folders, out=out)
    return " ".join(capsys.readouterr().out.split())


def test_other_test_images_are_not_compared(tmp_path, capsys):
    leave_run(tmp_path / "a", difficulty(), method="frozen")
    other = [file.replace("images/0", "others/0") for file in FILES]
    leave_run(tmp_path / "b", difficulty(), method="ht", files=other)
    printed = notes(tmp_path, out=tmp_path / "report", capsys=capsys)
    assert "ht minus frozen" not in printed
    assert "not to frozen, for not the same test images: 36 and 36, 26 of them in common" in printed


def test_runs_without_patients_are_over_images_and_take_those_of_another_run(tmp_path, capsys):
    leave_run(tmp_path / "a", difficulty(), method="frozen", patients=None)
    leave_run(tmp_path / "b", difficulty(1), method="ht", patients=None)
    found = differences(tmp_path, out=tmp_path / "report")
    assert found["ht minus frozen", "dice"]["unit"] == "image"
    assert "no patient is named" in " ".join(capsys.readouterr().out.split())
    # The same images have the same patients, whichever run names them.
    leave_run(tmp_path / "c", difficulty(2), method="lora")
    found = differences(tmp_path, out=tmp_path / "report")
    pair = found["ht minus frozen", "dice"]
    assert (pair["unit"], pair["units"]) == ("patient", PATIENTS)
    # But not if two runs contradict each other.
    leave_run(tmp_path / "d", difficulty(3), method="mona", patients=NAMES[::-1])
    printed = notes(tmp_path, out=tmp_path / "report", capsys=capsys)
    assert "runs name different patients of images/00.png" in printed
    assert "ht minus frozen" not in printed


@pytest.mark.parametrize("damage", ["other", "missing", "twice", "text"])
def test_predictions_that_do_not_give_the_scores_are_not_used(tmp_path, capsys, damage):
    leave_run(tmp_path / "a", difficulty(), method="frozen")
    leave_run(tmp_path / "b", difficulty(), method="ht")
    path = tmp_path / "b" / "predictions.csv"
    rows = rows_of(difficulty())
    if damage == "missing":
        path.unlink()
    elif damage == "other":
        write_table(path, rows_of(difficulty(3)))
    elif damage == "twice":
        write_table(path, [*rows, rows[0]])
    else:
        write_table(path, [*rows[1:], rows[0] | {"dice": "high"}])
    printed = notes(tmp_path, out=tmp_path / "report", capsys=capsys)
    expected = {
        "other": "does not give the scores of its run",
        "missing": "does not exist",
        "twice": "names an image twice",
        "text": "is damaged",
    }
    assert expected[damage] in printed
    assert "ht minus frozen" not in printed


def test_images_without_a_distance_are_left_out_as_in_the_score(tmp_path):
    a, b = difficulty(0), difficulty(1)
    a[::5] = math.nan
    leave_run(tmp_path / "a", a, method="frozen")
    leave_run(tmp_path / "b", b, method="ht")
    pair = differences(tmp_path, out=tmp_path / "report")["ht minus frozen", "dice"]
    made = Resampling(NAMES, FILES)
    expected = made.difference(made.means(b), made.means(a))
    assert [pair["low"], pair["high"]] == pytest.approx(expected)


def test_what_a_run_has_recorded_is_shown_where_there_are_no_predictions(tmp_path, capsys):
    made = Resampling(NAMES)
    a, b = difficulty(0), difficulty(1)
    record = made.record(before={"dice": made.means(a)}, after={"dice": made.means(b)})
    run = segmentation(b.mean().item(), before=a.mean().item(), method="ht")
    leave(tmp_path / "a", run | {"intervals": record})
    pair = differences(tmp_path, out=tmp_path / "report")["ht: after minus before", "dice"]
    assert [pair["low"], pair["high"]] == record["difference"]["dice"]
    assert "95 % intervals over 12 patients" in " ".join(capsys.readouterr().out.split())


def test_folders_of_old_versions_keep_their_numbers_and_get_intervals(tmp_path):
    """As fastht 0.1 left them: no intervals, no patients, nothing of before but its scores."""
    dice = difficulty()
    folder = leave_run(tmp_path / "old", dice, patients=None)
    results = json.loads((folder / "results.json").read_text())
    assert not {"intervals", "provenance"} & results.keys()
    differences(folder, out=tmp_path / "report")
    (row,) = json.loads((tmp_path / "report" / "report.json").read_text())["rows"]
    for name, value in results["after"].items():
        assert row[name] == value
    assert row["dice_before"] == results["before"]["dice"]
    made = Resampling([None] * N, FILES)
    assert [row["dice_low"], row["dice_high"]] == pytest.approx(made.mean(dice))
    assert (made.unit, made.units) == ("image", N)
    assert "iou_low" not in row  # its entries are not in the table
