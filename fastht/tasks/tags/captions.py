"""Captions: refusals, empty, short, shared by several images or by several splits."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from fastht.data.captions import MIN_CAPTION_LENGTH, caption_length
from fastht.data.refusals import refusal
from fastht.tasks.tags.findings import Finding, Records, finding

_TOP = 10


def check_captions(records: Records) -> tuple[list[Finding], dict[str, Any]]:
    """What is wrong with the captions, and how many are shared."""
    refused, empty, short = [], [], []
    counts: Counter[str] = Counter()
    sides: dict[str, set[str]] = defaultdict(set)
    patients: dict[str, set[str]] = defaultdict(set)
    for record in records:
        caption, name = record.caption, record.case.name
        if not caption:
            empty.append(name)
            continue
        if rule := refusal(caption):
            refused.append(f"{name} ({rule}): {caption!r}")
        elif caption_length(caption) < MIN_CAPTION_LENGTH:
            short.append(f"{name}: {caption!r}")
        counts[caption] += 1
        sides[caption].add(record.side)
        patients[caption].add(record.patient)
    shared = {caption: count for caption, count in counts.items() if count > 1}
    apart = [caption for caption in shared if len(patients[caption]) > 1]
    leaks = [
        f"{caption!r} in {' and '.join(sorted(sides[caption]))}"
        for caption in shared
        if len(sides[caption]) > 1
    ]
    fewest = f"fewer than {MIN_CAPTION_LENGTH} characters, which training leaves out"
    found = [
        *finding(
            "refusals",
            "error",
            "captions that refuse to describe",
            "leave them out by --refusals drop of `fastht data export`",
            refused,
        ),
        *finding("empty_captions", "error", "images without caption", "give one", empty),
        *finding("short_captions", "warning", "captions too short", fewest, short),
        *finding(
            "captions_of_several_patients",
            "warning",
            "captions of several patients",
            "in a batch their images are negatives of one text: see --positives",
            [f"{caption!r} ({shared[caption]:,} images)" for caption in apart],
        ),
        *finding(
            "caption_leaks",
            "warning",
            "captions in several splits",
            "retrieval over such texts is easier than it looks",
            leaks,
        ),
    ]
    total = sum(counts.values())
    table = {
        "captions": total,
        "different": len(counts),
        "sharing": sum(shared.values()),
        "share": sum(shared.values()) / total if total else 0.0,
        "top": [{"caption": c, "images": n} for c, n in counts.most_common(_TOP) if n > 1],
    }
    return found, table
