"""Exported files read back: run on tensors, asked for their metadata."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastht.exporting.errors import ExportError
from fastht.exporting.metadata import read_metadata
from fastht.exporting.onnx import read_onnx
from fastht.exporting.parts import Outputs
from fastht.exporting.program import read_program

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class ExportedModel:
    """A file of :func:`fastht.export`, ready to run on the CPU.

    Attributes:
        metadata: what the file says of itself.
        run: inputs by name -> outputs by name.
    """

    metadata: Mapping[str, Any]
    run: Callable[[dict[str, Tensor]], Outputs]

    def __call__(self, **inputs: Tensor) -> Outputs:
        """Return the outputs by name.

        Args:
            inputs: those of ``metadata["inputs"]``: ``image`` ``[B, channels, height, width]`` in
                the file's dtype, ``text`` ``[B, context_length]`` of int64.

        Raises:
            ExportError: an input is missing, or there is no such input.
        """
        wanted = list(self.metadata["inputs"])
        if set(wanted) != inputs.keys():
            raise ExportError(
                f"the file takes {', '.join(wanted)}, not {', '.join(inputs)}; give these"
            )
        return self.run({name: inputs[name] for name in wanted})


def load_exported(path: str | os.PathLike[str]) -> ExportedModel:
    """Read a file of :func:`fastht.export`, a ``.pt2`` or ``.onnx``.

    An ``.onnx`` of more than 1.5 GiB has its weights in a ``.onnx.data`` beside it.

    A ``.pt2`` is read by ``torch.export.load``, which may run code of a file that somebody has made
    for it: read those of people whom you trust.

    Raises:
        ExportError: it is no such file, or cannot be run here.
        OSError: it cannot be read.
    """
    path = Path(path)
    run, text = read_onnx(path) if path.suffix.lower() == SUFFIXES["onnx"] else read_program(path)
    return ExportedModel(read_metadata(text, str(path)), run)
