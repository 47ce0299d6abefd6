"""Captions from the columns of a table: templates in tiers, drawn by hashes, and checked."""

from fastht.captions.engine import Captioned, caption_rows
from fastht.captions.schema import Templates, TemplatesError, load_templates

__all__ = ["Captioned", "Templates", "TemplatesError", "caption_rows", "load_templates"]
