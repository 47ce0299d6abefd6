"""Which implementations of the sweeps exist, which of them can run here, and which one runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType

import torch

from fastht.ops.registry import BackendStatus, BackendUnavailableError, resolve_backend
from fastht.ops.registry import backends as adapter_backends


@dataclass(frozen=True)
class Backend:
    """One implementation of the sweeps.

    Attributes:
        name: what ``backend=`` calls it.
        detail: one line for people.
        module: has ``forward`` and ``backward`` as ``fastht.losses.sweeps``; imported when needed.
        missing: returns what this machine lacks to run it, or ``None``.
        refuses: returns why it cannot take features on a device and of a dtype, or ``None``.
    """

    name: str
    detail: str
    module: str
    missing: Callable[[], str | None]
    refuses: Callable[[torch.device, torch.dtype], str | None]

    def load(self) -> ModuleType:
        """Import the module with the sweeps."""
        return importlib.import_module(self.module)


def _triton_missing() -> str | None:
    # Machines, releases and chips are the adapter's.
    status = adapter_backends()["triton"]
    return None if status.usable else status.detail


def _triton_refuses(device: torch.device, dtype: torch.dtype) -> str | None:
    if dtype == torch.float64 and device.type == "cpu":  # under the interpreter, for tests
        if version("triton").startswith("3.4."):
            return "the products of Triton 3.4 take no float64"
        return None
    try:
        resolve_backend("triton", device, dtype)
    except BackendUnavailableError as error:
        return (
            str(error).partition(": ")[2].replace("tokens", "features").replace("x is", "they are")
        )
    return None


# The order is the order in which ``auto`` prefers them; the reference is for asking by name.
_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "triton",
            "fused Triton kernels for NVIDIA GPUs; bfloat16, float16, float32",
            "fastht.losses.triton",
            _triton_missing,
            _triton_refuses,
        ),
        Backend(
            "blocked",
            "plain PyTorch by blocks, every device and dtype",
            "fastht.losses.blocked",
            lambda: None,
            lambda device, dtype: None,
        ),
        Backend(
            "reference",
            "plain PyTorch with the B x B matrices, by name only",
            "fastht.losses.sweeps",
            lambda: None,
            lambda device, dtype: None,
        ),
    )
}

BACKEND_NAMES = ("auto", *_BACKENDS)


def backends() -> dict[str, BackendStatus]:
    """Tell for each backend of the losses whether it can run on this machine, or why not."""
    status = {}
    for backend in _BACKENDS.values():
        missing = backend.missing()
        status[backend.name] = BackendStatus(
            backend.name, missing is None, missing or backend.detail
        )
    return status


def resolve(name: str, device: torch.device | str, dtype: torch.dtype) -> str:
    """Return the name of the backend that ``name`` stands for with such features.

    ``"auto"`` takes Triton's kernels for 16-bit features where they can run, and the blocked sweeps
    elsewhere: in float32 an H200 found Triton's faster than the dense form at B = 16,384, where no
    other size has been timed, but one gradient of the scale beyond the rule at B = 4,096, and no
    GPU has run what was made against that. Under Triton's interpreter it takes the blocked ones
    too: the interpreter is for tests, which ask by name. Any other name is that backend or an
    error, never a substitute.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: the backend cannot run on this machine or on such features.
    """
    if name != "auto" and name not in _BACKENDS:
        options = ", ".join(map(repr, BACKEND_NAMES))
        raise ValueError(f"there is no backend {name!r}; choose one of {options}")
    return _resolve(name, str(device), dtype)


def implementation(name: str) -> ModuleType:
    """Return the module with the sweeps of a resolved backend."""
    return _BACKENDS[name].load()


def _resolve(name: str, where: str, dtype: torch.dtype) -> str:
    device = torch.device(where)
    if name == "auto":
        triton = _BACKENDS["triton"]
        wanted = device.type == "cuda" and dtype.itemsize == 2
        if wanted and not (triton.missing() or triton.refuses(device, dtype)):
            return "triton"
        return "blocked"
    backend = _BACKENDS[name]
    refusal = backend.missing() or backend.refuses(device, dtype)
    if refusal is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {refusal}")
    return name


# As for the adapter: what a machine has cannot be traced, and does not change.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]
