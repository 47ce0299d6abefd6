"""Which implementations of the operator exist, which of them can run here, and which one runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastht import reference
from fastht.ops import cpu, cuda


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run here; the message says why."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can run on this machine, and why not where it cannot."""

    name: str
    usable: bool
    detail: str


@dataclass(frozen=True)
class Backend:
    """One implementation of the operator.

    Attributes:
        name: what ``backend=`` calls it.
        detail: one line for people.
        missing: returns what this machine lacks to run it, or ``None``.
        refuses: returns why it cannot take tensors of a device type and dtype, or ``None``.
        automatic: the device types for which ``auto`` considers it; ``None`` stands for all, and
            an empty tuple for a backend that has to be asked for by name.
        run: has the signature of :func:`fastht.reference.ht_adapter`.
    """

    name: str
    detail: str
    missing: Callable[[], str | None]
    refuses: Callable[[str, torch.dtype], str | None]
    automatic: tuple[str, ...] | None
    run: Callable[..., Tensor]


def _triton_missing() -> str | None:
    if _interpreting():
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, and this torch is built for ROCm"
    old = [
        torch.cuda.get_device_name(i)
        for i in range(torch.cuda.device_count())
        if torch.cuda.get_device_capability(i) < (8, 0)
    ]
    if len(old) == torch.cuda.device_count():
        return f"it needs compute capability 8.0 or newer, and this is {', '.join(old)}"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); it comes with torch on Linux"
    return None


def _triton_refuses(device: str, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"it takes bfloat16, float16 and float32 tokens, not {dtype}"
    if device != ("cpu" if _interpreting() else "cuda"):
        wanted = "CPU tensors under Triton's interpreter" if _interpreting() else "CUDA tensors"
        return f"it takes {wanted}, and x is on {device!r}"
    return None


def _interpreting() -> bool:
    """Whether kernels made now run in Triton's interpreter (``TRITON_INTERPRET=1``), for tests."""
    if "triton" not in sys.modules and not os.environ.get("TRITON_INTERPRET"):
        return False  # without importing it: that takes longer than fastht itself
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.knobs.runtime.interpret)


def _cpu_refuses(device: str, dtype: torch.dtype) -> str | None:
    if dtype not in (torch.bfloat16, torch.float32):
        return f"it takes bfloat16 and float32 tokens, not {dtype}"
    if device != "cpu":
        return f"it takes CPU tensors, and x is on {device!r}"
    return None


def _run_triton(x: Tensor, params: dict[str, Tensor], **options: object) -> Tensor:
    from fastht.ops.custom_op import run  # not before it is needed: it registers the ops

    return run("triton", x, params, **options)  # type: ignore[arg-type]


def _run_cuda(x: Tensor, params: dict[str, Tensor], **options: object) -> Tensor:
    from fastht.ops.custom_op import run

    return run("cuda", x, params, **options)  # type: ignore[arg-type]


def _run_cpu(x: Tensor, params: dict[str, Tensor], **options: object) -> Tensor:
    from fastht.ops.custom_op import run

    return run("cpu", x, params, **options)  # type: ignore[arg-type]


# The order is the order in which ``auto`` prefers them.
_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="triton",
            detail="fused Triton kernels for NVIDIA GPUs; bfloat16, float16, float32",
            missing=_triton_missing,
            refuses=_triton_refuses,
            automatic=("cuda",),
            run=_run_triton,
        ),
        Backend(
            name="cuda",
            detail="native CUDA kernels for NVIDIA GPUs, by name only; bfloat16, float16, float32",
            missing=cuda.missing,
            refuses=cuda.refuses,
            automatic=(),  # until a GPU has shown where it is faster than Triton
            run=_run_cuda,
        ),
        Backend(
            name="cpu",
            detail=cpu.detail(),
            missing=cpu.missing,
            refuses=_cpu_refuses,
            automatic=("cpu",),
            run=_run_cpu,
        ),
        Backend(
            name="reference",
            detail="plain PyTorch, every device and dtype",
            missing=lambda: None,
            refuses=lambda device, dtype: None,
            automatic=None,
            run=reference.ht_adapter,
        ),
    )
}

BACKEND_NAMES = ("auto", *_BACKENDS)


def backends() -> dict[str, BackendStatus]:
    """Tell for each backend whether it can run on this machine, or why not."""
    status = {}
    for backend in _BACKENDS.values():
        missing = backend.missing()
        status[backend.name] = BackendStatus(
            backend.name, missing is None, missing or backend.detail
        )
    return status


def resolve_backend(
    name: str, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Backend:
    """Return the backend that ``name`` stands for here.

    ``"auto"`` takes the first backend, in the order of :func:`backends`, that can run here and is
    made for tensors of ``device`` and ``dtype``; any other name is that backend or an error,
    never a substitute.

    Args:
        name: ``"auto"`` or one of :func:`backends`.
        device: where the tokens are; ``None`` (not known yet) asks about the machine alone.
        dtype: the tokens' dtype.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: the backend cannot run on this machine or on such tensors.
    """
    if name != "auto" and name not in _BACKENDS:
        options = ", ".join(map(repr, BACKEND_NAMES))
        raise ValueError(f"there is no backend {name!r}; choose one of {options}")
    return _BACKENDS[_resolve(name, None if device is None else torch.device(device).type, dtype)]


def _is_automatic(backend: Backend, device: str | None) -> bool:
    if backend.automatic is None:
        return True
    return bool(backend.automatic) if device is None else device in backend.automatic


def _resolve(name: str, device: str | None, dtype: torch.dtype) -> str:
    if name == "auto":
        return next(
            backend.name
            for backend in _BACKENDS.values()
            if _is_automatic(backend, device)
            and backend.missing() is None
            and (device is None or backend.refuses(device, dtype) is None)
        )
    backend = _BACKENDS[name]
    missing = backend.missing()
    if missing is None and device is not None:
        missing = backend.refuses(device, dtype)
    if missing is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {missing}")
    return name


# What a machine has does not change while a graph is in use, and how it is found out (imports,
# driver calls) cannot be traced. torch.compiler.assume_constant_result does just this, but
# imports dynamo, which takes longer than all of fastht.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]
