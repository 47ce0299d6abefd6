"""What the machine is called."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the name of a device as its maker gives it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()


def cpu_name() -> str:
    """Return the processor's name as the kernel gives it, or its architecture."""
    match = re.search(r"^model name\s*: (.+)$", cpu_info(), re.MULTILINE)
    return match[1] if match else platform.machine()


def cpu_info() -> str:
    """Return what Linux tells of the processors; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""
