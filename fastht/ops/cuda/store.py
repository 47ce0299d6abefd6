"""Folders of compiled kernels: the cache, and what was compiled at install.

A file holds its key and its own digest; one that is damaged, cut short or of another key counts as
missing. Like ``sources``, this file is read by itself at install and needs nothing but Python.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MAGIC = b"fastht kernel 1\n"


@dataclass(frozen=True)
class Store:
    """Compiled kernels in a folder, one file each, by architecture, name and key."""

    root: Path

    def path(self, arch: str, name: str, key: str) -> Path:
        """Return where such a kernel is kept."""
        return self.root / arch / f"{name}-{key[:16]}.cubin"

    def get(self, arch: str, name: str, key: str) -> bytes | None:
        """Return a kernel's machine code, or ``None`` where there is none that is whole."""
        try:
            data = self.path(arch, name, key).read_bytes()
        except OSError:
            return None
        head = _head(key, data[len(_head(key, b"")) :])
        return data[len(head) :] if data.startswith(head) else None

    def put(self, arch: str, name: str, key: str, image: bytes) -> None:
        """Keep a kernel; whoever reads meanwhile sees the old file or the new one.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path(arch, name, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_bytes(_head(key, image) + image)
            os.replace(temporary, path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def held(self) -> dict[str, int]:
        """Return how many kernels there are for each architecture."""
        counts: dict[str, int] = {}
        for file in sorted(self.root.glob("sm_*/*.cubin")):
            counts[file.parent.name] = counts.get(file.parent.name, 0) + 1
        return counts


def _head(key: str, image: bytes) -> bytes:
    return b"%s%s\n%s\n" % (_MAGIC, key.encode(), hashlib.sha256(image).hexdigest().encode())
