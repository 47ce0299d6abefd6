"""A model's inference form as a program of ``torch.export``, and how far off its numbers are."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind

from fastht.exporting.errors import ExportError
from fastht.exporting.parts import Exported, Inputs, Outputs, Sizes

METADATA_FILE = "fastht.json"  # inside of a .pt2
# A file that is off by more is not written: it computes something else. Rounding is far below.
_BROKEN = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}


def trace(part: Exported, sizes: Sizes, dtype: torch.dtype, dynamic_grid: bool) -> ExportedProgram:
    """Return the program of a part whose adapters are folded.

    Args:
        part: with everything in it that runs.
        sizes: of its inputs.
        dtype: of images.
        dynamic_grid: whether images may have any number of patches along each side.

    Raises:
        ExportError: torch.export cannot follow the model.
    """
    # With weights that have gradients, nn.MultiheadAttention calls operators that others know too.
    for parameter in part.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    shapes: dict[str, dict[int, Any]] = {}
    if sizes.image is not None:
        shapes["image"] = {0: Dim("images" if sizes.text else "batch")}
        if dynamic_grid:
            assert sizes.patch is not None
            shapes["image"] |= {2: sizes.patch[0] * Dim("rows"), 3: sizes.patch[1] * Dim("columns")}
    if sizes.text is not None:
        shapes["text"] = {0: Dim("texts" if sizes.image else "batch")}
    grow = (1, 0) if dynamic_grid else (0, 0)  # sides that differ are not taken for one
    inputs = tuple(sizes.examples(3, dtype, grow).values())
    try:
        with torch.enable_grad():
            program = torch.export.export(part, inputs, dynamic_shapes=shapes, strict=False)
            if unused := _unused(program):
                for name in unused:
                    path, _, leaf = name.rpartition(".")
                    setattr(part.get_submodule(path), leaf, None)
                program = torch.export.export(part, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever a model's own Python does
        reason = _first_lines(error)
        if dynamic_grid:
            raise ExportError(
                f"images of any grid cannot be followed through {type(part.model).__name__}: "
                f"{reason}; export one file a size of images (image_size=(height, width)), or "
                "build the tower for dynamic sizes (timm: dynamic_img_size=True)"
            ) from error
        raise ExportError(
            f"torch.export cannot follow {type(part.model).__name__}: {reason}; export "
            "the part of the model that you need, as its vision tower"
        ) from error
    for parameter in program.parameters():
        parameter.requires_grad_(False)
    _check_operators(program)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names the folders of whoever exports
    return program


def write_program(program: ExportedProgram, metadata: Mapping[str, Any], path: Path) -> None:
    """Write a .pt2 file.

    Raises:
        OSError: it cannot be written.
    """
    file = io.BytesIO()  # torch's own writer has other errors than OSError for a full disk
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})
    path.write_bytes(file.getbuffer())


def read_program(path: Path) -> tuple[Callable[[Inputs], Outputs], str]:
    """Return what runs a .pt2 file, and its metadata as text; ``""`` if it has none.

    Raises:
        ExportError: it is none.
        OSError: it cannot be read.
    """
    extra = {METADATA_FILE: ""}
    with path.open("rb") as file:
        try:
            module: nn.Module = torch.export.load(file, extra_files=extra).module()
        except Exception as error:
            raise ExportError(
                f"no program of torch.export that this torch {torch.__version__} reads "
                f"({_first_lines(error)}); export it again"
            ) from error

    @torch.no_grad()
    def run(inputs: Inputs) -> Outputs:
        return dict(module(*inputs.values()))

    text: Any = extra[METADATA_FILE]
    return run, text.decode() if isinstance(text, bytes) else text


def difference(found: Outputs, expected: Outputs, dtype: torch.dtype) -> float:
    """Return the largest error relative to the largest value, over all outputs.

    Args:
        found: of a file.
        expected: of the model.
        dtype: that both compute in.

    Raises:
        ExportError: there are other outputs, or they are of another computation.
    """
    if found.keys() != expected.keys():
        raise ExportError(
            f"the file has the outputs {sorted(found)} and the model {sorted(expected)}; report it "
            "with the model's name"
        )
    worst = 0.0
    for name, values in expected.items():
        off = _relative(found[name], values)
        if not off <= _BROKEN.get(dtype, 0.0):
            raise ExportError(
                f"the file's {name} is off by {off:.2g} of its largest value, which is no rounding "
                f"of {dtype}: nothing was written; report it with the model's name"
            )
        worst = max(worst, off)
    return worst


def _relative(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return math.inf
    if not bool(torch.isfinite(expected).all()):
        raise ExportError(
            "the model returns NaN or Inf for images of noise: its weights are not finite, or its "
            "dtype is too narrow; export the weights of an earlier epoch, or in float32"
        )
    scale = float(expected.double().abs().max()) if expected.numel() else 0.0
    error = float((found.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    return error / scale if scale else error


def _unused(program: ExportedProgram) -> list[str]:
    """Return the parameters and buffers that a program holds and does not compute with.

    They are the other tower of a contrastive model, or blocks that no head looks at.
    """
    users = {node.name: len(node.users) for node in program.graph.nodes if node.op == "placeholder"}
    kinds = (InputKind.PARAMETER, InputKind.BUFFER)
    return [
        str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind in kinds and not users[spec.arg.name]
    ]


def _check_operators(program: ExportedProgram) -> None:
    """Raise if the program holds anything but PyTorch's own operators."""
    own = {
        node.target.namespace
        for node in program.graph.nodes
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)
    }
    if others := sorted(own - {"aten", "prim", "prims"}):
        raise ExportError(
            f"the model calls operators of {', '.join(others)}, which the file would need where it "
            "is read; switch them off in the model (fused attention and the like)"
        )


def _first_lines(error: BaseException, characters: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= characters else f"{text[:characters]} ..."
