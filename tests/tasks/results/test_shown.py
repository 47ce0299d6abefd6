"""What pictures say of themselves."""

import pytest

from fastht.data.cases import Case
from fastht.tasks.results.shown import Shown, count_patients, shown_cases, shown_runs


@pytest.mark.parametrize(
    ("shown", "sentence"),
    [
        (
            Shown(1200, 1, "ViT-B-16/openai", "sets/BUSI"),
            "n = 1,200 images, 1 patient; model ViT-B-16/openai",
        ),
        (
            Shown(1, None, "hf-hub:org/name/none", "sample"),
            "n = 1 image, patients not known; model hf-hub:org/name, RANDOM weights; "
            "SIMULATED images",
        ),
        (Shown(model="tiny/none"), "model tiny, RANDOM weights"),
        (Shown(data="sample"), "SIMULATED images"),
        (Shown(), ""),
    ],
)
def test_the_sentence_says_what_is_known(shown, sentence):
    assert shown.sentence() == sentence


def test_patients_are_counted_where_every_image_names_one():
    assert count_patients(["a", "b", "a"]) == 2
    assert count_patients(["a", None]) is None
    cases = [Case(f"{i}", f"{i}.png", patient=f"p{i // 2}") for i in range(5)]
    assert shown_cases(cases, "m/none", "sample") == Shown(5, 3, "m/none", "sample")


def test_of_several_runs_it_is_what_all_have_in_common():
    run = {"test_images": 8, "model": "m/none", "data": "sample"}
    patients = {"intervals": {"unit": "patient", "units": 4}}
    images = {"intervals": {"unit": "image", "units": 8}}
    assert shown_runs([run | patients] * 2) == Shown(8, 4, "m/none", "sample")
    assert shown_runs([run, run | {"model": "n/none"}]) == Shown(8, None, None, "sample")
    assert shown_runs([run | images]).patients is None
    assert shown_runs([run, run | {"test_images": 9}]).images is None
