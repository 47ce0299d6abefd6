"""Phase 1: what the measurements are made with.

python -m benchmarks.gpu.environment OUT/environment.json
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.common import DRY, ROOT, write_json
from fastht import __version__, backends

PACKAGES = ("torch", "triton", "timm", "peft", "open_clip_torch", "transformers", "numpy", "pytest")
GPU_FIELDS = (
    "name", "driver_version", "memory.total", "temperature.gpu", "power.draw", "power.limit",
    "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
)  # fmt: skip


def output_of(*command: str) -> str | None:
    """Return what a command prints, or ``None`` if it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version_of(package: str) -> str | None:
    """Return an installed package's version."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu() -> dict[str, Any]:
    """Describe the device as it is now; its clocks are left alone."""
    if DRY:
        return {}
    device = torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_bytes": device.total_memory,
        "l2_bytes": device.L2_cache_size,
    }
    asked = output_of("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    if asked:
        found["nvidia_smi"] = dict(zip(GPU_FIELDS, asked.splitlines()[0].split(", "), strict=False))
    return found


def main() -> int:
    """Write the file."""
    nvcc = output_of("nvcc", "--version")
    write_json(
        Path(sys.argv[1]),
        {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "fastht": __version__,
            # --dirty: the tree may hold changes that no commit has
            "commit": None if DRY else output_of("git", "describe", "--always", "--dirty"),
            "gpu": gpu(),
            "backends": {name: status.detail for name, status in backends().items()},
            "python": platform.python_version(),
            "packages": {name: version_of(name) for name in PACKAGES},
            "cuda": torch.version.cuda,
            "nvcc": nvcc.splitlines()[-2] if nvcc else None,
            "compute_sanitizer": shutil.which("compute-sanitizer"),
            "system": platform.platform(),
            "cores": os.cpu_count(),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
