"""clean_caption keeps what carries meaning and nothing else."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastht.data import MIN_CAPTION_LENGTH, clean_caption

MARKS = "…±°µμ≤≥≈→–—•"  # noqa: RUF001
PRINTABLE = string.ascii_letters + string.digits + string.punctuation


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  Thyroid nodule, right lobe.\r\n", "Thyroid nodule, right lobe."),
        ("cyst\t12 mm\n\n 8\u00a0mm", "cyst 12 mm 8 mm"),
        ("before\u200bafter", "beforeafter"),
        ("mass \U0001f600 seen", "mass seen"),
        ("肝 liver 臓", "liver"),
        ("bad \ufffd byte", "bad byte"),
        ("bell\x07 null\x00 del\x7f", "bell null del"),
        ("na\u00efve", "nave"),
        ("", ""),
        (" \t\n", ""),
    ],
)
def test_removes_special_characters_and_whitespace(text: str, cleaned: str) -> None:
    assert clean_caption(text) == cleaned


@pytest.mark.parametrize("character", PRINTABLE + MARKS)
def test_keeps_printable_ascii_and_marks(character: str) -> None:
    assert clean_caption(f"a{character}b") == f"a{character}b"


@given(st.text())
def test_idempotent(text: str) -> None:
    once = clean_caption(text)
    assert clean_caption(once) == once


@given(st.text())
def test_alphabet_and_spacing(text: str) -> None:
    cleaned = clean_caption(text)
    assert set(cleaned) <= set(PRINTABLE + MARKS + " ")
    assert cleaned == cleaned.strip()
    assert "  " not in cleaned


@given(st.text(alphabet=PRINTABLE + MARKS + " \n"))
def test_loses_nothing_that_it_should_keep(text: str) -> None:
    assert re.sub(r"\s", "", clean_caption(text)) == re.sub(r"\s", "", text)


def test_minimum_length_is_the_papers() -> None:
    assert MIN_CAPTION_LENGTH == 20
