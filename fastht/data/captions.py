"""Captions: their cleaning, that of section IV-A of the HT paper or one for all scripts."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Literal

MIN_CAPTION_LENGTH = 20
"""Cleaned captions shorter than this many characters are dropped."""

Cleaning = Literal["letters", "paper"]

# Printable ASCII and the marks that carry meaning in reports. The published code also loses "%",
# by what looks like an oversight; a percentage without its sign is another finding, so it stays.
_SPECIAL = re.compile(r"[^\x20-\x7e\s…±°µμ≤≥≈→–—•]")  # noqa: RUF001
_MARKS = frozenset("°\u200c\u200d")  # degrees; joiners, which some scripts spell with
_KINDS = frozenset("LMNP")  # letters, their marks, numbers, punctuation; and mathematical symbols
# Marks that only choose how an emoji looks.
_OF_EMOJI = re.compile("[\ufe00-\ufe0f\u20e0-\u20e3\U000e0100-\U000e01ef]")
_JOINER_ALONE = re.compile(r"(?<!\w)[\u200c\u200d]+|[\u200c\u200d]+(?!\w)")


def clean_caption(text: str, cleaning: Cleaning = "letters") -> str:
    """Remove special characters and surplus whitespace from a caption.

    - "letters" keeps letters, numbers and punctuation of every script, mathematical symbols and
      the degree sign, in Unicode's composed form (NFC), so that é is one letter however it was
      typed. Control characters, emoji, other pictures and U+FFFD go.
    - "paper" keeps printable ASCII and the marks ``… ± ° µ μ ≤ ≥ ≈ → – — •``, as the HT paper does
      for its English captions. Letters of other scripts go.

    A run of whitespace of any kind, line breaks and no-break spaces included, becomes one space;
    none is left at the ends. Cleaning twice changes nothing.
    """  # noqa: RUF002
    if cleaning == "paper":
        return " ".join(_SPECIAL.sub("", text).split())
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = unicodedata.normalize("NFC", _OF_EMOJI.sub("", text))
    kept = "".join(character for character in text if _has_meaning(character))
    # What was removed may have stood between a letter and its accent.
    kept = _JOINER_ALONE.sub("", unicodedata.normalize("NFC", kept))
    return " ".join(kept.split())


def lost_letters(text: str, cleaned: str) -> int:
    """How many letters and digits a cleaning has removed; other characters do not count."""
    before, after = (
        Counter(c for c in unicodedata.normalize("NFC", t) if c.isalnum()) for t in (text, cleaned)
    )
    return (before - after).total()


def caption_length(cleaned: str) -> int:
    """Characters of a caption; wide ones, of Chinese or Japanese, count two, as on a screen.

    A sentence of them has about half as many as one of Latin letters.
    """
    if cleaned.isascii():
        return len(cleaned)
    return sum(1 + (unicodedata.east_asian_width(character) in "WF") for character in cleaned)


def _has_meaning(character: str) -> bool:
    if character.isascii():
        return character.isprintable() or character.isspace()
    kind = unicodedata.category(character)
    # µ, μ and the arrows and relations of reports are letters and mathematical symbols.
    return kind[0] in _KINDS or kind == "Sm" or character in _MARKS or character.isspace()
