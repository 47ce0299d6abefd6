"""Where numbers come from: counts of the split, and patients who cross it."""

import torch

import fastht
from fastht.data.cases import Case
from fastht.data.records import Record
from fastht.tasks.results.provenance import provenance


def case(number, patient, label="cyst"):
    return Case(f"{number}", f"{number}.png", label=label, patient=patient)


def made(**sides):
    return provenance(sides, {"empty": 2}, device=torch.device("cpu"), seconds=3.5)


def test_sides_are_counted_by_image_patient_and_class():
    found = made(
        train=[case(0, "a"), case(1, "a", "mass"), case(2, None)], test=[case(3, "b", None)]
    )
    assert found["split"] == {
        "train": {
            "images": 3,
            "patients": 1,
            "without_patient": 1,
            "classes": {"cyst": 2, "mass": 1},
        },
        "test": {"images": 1, "patients": 1, "without_patient": 0, "classes": {}},
    }
    assert found["patients_on_several_sides"] == 0
    assert (found["left_out"], found["seconds"]) == ({"empty": 2}, 3.5)
    assert (found["fastht"], found["torch"]) == (fastht.__version__, torch.__version__)
    assert found["hardware"]
    assert found["device"] == "cpu"


def test_an_image_with_several_captions_is_one():
    records = [
        Record("a.png", "a cyst", "cyst", "x"),
        Record("a.png", "a dark cyst", "cyst", "x"),
        Record("b.dcm", "a mass", "mass", None, frame=0),
        Record("b.dcm", "a mass", "mass", None, frame=1),
    ]
    assert made(scored=records)["split"]["scored"] == {
        "images": 3,
        "patients": 1,
        "without_patient": 2,
        "classes": {"cyst": 1, "mass": 2},
    }


def test_patients_on_several_sides_are_counted():
    found = made(train=[case(0, "a"), case(1, "b")], val=[case(2, "b")], test=[case(3, "b")])
    assert found["patients_on_several_sides"] == 1
    assert made(train=[case(0, None)], test=[case(1, None)])["patients_on_several_sides"] is None
