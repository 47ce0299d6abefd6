"""Checks of captions that a language model wrote, against the fields that it was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fastht.data.captions import clean_caption

Reason = Literal[
    "empty",
    "too short",
    "too long",
    "number that is not in the fields",
    "term that is not in the fields",
    "other organ",
    "near copy of a sibling",
    "more tokens than the tower reads",
]
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_WORD = re.compile(r"\w+(?:[-']\w+)*")
# What decides a diagnosis: a caption may say it only if the fields do, in singular or plural and in
# either spelling. An adjective is a term of its own.
_TERMS = {
    "benign": "benign",
    "malignant": "malignant",
    "malignancy": "malignanc(?:y|ies)",
    "normal": "normal",
    "healthy": "healthy",
    "suspicious": "suspicious",
    "cancer": "cancers?",
    "cancerous": "cancerous",
    "carcinoma": "carcinoma(?:s|ta)?",
    "tumour": "tumou?rs?",
    "metastasis": "metastas[ei]s",
    "metastatic": "metastatic",
    "fibroadenoma": "fibroadenoma(?:s|ta)?",
    "adenoma": "adenoma(?:s|ta)?",
    "cyst": "cysts?",
    "cirrhosis": "cirrhos[ei]s",
    "cirrhotic": "cirrhotic",
    "steatosis": "steatos[ei]s",
    "steatotic": "steatotic",
    "haemangioma": "ha?emangioma(?:s|ta)?",
    "pneumonia": "pneumonias?",
    "covid": "covid(?:-19)?",
    "bi-rads": "bi-?rads",
    "ti-rads": "ti-?rads",
    "li-rads": "li-?rads",
    "o-rads": "o-?rads",
}
_GRADE = re.compile(r"\b(bi|ti|li|o)-?rads[\s:]*(?:category\s*)?([0-6][a-c]?)\b", re.IGNORECASE)
_ORGANS = {
    "breast": "breasts? mammary",
    "thyroid": "thyroid",
    "liver": "liver hepatic",
    "lung": "lungs? pulmonary pleural?",
    "kidney": "kidneys? renal",
    "prostate": "prostat(?:e|ic)",
    "ovary": "ovar(?:y|ies|ian)",
    "uterus": "uter(?:us|ine)",
    "heart": "heart cardiac",
    "spleen": "spleen splenic",
    "pancreas": "pancrea(?:s|tic)",
    "gallbladder": "gall-?bladder biliary",
    "bladder": "bladder",
    "testis": "test(?:is|es|icular)",
}
_ALIKE = 0.9


@dataclass(frozen=True)
class Limits:
    """What a checked caption must keep: words at least and at most, and a count of tokens.

    Attributes:
        fewest: words.
        most: words.
        tokens: counts the tokens of texts as the text tower does; ``None`` does not look.
        context: tokens that the tower reads.
    """

    fewest: int = 5
    most: int = 60
    tokens: Callable[[Sequence[str]], list[int]] | None = None
    context: int = 77


def check_captions(
    texts: Iterable[str], values: Mapping[str, str], organ: str, limits: Limits
) -> tuple[tuple[str, ...], list[Reason]]:
    """Return the captions that stand, cleaned, and for each of the others why it does not.

    Args:
        texts: captions of one image.
        values: what the image's fields say.
        organ: what is imaged.
        limits: of lengths.
    """
    kept: list[str] = []
    reasons: list[Reason] = []
    for text in map(clean_caption, texts):
        reason = _reason(text, values, organ, limits)
        if reason is None and any(_similarity(text, other) >= _ALIKE for other in kept):
            reason = "near copy of a sibling"
        if reason is None:
            kept.append(text)
        else:
            reasons.append(reason)
    return tuple(kept), reasons


def _reason(text: str, values: Mapping[str, str], organ: str, limits: Limits) -> Reason | None:
    told = " ; ".join(values.values())
    words = len(text.split())
    checks: tuple[tuple[Reason, Callable[[], bool]], ...] = (
        ("empty", lambda: not text),
        ("too short", lambda: words < limits.fewest),
        ("too long", lambda: words > limits.most),
        ("number that is not in the fields", lambda: bool(_numbers(text) - _numbers(told))),
        ("term that is not in the fields", lambda: bool(_terms(text) - _terms(told))),
        ("other organ", lambda: bool(_organs(text) - _organs(told) - _organs(organ))),
        (
            "more tokens than the tower reads",
            lambda: limits.tokens is not None and limits.tokens([text])[0] > limits.context,
        ),
    )
    return next((reason for reason, fails in checks if fails()), None)


def _numbers(text: str) -> set[float]:
    return {float(number.replace(",", ".")) for number in _NUMBER.findall(text)}


def _terms(text: str) -> set[str]:
    """Terms of a diagnosis, and grades."""
    terms = {term for term, forms in _TERMS.items() if _says(text, forms)}
    return terms | {f"{kind}-rads {grade}".casefold() for kind, grade in _GRADE.findall(text)}


def _organs(text: str) -> set[str]:
    return {organ for organ, names in _ORGANS.items() if _says(text, "|".join(names.split()))}


def _says(text: str, forms: str) -> bool:
    """Whether a word of one of the forms, alternatives of a pattern, is in a text."""
    return re.search(rf"\b(?:{forms})\b", text, re.IGNORECASE) is not None


def _similarity(first: str, second: str) -> float:
    """Shared words of two texts over all of them."""
    a, b = ({word.casefold() for word in _WORD.findall(text)} for text in (first, second))
    return len(a & b) / max(1, len(a | b))
