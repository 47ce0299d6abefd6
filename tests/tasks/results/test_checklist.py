"""The checklist tells what runs know, warns of what is wrong, and asks for the rest."""

import pytest
from fabricated_runs import leave, segmentation

from fastht.files import write_json
from fastht.tasks.results.report import ReportArguments, report

SPLIT = {
    "train": {"images": 400, "patients": 180, "without_patient": 0, "classes": {"cyst": 400}},
    "test": {"images": 50, "patients": 24, "without_patient": 2, "classes": {"cyst": 50}},
}
PROVENANCE = {
    "fastht": "9.8.7",
    "torch": "2.0.1",
    "python": "3.12.1",
    "system": "Linux x86_64",
    "device": "cpu",
    "hardware": "Example(R) Processor",
    "processes": 1,
    "threads": 2,
    "seconds": 90.0,
    "left_out": {"without mask": 3, "normal": 12},
    "split": SPLIT,
    "patients_on_several_sides": 0,
}
INTERVALS = {
    "note": "95 % intervals over 26 patients.",
    "after": {"dice": [0.7, 0.9]},
}


def page_of(folder, *runs):
    for place, run in enumerate(runs):
        leave(folder / "runs" / str(place), run)
    out = folder / "report"
    assert report(ReportArguments((folder / "runs",), out, checklist=True)) == 0
    return (out / "checklist.md").read_text()


def topic(page, title):
    """Return the lines under a heading that starts so."""
    (found,) = [part for part in page.split("### ") if part.startswith(title)]
    return found.split("\n## ")[0].strip().splitlines()[2:]


def run(**fields):
    extra = {"intervals": INTERVALS, "provenance": PROVENANCE | fields.pop("provenance", {})}
    return segmentation(0.8, **fields) | extra


def test_what_the_runs_know_is_filled_in(tmp_path, capsys):
    runs = [run(seed=seed, trainable_parameters=1234) for seed in (3, 4)]
    page = page_of(tmp_path, *runs)
    write_json(tmp_path / "runs" / "0" / "run.json", {"options": {"trainer": {"lr": 0.125}}})
    assert "checklist.md" in capsys.readouterr().out
    assert topic(page, "Exclusions")[0] == "- Left out by the software: 3 without mask, 12 normal."
    assert topic(page, "Numbers")[:2] == [
        "- train: 400 images of 180 patients; 400 cyst.",
        "- test: 50 images of 24 patients (2 images without); 50 cyst.",
    ]
    assert topic(page, "Patients on each side") == [
        "- Split by patient: none is on several sides of what the runs were given."
    ]
    assert "95 % intervals over 26 patients." in topic(page, "Measures")[1]
    assert topic(page, "Repeats") == ["- ht: 2 runs with different seeds.", "- Seeds: 3, 4."]
    assert "fastht 9.8.7, torch 2.0.1, Python 3.12.1" in topic(page, "Software")[0]
    assert topic(page, "Hardware")[0] == "- Example(R) Processor (cpu)."
    assert "90 s in all, 60 s of training" in topic(page, "Hardware")[1]
    assert topic(page, "Calibration") == ["- No measure of calibration is among the scores."]
    assert "1,234 parameters train" in topic(page, "Model")[0]
    assert "epoch with the best held-out score, 7 of 10" in topic(page, "Choice")[0]
    assert "not in the folder" in topic(page, "Preparation")[0]
    again = page_of(tmp_path / "again", *runs[:1])
    assert "80.0 [70.0, 90.0]" in topic(again, "Results")[0]
    assert "lr 0.125" not in page
    assert report(ReportArguments((tmp_path / "runs",), tmp_path / "r2", checklist=True)) == 0
    page = (tmp_path / "r2" / "checklist.md").read_text()
    assert topic(page, "Preparation")[0] == "- Settings: lr 0.125."


def test_what_only_the_authors_know_is_asked(tmp_path):
    page = page_of(tmp_path, run())
    assert page.count("- [ ] ") > 20
    for word in ("funded", "approved the study", "annotated", "eligible", "limitations"):
        assert any(word in line for line in page.splitlines() if line.startswith("- [ ] "))
    # Nothing that a run could answer is asked, nothing is ticked on the authors' behalf.
    assert "[x]" not in page


@pytest.mark.parametrize(
    ("crossing", "expected"),
    [(5, "WARNING: 5 patients are on several sides"), (None, "No patient is named: images were")],
)
def test_a_split_across_patients_is_told(tmp_path, crossing, expected):
    page = page_of(tmp_path, run(provenance={"patients_on_several_sides": crossing}))
    (line,) = topic(page, "Patients on each side")
    assert expected in line


def test_runs_of_old_versions_say_what_they_did_not_record(tmp_path):
    page = page_of(tmp_path, segmentation(0.8, data="sample", model="fastht-tiny/none"))
    for title in ("Exclusions", "Patients on each side", "Software", "Hardware"):
        assert topic(page, title)[0].startswith("- Not recorded"), title
    assert topic(page, "Numbers")[:2] == ["- train images: 400.", "- test images: 50."]
    assert "SIMULATED" in topic(page, "Sources")[1]
    assert "RANDOM" in topic(page, "Model")[1]


def test_each_machine_is_told_though_their_devices_are_of_one_kind(tmp_path):
    machines = [
        run(seed=seed, provenance={"device": "cuda", "hardware": name})
        for seed, name in enumerate(("One GPU", "Another GPU"))
    ]
    page = page_of(tmp_path, *machines)
    assert topic(page, "Hardware")[0] == "- One GPU (cuda), Another GPU (cuda)."


def test_a_side_that_chose_the_epoch_and_is_scored_is_told(tmp_path):
    chosen = topic(page_of(tmp_path / "a", run(task="contrastive")), "Choice")[0]
    assert "7 of 10; the scores are of the same side" in chosen
    assert topic(page_of(tmp_path / "b", run()), "Choice")[0].endswith("never the test side.")


def test_it_is_written_only_when_asked_for(tmp_path):
    leave(tmp_path / "runs", segmentation(0.8))
    report(ReportArguments((tmp_path / "runs",), tmp_path / "report"))
    assert not (tmp_path / "report" / "checklist.md").exists()
