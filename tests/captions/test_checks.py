"""Checks of a language model's captions: each finds its fault, and nothing where there is none."""

import pytest

from fastht.captions.checks import Limits, check_captions

VALUES = {"condition": "a benign mass", "shape": "oval", "birads": "3", "size": "12.5 mm"}
GOOD = "Breast ultrasound of an oval benign mass of 12.5 mm, assessed as BI-RADS 3."
# The field of the grade says so in its words, as tables have it.
TOLD = VALUES | {"grade": "BI-RADS 3"}


def found(*texts: str, values=TOLD, organ="breast", limits=None):
    return check_captions(texts, values, organ, limits or Limits())


def test_a_good_caption_stands_and_is_cleaned() -> None:
    assert found(f"  {GOOD}\n") == ((GOOD,), [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("An oval benign mass.", "too short"),
        (GOOD + " It is oval." * 20, "too long"),
        (GOOD.replace("12.5", "12.6"), "number that is not in the fields"),
        (GOOD.replace("RADS 3", "RADS 2"), "number that is not in the fields"),
        (GOOD.replace("benign", "malignant"), "term that is not in the fields"),
        (GOOD.replace("benign mass", "cyst"), "term that is not in the fields"),
        (GOOD.replace("BI-RADS", "TI-RADS"), "term that is not in the fields"),
        (GOOD.replace("Breast", "Thyroid"), "other organ"),
        (GOOD.replace("Breast", "Hepatic"), "other organ"),
    ],
)
def test_each_fault_has_its_reason(text: str, reason: str) -> None:
    assert found(text) == ((), [reason])


def test_what_the_fields_say_may_be_said() -> None:
    """The negative controls: the same captions with fields that have it."""
    assert found(GOOD.replace("12.5", "12.6"), values=TOLD | {"size": "12.6"})[1] == []
    assert found(GOOD.replace("benign", "malignant"), values=TOLD | {"c": "malignant"})[1] == []
    assert found(GOOD.replace("Breast", "Thyroid"), organ="thyroid")[1] == []
    assert found(GOOD.replace("Breast", "Hepatic"), values=TOLD | {"o": "liver"})[1] == []
    assert found("An oval benign mass.", limits=Limits(fewest=4))[1] == []
    # A grade must stand as one in the fields: 3 alone may be anything.
    assert found(GOOD, values=VALUES)[1] == ["term that is not in the fields"]


FORMS = [
    ("metastasis", "metastases"),
    ("carcinoma", "carcinomas"),
    ("carcinoma", "carcinomata"),
    ("malignancy", "malignancies"),
    ("cancer", "cancers"),
    ("cyst", "cysts"),
    ("cirrhosis", "cirrhoses"),
    ("haemangioma", "hemangiomas"),
    ("tumour", "tumors"),
]


@pytest.mark.parametrize("forms", [*FORMS, *(pair[::-1] for pair in FORMS)])
def test_singular_and_plural_are_one_term(forms: tuple[str, str]) -> None:
    told, said = forms
    caption = f"Liver ultrasound, {said} of the right lobe."
    assert found(caption, values={"finding": f"{told}, right lobe"}, organ="liver")[1] == []
    # The negative control: each form is a term, which nothing else allows.
    for other in ("nodule of the right lobe", *(one for one, _ in FORMS)):
        if other not in forms:
            refused = found(caption, values={"finding": other}, organ="liver")[1]
            assert refused == ["term that is not in the fields"], other


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("adenoma", "fibroadenoma"),
        ("fibroadenomas", "adenomas"),
        ("metastasis", "cirrhosis"),
        ("steatosis", "cirrhosis"),
        ("benign", "malignancies"),
        ("tumours", "cancers"),
        ("BI-RADS", "TI-RADS"),
    ],
)
def test_findings_that_only_look_alike_are_two(told: str, said: str) -> None:
    caption = f"Ultrasound of the breast with {said} on the left."
    refused = found(caption, values={"finding": told})[1]
    assert refused == ["term that is not in the fields"]


def test_near_copies_are_left_out_and_others_are_not() -> None:
    copy = GOOD.replace("of an oval", "of an, oval")
    other = "In the breast lies a benign mass, oval, 12.5 mm wide and graded BI-RADS 3."
    assert found(GOOD, copy, other) == ((GOOD, other), ["near copy of a sibling"])
    # Nine tenths of all words are shared with one more, and not with three.
    close, apart = GOOD.replace("assessed", "clearly assessed"), f"{GOOD} Seen quite clearly."
    assert found(GOOD, close, apart) == ((GOOD, apart), ["near copy of a sibling"])


def test_tokens_are_counted_where_the_tower_is_known() -> None:
    def words(texts):
        return [len(text.split()) + 2 for text in texts]

    size = words([GOOD])[0]
    assert found(GOOD, limits=Limits(tokens=words, context=size))[1] == []
    few = Limits(tokens=words, context=size - 1)
    assert found(GOOD, limits=few)[1] == ["more tokens than the tower reads"]
