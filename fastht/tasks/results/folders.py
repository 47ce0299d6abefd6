"""Folders that are named after the runs in them, so that two runs do not meet in one."""

from __future__ import annotations

import os
import re
from pathlib import Path

_TABLES = (".csv", ".tsv", ".txt")


def run_folder(command: str, *parts: str) -> Path:
    """Return ``runs/COMMAND-PART-PART``, each part as a file name.

    Args:
        command: what is run.
        parts: what tells its runs apart: data sets, models, methods.
    """
    return Path("runs") / "-".join([command, *map(folder_word, parts)])


def inner_folder(run: Path, command: str, data: str) -> Path:
    """Return where in a run's folder what comes of it on some data belongs."""
    return run / f"{command}-{folder_word(data)}"


def folder_word(name: str) -> str:
    """Return what people call a data set or a model, of letters that every file system takes."""
    source, mark, inside = name.partition(":")
    if mark and len(source) > 1:  # hf-hub:ORG/REPO and such, but no drive of Windows
        name = inside
    path = Path(os.path.abspath(name)) if name in (".", "..") else Path(name)
    if path.suffix == ".tar":  # shards are named after their folder
        path = path.parent if path.parent.name else Path(path.stem)
    base = path.stem if path.suffix.lower() in _TABLES else path.name
    return re.sub(r"[^\w.]+", "-", base).strip("-.") or "data"
