"""What a run of ``fastht train`` keeps where, and the options that it was started with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ARGUMENTS_NAME = "arguments.json"
ADAPTER_NAME = "adapter"  # a folder
LORA_NAME = "lora.safetensors"
TOWERS_NAME = "towers.safetensors"
_NEEDED = ("data", "model", "pretrained", "method", "lora_rank")


def read_run_arguments(run: Path, adapter_option: str) -> dict[str, Any]:
    """Return the arguments that a run of ``fastht train`` was started with.

    Args:
        run: its folder.
        adapter_option: what takes the adapter of a run that cannot be read.

    Raises:
        ValueError: the folder holds no run, or one of another version.
    """
    try:
        arguments = json.loads((run / ARGUMENTS_NAME).read_text(encoding="utf-8"))
        lacking = [name for name in _NEEDED if name not in arguments]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{run} is no run of fastht train: {ARGUMENTS_NAME} cannot be read ({error}); give "
            "the folder that was its --out"
        ) from error
    if lacking:
        raise ValueError(
            f"{run} is no run of this version of fastht train: {ARGUMENTS_NAME} lacks "
            f"{', '.join(lacking)}; train anew, or give its adapter by {adapter_option}"
        )
    return dict(arguments)


def check_weights(run: Path, names: Sequence[str]) -> None:
    """Check that a run has written its weights.

    Args:
        run: its folder.
        names: of the files and folders that it has to hold.

    Raises:
        ValueError: one of them is not there.
    """
    if absent := [name for name in names if not (run / name).exists()]:
        raise ValueError(
            f"{run} has no {absent[0]}: its training has not finished an epoch yet; go on with "
            "fastht train --resume"
        )
