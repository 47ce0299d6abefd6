"""A program of ``torch.export`` as an ONNX file, and how ONNX Runtime runs it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastht.exporting.errors import ExportError
from fastht.exporting.parts import Inputs, Outputs

METADATA_KEY = "fastht"  # among an ONNX file's own metadata
_IN_ONE_FILE = 3 * 2**29  # bytes of weights; a protobuf file ends at 2 GiB, with what is no weight
_NEEDED = "pip install 'fastht[export]'"


def check_installed() -> None:
    """Raise ``ExportError`` if what writes and runs ONNX files is not installed."""
    missing = []
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ExportError(f"format='onnx' needs {', '.join(missing)}: {_NEEDED}")


def data_file(path: Path) -> Path:
    """Return where an ONNX file has its weights if they are too many for itself."""
    return path.with_name(f"{path.name}.data")


def write_onnx(
    program: ExportedProgram,
    inputs: list[str],
    outputs: list[str],
    metadata: Mapping[str, Any],
    path: Path,
) -> None:
    """Write an ONNX file; weights of more than 1.5 GiB go to :func:`data_file` beside it.

    Raises:
        ExportError: an operator has no counterpart.
        OSError: they cannot be written.
    """
    import torch.onnx

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own calls
            made: Any = torch.onnx.export(
                program,
                (),
                input_names=inputs,
                output_names=outputs,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"torch.onnx cannot translate the model: {reason}; export format='torch'"
        ) from error
    made.model.metadata_props[METADATA_KEY] = json.dumps(metadata)
    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    made.save(path, external_data=weights > _IN_ONE_FILE)


def read_onnx(path: Path) -> tuple[Callable[[Inputs], Outputs], str]:
    """Return what runs an ONNX file on the CPU, and its metadata as text, or ``""``.

    Raises:
        ExportError: ONNX Runtime is not installed, or cannot run it.
        OSError: it cannot be read.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"an ONNX file needs onnxruntime: {_NEEDED}") from error
    path.open("rb").close()  # ONNX Runtime has errors of its own for what is not there
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of classes of its own, none of them public
        reason = " ".join(str(error).split())[:300]
        if "external" in reason.lower() or data_file(path).name in reason:
            raise ExportError(
                f"the weights of {path} are in a file of their own, {path.stem}.onnx.data as "
                f"fastht.export names it, which ONNX Runtime cannot read ({reason}); put both into "
                "one folder, under the names that they were written by"
            ) from error
        raise ExportError(
            f"ONNX Runtime cannot run the file on a CPU: {reason}; export the model in float32, or "
            "format='torch'"
        ) from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Inputs) -> Outputs:
        given = {name: tensor.numpy() for name, tensor in inputs.items()}
        found = session.run(names, given)
        made: dict[str, Tensor] = {
            name: torch.from_numpy(v) for name, v in zip(names, found, strict=True)
        }
        return made

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
