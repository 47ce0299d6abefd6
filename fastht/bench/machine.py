"""What was measured on and with; without names of hosts or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from fastht.hardware import cpu_info, cpu_name
from fastht.ops import backends
from fastht.version import __version__

PACKAGES = ("torch", "triton", "numpy", "open_clip_torch", "timm", "peft", "accelerate")
GPU_FIELDS = (
    "driver_version", "power.limit", "temperature.gpu",
    "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
)  # fmt: skip
# Results are of the same machine where all of these are equal.
# Two processors of one name may differ in their instruction sets, by which torch chooses its own.
IDENTITY = (
    "device", "cpu", "torch_capability", "cores", "threads", "cache_bytes", "system", "gpu",
)  # fmt: skip


def describe(device: str) -> dict[str, Any]:
    """Return the machine and the versions that numbers measured on ``device`` depend on."""
    found: dict[str, Any] = {
        "device": device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_mhz": _cpu_mhz(),
        "memory_bytes": _memory_bytes(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "fastht": __version__,
        "backends": {name: status.detail for name, status in backends().items() if status.usable},
        "cache_bytes": cache_bytes(device),
        "gpu": None,
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpu_details"] = {
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            **_gpu_state(),
        }
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return by which of ``IDENTITY`` two machines differ: name -> the two values."""
    return {
        name: (one.get(name), other.get(name))
        for name in IDENTITY
        if one.get(name) != other.get(name)
    }


def cache_bytes(device: str) -> int:
    """Return the size of the last-level cache, or 64 MiB where the system does not tell."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).L2_cache_size
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        if match := re.fullmatch(r"(\d+)([KM])", path.read_text().strip()):
            sizes.append(int(match[1]) * {"K": 2**10, "M": 2**20}[match[2]])
    return max(sizes, default=64 * 2**20)


def multiplies_bf16(device: str) -> bool:
    """Whether PyTorch has fast matrix products in bfloat16 on a device.

    On a CPU they are oneDNN's, which need AVX-512, AMX or the like. PyTorch's own take minutes for
    a training step that takes seconds in float32.
    """
    if device == "cuda":
        return True
    available = torch.backends.mkldnn.is_available()
    return available and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _cpu_mhz() -> float | None:
    found = re.findall(r"^cpu MHz\s*: ([\d.]+)$", cpu_info(), re.MULTILINE)
    return max(map(float, found), default=None)


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpu_state() -> dict[str, str]:
    """Return driver, clocks and limits as they are now; they are left alone."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.splitlines()[0].split(", ")
    return dict(zip(GPU_FIELDS, values, strict=False))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
