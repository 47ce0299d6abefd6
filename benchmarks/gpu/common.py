"""What the phases of ``benchmarks/run_gpu.sh`` share: the dry mode, and how results are written.

In the dry mode (``FASTHT_DRY=1``, set by ``run_gpu.sh --dry``) everything runs once on the CPU,
tiny, in Triton's interpreter. What it writes is marked, for it measures nothing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))  # the correctness rule and the mended interpreter

DRY = os.environ.get("FASTHT_DRY") == "1"
DRY_NOTE = "dry run, no measurement"


def mend_interpreter() -> None:
    """Correct the interpreter's arithmetic in the dry mode, as the tests do."""
    if DRY:
        import triton_interpreter

        triton_interpreter.mend()


def kernel_name(symbol: str) -> str:
    """Return what fastht calls the kernel that a profiler shows; others keep their names, cut."""
    return symbol.removeprefix("fastht_").removesuffix("_kernel")[:80]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result file, marked if nothing in it was measured."""
    if DRY:
        content = {"note": DRY_NOTE, **content}
    path.write_text(json.dumps(content, indent=1) + "\n")
