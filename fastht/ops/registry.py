"""Which implementations of the operator exist, which of them can run here, and which one runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastht import reference


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
        run: has the signature of :func:`fastht.reference.ht_adapter`.
    """

    name: str
    detail: str
    missing: Callable[[], str | None]
    run: Callable[..., Tensor]


# The order is the order in which ``auto`` prefers them.
_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="reference",
            detail="plain PyTorch, every device and dtype",
            missing=lambda: None,
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


def resolve_backend(name: str) -> Backend:
    """Return the backend that ``name`` stands for here.

    ``"auto"`` takes the first usable backend in the order of :func:`backends`; any other name is
    that backend or an error, never a substitute.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailableError: the backend cannot run on this machine.
    """
    if name == "auto":
        return next(backend for backend in _BACKENDS.values() if backend.missing() is None)
    if name not in _BACKENDS:
        options = ", ".join(map(repr, BACKEND_NAMES))
        raise ValueError(f"there is no backend {name!r}; choose one of {options}")
    backend = _BACKENDS[name]
    missing = backend.missing()
    if missing is not None:
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {missing}")
    return backend
