"""Captions: the cleaning that section IV-A of the HT paper describes."""

from __future__ import annotations

import re

MIN_CAPTION_LENGTH = 20
"""Cleaned captions shorter than this many characters are dropped."""

# Printable ASCII and the marks that carry meaning in reports. The published code also loses "%",
# by what looks like an oversight; a percentage without its sign is another finding, so it stays.
_SPECIAL = re.compile(r"[^\x20-\x7e\s…±°µμ≤≥≈→–—•]")  # noqa: RUF001


def clean_caption(text: str) -> str:
    """Remove special characters and surplus whitespace from a caption.

    Kept are printable ASCII and the marks ``… ± ° µ μ ≤ ≥ ≈ → – — •``. Everything else goes
    (control characters, emoji, CJK, U+FFFD). A run of whitespace of any kind, line breaks and
    no-break spaces included, becomes one space; none is left at the ends. Cleaning twice changes
    nothing.
    """  # noqa: RUF002
    return " ".join(_SPECIAL.sub("", text).split())
