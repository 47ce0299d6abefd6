"""What is installed, which devices there are, and what each backend needs: for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

import torch

from fastht.ops import backends
from fastht.ops.cuda import report as cuda
from fastht.version import __version__

# What each package belongs to.
PACKAGES = {
    "torch": "core",
    "safetensors": "core",
    "triton": "core on Linux",
    "open_clip_torch": "fastht[train]",
    "timm": "fastht[train]",
    "accelerate": "fastht[train]",
    "pydicom": "fastht[train]",
    "huggingface_hub": "fastht[hub]",
    "transformers": "optional",
}


def report() -> str:
    """Return the tables that ``fastht doctor`` prints."""
    sections = {title: list(rows.items()) for title, rows in findings().items()}
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    lines = []
    for title, rows in sections.items():
        lines.append(title)
        lines += [f"  {name:<{width}}  {_words(title, name, value)}" for name, value in rows]
    return "\n".join(lines)


def findings() -> dict[str, dict[str, Any]]:
    """Return what ``fastht doctor --json`` prints: by section, what was found under each name.

    A package that is not installed is ``None``; a backend has ``usable`` and ``detail``, which says
    why it is not. Everything else is text.
    """
    return {
        "fastht": {"fastht": __version__, "python": _python(), "system": _system()},
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": dict(_devices()),
        "backends": {
            status.name: {"usable": status.usable, "detail": status.detail}
            for status in backends().values()
        },
        "backend cuda": dict(cuda.rows()),
    }


def _words(section: str, name: str, value: Any) -> str:
    if section == "backends":
        return f"{'usable' if value['usable'] else 'not usable'}: {value['detail']}"
    if value is None:
        return f"not installed ({PACKAGES[name]})"
    return str(value)


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[tuple[str, str]]:
    capability = torch.backends.cpu.get_cpu_capability()
    rows = [("cpu", f"{torch.get_num_threads()} threads, {capability}")]
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}"
            if torch.version.cuda
            else "CPU-only torch"
        )
        rows.append(("cuda", f"no usable GPU ({built})"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        rows.append(
            (
                f"cuda:{index}",
                f"{properties.name}, {memory:.0f} GiB, sm_{properties.major}{properties.minor}",
            )
        )
    return rows
