"""Which implementations of the operator exist, which of them can run here, and which one runs."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastht.ops import cpu, cuda, custom_op, plain


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
        run: has the signature of :func:`fastht.ops.plain.ht_adapter`.
        max_channels: the widest bottleneck that it has kernels for; ``None`` stands for any.
        refuses_device: returns why it cannot run on one device of a machine that it can run on, or
            ``None``.
    """

    name: str
    detail: str
    missing: Callable[[], str | None]
    refuses: Callable[[str, torch.dtype], str | None]
    automatic: tuple[str, ...] | None
    run: Callable[..., Tensor]
    max_channels: int | None = None
    refuses_device: Callable[[torch.device], str | None] = lambda device: None

    def refusal(
        self, device: torch.device | None, dtype: torch.dtype, channels: int | None
    ) -> str | None:
        """Return why it cannot take such a call, or ``None``; what is not known is not asked."""
        if channels is not None and self.max_channels is not None and channels > self.max_channels:
            return (
                f"it has kernels for a bottleneck_dim of at most {self.max_channels}, and this is "
                f"{channels}; take a smaller one, or backend='reference'"
            )
        if device is None:
            return None
        return self.refuses(device.type, dtype) or self.refuses_device(device)


@dataclass(frozen=True)
class _Miscompiled:
    """Chips for which releases of Triton make kernels that compute something else.

    Attributes:
        majors: of the chips' compute capability.
        mended: the first release that does not.
        what: what goes wrong, and where it is written down.
    """

    majors: tuple[int, ...]
    mended: tuple[int, int]
    what: str


_MISCOMPILED = (
    _Miscompiled(
        majors=(10, 11),
        mended=(3, 9),
        what="matrix products that differ from run to run or are wrong on tensor cores of that "
        "generation (triton-lang/triton issues 9871, 10590 and 10821)",
    ),
)


def _triton_missing() -> str | None:
    if _interpreting():
        return None
    if not torch.cuda.is_available():
        return "torch sees no CUDA GPU"
    if torch.version.hip is not None:
        return "it is made for NVIDIA GPUs, and this torch is built for ROCm"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton cannot be imported ({error}); it comes with torch on Linux"
    refusals = [_gpu_refused(i) for i in range(torch.cuda.device_count())]
    return None if None in refusals else "; ".join(dict.fromkeys(filter(None, refusals)))


@functools.cache
def _gpu_refused(index: int) -> str | None:
    """Return why Triton's kernels cannot run on a GPU of this machine, or ``None``."""
    import triton

    capability, name = torch.cuda.get_device_capability(index), torch.cuda.get_device_name(index)
    if capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, and this is {name}"
    known = miscompiled(capability, triton.__version__)
    return known and f"{known}, and this is {name}; or take backend='reference'"


def miscompiled(capability: tuple[int, int], version: str) -> str | None:
    """Return what a release of Triton is known to compile wrongly for a chip, or ``None``."""
    release = tuple(int(part) for part in version.split(".")[:2])
    for known in _MISCOMPILED:
        if capability[0] in known.majors and release < known.mended:
            return (
                f"Triton {version} compiles {known.what}; on compute capability "
                f"{capability[0]}.{capability[1]} it takes Triton "
                f"{'.'.join(map(str, known.mended))} or newer"
            )
    return None


def _triton_refuses_device(device: torch.device) -> str | None:
    if device.type != "cuda":
        return None
    return _gpu_refused(torch.cuda.current_device() if device.index is None else device.index)


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
            run=functools.partial(custom_op.run, "triton"),
            max_channels=128,
            refuses_device=_triton_refuses_device,
        ),
        Backend(
            name="cuda",
            detail="native CUDA kernels for NVIDIA GPUs, by name only; bfloat16, float16, float32",
            missing=cuda.missing,
            refuses=cuda.refuses,
            automatic=(),  # until a GPU has shown where it is faster than Triton
            run=functools.partial(custom_op.run, "cuda"),
            max_channels=128,
        ),
        Backend(
            name="cpu",
            detail=cpu.detail(),
            missing=cpu.missing,
            refuses=_cpu_refuses,
            automatic=("cpu",),
            run=functools.partial(custom_op.run, "cpu"),
        ),
        Backend(
            name="reference",
            detail="plain PyTorch, every device and dtype",
            missing=lambda: None,
            refuses=lambda device, dtype: None,
            automatic=None,
            run=plain.ht_adapter,
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
    name: str,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    channels: int | None = None,
) -> Backend:
    """Return the backend that ``name`` stands for here.

    ``"auto"`` takes the first backend, in the order of :func:`backends`, that can run here and is
    made for tensors of ``device`` and ``dtype`` and a bottleneck of ``channels``; any other name is
    that backend or an error, never a substitute.

    Args:
        name: ``"auto"`` or one of :func:`backends`.
        device: where the tokens are; ``None`` (not known yet) asks about the machine alone.
        dtype: the tokens' dtype.
        channels: the bottleneck's width C; ``None`` (not known yet) does not ask about it.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: the backend cannot run on this machine, on such tensors or with a
            bottleneck as wide as that.
    """
    if name != "auto" and name not in _BACKENDS:
        options = ", ".join(map(repr, BACKEND_NAMES))
        raise ValueError(f"there is no backend {name!r}; choose one of {options}")
    return _BACKENDS[_resolve(name, None if device is None else str(device), dtype, channels)]


def backend_of_call(name: str, x: Tensor, channels: int) -> Backend:
    """Return the backend that ``name`` stands for with tokens ``x``, as :func:`resolve_backend`.

    On a GPU it is remembered what was once found to run: asking the driver and looking for
    compilers takes longer than the call.
    """
    if torch.compiler.is_compiling() or x.device.type not in LASTING:
        return resolve_backend(name, x.device, x.dtype, channels)
    kind = name, x.device, x.dtype, channels
    found = _found.get(kind)
    if found is None or _BACKENDS.get(found.name) is not found:
        found = _found[kind] = resolve_backend(name, x.device, x.dtype, channels)
    return found


LASTING = {"cuda"}  # types of devices that stay as they are once a call has run there
_found: dict[tuple[str, torch.device, torch.dtype, int], Backend] = {}


def _is_automatic(backend: Backend, device: torch.device | None) -> bool:
    if backend.automatic is None:
        return True
    return bool(backend.automatic) if device is None else device.type in backend.automatic


def _resolve(name: str, where: str | None, dtype: torch.dtype, channels: int | None) -> str:
    device = None if where is None else torch.device(where)
    if name == "auto":
        return next(
            backend.name
            for backend in _BACKENDS.values()
            if _is_automatic(backend, device)
            and backend.missing() is None
            and backend.refusal(device, dtype, channels) is None
        )
    backend = _BACKENDS[name]
    refusal = backend.missing() or backend.refusal(device, dtype, channels)
    if refusal is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {refusal}")
    return name


# What a machine has does not change while a graph is in use, and how it is found out (imports,
# driver calls) cannot be traced. torch.compiler.assume_constant_result does just this, but
# imports dynamo, which takes longer than all of fastht.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]
