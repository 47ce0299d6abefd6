"""A model's inference form in one file, for programs without fastht: ``torch.export`` and ONNX."""

from fastht.exporting.command import Export, export
from fastht.exporting.errors import ExportError
from fastht.exporting.load import ExportedModel, load_exported

__all__ = ["Export", "ExportError", "ExportedModel", "export", "load_exported"]
