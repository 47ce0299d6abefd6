"""clean_caption keeps what carries meaning and nothing else."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastht.data import MIN_CAPTION_LENGTH, clean_caption
from fastht.data.captions import caption_length, lost_letters

MARKS = "…±°µμ≤≥≈→–—•"  # noqa: RUF001
PRINTABLE = string.ascii_letters + string.digits + string.punctuation


CLEANINGS = ("letters", "paper")


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  Thyroid nodule, right lobe.\r\n", "Thyroid nodule, right lobe."),
        ("cyst\t12 mm\n\n 8\u00a0mm", "cyst 12 mm 8 mm"),
        ("before\u200bafter", "beforeafter"),
        ("mass \U0001f600 seen", "mass seen"),
        ("bad \ufffd byte", "bad byte"),
        ("bell\x07 null\x00 del\x7f", "bell null del"),
        ("", ""),
        (" \t\n", ""),
    ],
)
def test_removes_special_characters_and_whitespace(text: str, cleaned: str, cleaning: str) -> None:
    assert clean_caption(text, cleaning) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Lésion hypoéchogène à contours irréguliers, évaluée BI-RADS 4",
        "Ovale, echoarme Läsion mit dorsaler Schallverstärkung, Größe 12 mm",
        "左乳可见低回声结节，大小约 12 x 9 mm，BI-RADS 4a",  # noqa: RUF001
        "Гипоэхогенное образование с нечеткими контурами, 12 мм",  # noqa: RUF001
        "عقدة ناقصة الصدى في الفص الأيمن",
        "दाहिने लोब में गांठ",
        "オトガイ下の低エコー腫瘤。",
        "ก้อนเนื้อที่เต้านมซ้าย",
        "می\u200cشود",
        "12 × 9 mm, ½ of the lobe, “simple”",  # noqa: RUF001
    ],
)
def test_letters_of_every_script_survive(text: str) -> None:
    assert clean_caption(text) == text
    assert lost_letters(text, clean_caption(text)) == 0


def test_an_accent_is_one_letter_however_it_was_typed() -> None:
    assert clean_caption("Le\u0301sion") == clean_caption("L\u00e9sion") == "L\u00e9sion"


@pytest.mark.parametrize(
    ("text", "cleaned", "lost"),
    [("肝 liver 臓", "liver", 2), ("na\u00efve", "nave", 1), ("plain – text", "plain – text", 0)],  # noqa: RUF001
)
def test_the_papers_cleaning_loses_letters_and_counts_them(
    text: str, cleaned: str, lost: int
) -> None:
    assert clean_caption(text, "paper") == cleaned
    assert lost_letters(text, cleaned) == lost


def test_emoji_go_without_leaving_what_styles_them() -> None:
    assert clean_caption("mass \u2764\ufe0f \U0001f469\u200d\u2695\ufe0f end") == "mass end"


def test_wide_letters_count_twice() -> None:
    assert caption_length("左乳可见低回声结节") == 18
    assert caption_length("Lésion") == 6


@pytest.mark.parametrize("cleaning", CLEANINGS)
@pytest.mark.parametrize("character", PRINTABLE + MARKS)
def test_keeps_printable_ascii_and_marks(character: str, cleaning: str) -> None:
    assert clean_caption(f"a{character}b", cleaning) == f"a{character}b"


@pytest.mark.parametrize("cleaning", CLEANINGS)
@given(text=st.text())
def test_idempotent(text: str, cleaning: str) -> None:
    once = clean_caption(text, cleaning)
    assert clean_caption(once, cleaning) == once


@pytest.mark.parametrize("cleaning", CLEANINGS)
@given(text=st.text())
def test_alphabet_and_spacing(text: str, cleaning: str) -> None:
    cleaned = clean_caption(text, cleaning)
    if cleaning == "paper":
        assert set(cleaned) <= set(PRINTABLE + MARKS + " ")
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned


@pytest.mark.parametrize("cleaning", CLEANINGS)
@given(text=st.text(alphabet=PRINTABLE + MARKS + " \n"))
def test_loses_nothing_that_it_should_keep(text: str, cleaning: str) -> None:
    assert re.sub(r"\s", "", clean_caption(text, cleaning)) == re.sub(r"\s", "", text)


def test_minimum_length_is_the_papers() -> None:
    assert MIN_CAPTION_LENGTH == 20
