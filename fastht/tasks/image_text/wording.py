"""What wordings a run trained on: hashes of its captions, to tell prompts that it has seen."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastht.data.images import DataError
from fastht.files import write_atomically

WORDINGS_NAME = "wordings.npy"
_ARTICLES = {"a", "an", "the"}


def wording_hash(text: str) -> int:
    """Return a hash of a text's words, whatever its case, punctuation and articles (BLAKE2b)."""
    words = [word for word in re.findall(r"\w+", text.casefold()) if word not in _ARTICLES]
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class Wordings:
    """Wordings that trained, as hashes: uint64 ``[n]``, sorted."""

    hashes: np.ndarray

    def __contains__(self, text: object) -> bool:
        value = np.uint64(wording_hash(str(text)))
        place = int(np.searchsorted(self.hashes, value))
        return place < len(self.hashes) and bool(self.hashes[place] == value)


def remember_wordings(run: Path, captions: Iterable[str]) -> None:
    """Leave the hashes of the captions that train in a run's folder: eight bytes a wording."""
    hashes = sorted({wording_hash(caption) for caption in captions})
    stream = io.BytesIO()
    np.save(stream, np.array(hashes, np.uint64))
    write_atomically(run / WORDINGS_NAME, stream.getvalue())


def known_wordings(run: Path) -> Wordings | None:
    """Return the wordings that a run trained on; ``None``: it keeps none, as older versions.

    Raises:
        DataError: its file is damaged.
    """
    path = run / WORDINGS_NAME
    if not path.exists():
        return None
    try:
        hashes = np.load(path, allow_pickle=False)
        if hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise ValueError("no list of hashes; remove it")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: damaged ({error}); remove it, and prompts that the run has seen are not told"
        ) from None
    return Wordings(hashes)
