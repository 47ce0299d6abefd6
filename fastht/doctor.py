"""What is installed, which devices there are, and what each backend needs: for bug reports."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

import torch

from fastht.ops import backends
from fastht.ops.cuda import report as cuda
from fastht.version import __version__

PACKAGES = (
    ("torch", "core"),
    ("safetensors", "core"),
    ("triton", "core on Linux"),
    ("open_clip_torch", "fastht[train]"),
    ("timm", "fastht[train]"),
    ("accelerate", "fastht[train]"),
    ("pydicom", "fastht[train]"),
    ("transformers", "optional"),
)


def report() -> str:
    """Return the tables that ``fastht doctor`` prints."""
    sections = [
        ("fastht", [("fastht", __version__), ("python", _python()), ("system", _system())]),
        ("packages", [(name, _version(name, origin)) for name, origin in PACKAGES]),
        ("devices", _devices()),
        (
            "backends",
            [
                (status.name, f"{'usable' if status.usable else 'not usable'}: {status.detail}")
                for status in backends().values()
            ],
        ),
        ("backend cuda", cuda.rows()),
    ]
    width = max(len(name) for _, rows in sections for name, _ in rows)
    lines = []
    for title, rows in sections:
        lines.append(title)
        lines += [f"  {name:<{width}}  {value}" for name, value in rows]
    return "\n".join(lines)


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _version(package: str, origin: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed ({origin})"


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
