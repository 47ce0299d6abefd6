"""The folder of a machine's page: written as a whole or left as it was."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.report.pictures import PICTURES

PAGE, DATA, NOTES = "README.md", "results.json", "notes.md"
WRITTEN = (PAGE, DATA, *PICTURES)


def install(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a folder in the place of all that an earlier call wrote there.

    The new folder is complete before the old one moves away, and takes everything else along that
    lies in it. If the last step fails, the old one comes back.

    Raises:
        OSError: it cannot be written.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as workplace:
        new, old = Path(workplace, "new"), Path(workplace, "old")
        if folder.exists():
            shutil.copytree(folder, new, symlinks=True)
        else:
            new.mkdir()
        for name in WRITTEN:
            (new / name).unlink(missing_ok=True)
        for name, data in files.items():
            (new / name).write_bytes(data)
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
