"""A program of ``torch.export`` as an ONNX file, and how ONNX Runtime runs it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastht.exporting.errors import ExportError
from fastht.exporting.parts import Inputs, Outputs

METADATA_KEY = "fastht"  # among an ONNX file's own metadata
_LARGEST = 2**31 - 2**20  # bytes of a protobuf file, less what is no weight
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


def write_onnx(
    program: ExportedProgram, inputs: list[str], outputs: list[str], metadata: Mapping[str, Any]
) -> bytes:
    """Return the content of an ONNX file.

    Raises:
        ExportError: an operator has no counterpart, or the weights are too many for one file.
    """
    import torch.onnx

    weights = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if weights > _LARGEST:
        raise ExportError(
            f"the weights take {weights / 2**30:.1f} GiB and an ONNX file holds 2; export a "
            "model.half(), or format='torch'"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own calls
            made: Any = torch.onnx.export(
                program,
                (),
                input_names=inputs,
                output_names=outputs,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ExportError(
            f"torch.onnx cannot translate the model: {reason}; export format='torch'"
        ) from error
    proto = made.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(metadata)
    return bytes(proto.SerializeToString())


def read_onnx(data: bytes) -> tuple[Callable[[Inputs], Outputs], str]:
    """Return what runs an ONNX file's content on the CPU, and its metadata as text, or ``""``.

    Raises:
        ExportError: ONNX Runtime is not installed, or cannot run it.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ExportError(f"an ONNX file needs onnxruntime: {_NEEDED}") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own, none of them public
        reason = " ".join(str(error).split())[:300]
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
