"""Images that are scored and that the run trained on: told of, or left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastht.data.cases import Case
from fastht.data.images import DataError
from fastht.data.overlap.fingerprints import item_name
from fastht.data.overlap.remembered import find_known
from fastht.data.records import Record

Copies = Literal["warn", "leave-out"]
ItemT = TypeVar("ItemT", Case, Record)
KNOWN_NAME = "copies_of_training_images"  # in results.json


def judge_copies(
    run: Path | None, items: Sequence[ItemT], copies: Copies, say: Callable[[str], Any] = print
) -> tuple[tuple[ItemT, ...], dict[str, Any] | None]:
    """Tell which images the run trained on under other names, and leave them out if asked to.

    Args:
        run: folder of the run; ``None``: no run.
        items: what is to be scored.
        copies: what to do with images that are known.
        say: prints.

    Returns:
        What is scored, and what results tell: images by the way they are known, and how many were
        left out; ``None`` where the run remembers nothing.

    Raises:
        DataError: no image is left, or what the run remembers cannot be read.
    """
    known = None if run is None else find_known(run, items)
    if known is None:
        if run is not None and copies == "leave-out":
            raise DataError(
                f"{run} does not remember what it trained on, as an older version made it; compare "
                "the data themselves by `fastht data overlap`"
            )
        return tuple(items), None
    kept = tuple(item for item in items if item_name(item) not in known.kinds)
    left_out = len(items) - len(kept) if copies == "leave-out" else 0
    if known.perhaps:
        say(
            f"NOTE: {len(known.perhaps)} images may be copies of images that {run} trained on, "
            "which are no longer where they were to compare them."
        )
    if known.kinds:
        what = f"{len(items) - len(kept)} of {len(items)} images ({known.describe()})"
        if left_out:
            say(f"{what} left out: {run} trained on copies of them.")
        else:
            say(
                f"WARNING: {run} trained on copies of {what}. Scores are too good by them; leave "
                "them out by --copies leave-out."
            )
    if left_out and not kept:
        raise DataError(f"{run} trained on copies of all {len(items)} images; give others")
    return kept if left_out else tuple(items), known.plain() | {"left_out": left_out}
