"""What the CPU suite ran on and with; without names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from fastht import __version__, backends


def describe() -> dict[str, Any]:
    """Return the machine and the versions that the numbers depend on."""
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "fastht": __version__,
        "backends": {name: status.detail for name, status in backends().items() if status.usable},
    }


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it, or its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return match[1] if match else platform.machine()
