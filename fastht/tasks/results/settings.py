"""What a finished run was set to, as its folder tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_FILES = ("run.json", "arguments.json")  # of fastht segment and classify, of fastht train


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Return what a run wrote of its options, as it lies there; ``None`` if nothing can be read.

    Those of segment and classify are nested under ``options``, beside what came of them.
    """
    for name in _FILES:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return content
    return None


def read_options(folder: Path) -> dict[str, Any]:
    """Return the options alone of a run, groups of them nested; empty if nothing can be read."""
    content = read_settings(folder) or {}
    options = content.get("options", content)
    return options if isinstance(options, dict) else {}
