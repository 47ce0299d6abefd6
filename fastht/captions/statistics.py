"""What captions are like: from which tiers, how different, how long, and what they give away."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastht.captions.engine import Captioned, Result

_WORD = re.compile(r"\w+(?:[-'.]\w+)*")
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
WINDOW = 1000
"""Words among which distinct n-grams are counted: more words always have a smaller share."""


def describe(
    result: Result,
    *,
    sources: Sequence[str | None],
    tokens: Callable[[Sequence[str]], list[int]] | None,
    context: int,
) -> dict[str, Any]:
    """Return the statistics as plain JSON types; the order of the rows does not matter.

    Args:
        result: what the rows got.
        sources: of each row, the set that it is from; ``None`` if it is not known.
        tokens: counts tokens as the text tower does; ``None`` leaves them out.
        context: tokens that the tower reads.
    """
    pairs = [(row.path, text, row) for row in result.rows for text in row.captions]
    pairs.sort(key=lambda pair: pair[:2])
    captions = [text for _, text, _ in pairs]
    counts = Counter(captions)
    shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    words = [text.split() for text in captions]
    labelled = [(text, row.label) for _, text, row in pairs if row.label is not None]
    stated = sum(says(text, label) for text, label in labelled)
    sets: dict[str, Counter[str]] = {}
    for row, source in zip(result.rows, sources, strict=True):
        sets.setdefault(source or "", Counter())[row.tier] += 1
    found: dict[str, Any] = {
        "rows": len(result.rows),
        "captions": len(captions),
        "tiers": dict(sorted(Counter(row.tier for row in result.rows).items())),
        "tiers_by_source": {name: dict(sorted(c.items())) for name, c in sorted(sets.items())},
        "distinct": len(counts),
        "most_frequent": [
            {"caption": text, "count": count, "share": count / len(captions)}
            for text, count in shown[:5]
        ],
        **_distinct(captions),
        "words": quantiles([len(text) for text in words]),
        "fields_used": _fields(result.rows),
        "label_stated": {
            "captions": stated,
            "of": len(labelled),
            "share": stated / len(labelled) if labelled else None,
        },
        "refused": dict(sorted(result.refused.items())),
    }
    if tokens is not None:
        lengths = tokens(captions)
        cut = sum(length > context for length in lengths)
        found["tokens"] = quantiles(lengths) | {
            "context": context,
            "truncated": cut,
            "truncated_share": cut / len(lengths),
        }
    return found


def says(caption: str, label: str) -> bool:
    """Whether a caption states a label, with or without its article, as words of its own."""
    name = re.escape(_ARTICLE.sub("", label))
    return re.search(rf"(?<!\w){name}(?!\w)", caption, re.IGNORECASE) is not None


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Return the smallest, the median, the 95th percentile and the largest."""
    if not values:
        return {}
    low, middle, high, top = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    return {"min": low, "median": middle, "p95": high, "max": top}


def _distinct(captions: Sequence[str]) -> dict[str, Any]:
    """Shares of different words and pairs of words, means over windows of equal length."""
    texts = [[word.casefold() for word in _WORD.findall(text)] for text in captions]
    result: dict[str, Any] = {"window": WINDOW}
    for n in (1, 2):
        grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        windows = [grams[i : i + WINDOW] for i in range(0, len(grams) - WINDOW + 1, WINDOW)]
        shares = [len(set(window)) / WINDOW for window in windows]
        result[f"distinct_{n}"] = float(np.mean(shares)) if shares else None
    return result


def _fields(rows: Sequence[Captioned]) -> dict[str, dict[str, int]]:
    """Of each field, how many rows have it and in the captions of how many it stands."""
    has = Counter(name for row in rows for name in row.values)
    used = Counter(name for row in rows for name in row.used if name in row.values)
    return {name: {"rows": has[name], "in_captions": used[name]} for name in sorted(has)}
