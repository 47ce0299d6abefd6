"""What cannot be exported, or read as an exported model."""

from __future__ import annotations


class ExportError(ValueError):
    """A model cannot be exported, or a file is no exported model that can be read."""
