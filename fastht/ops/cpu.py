"""The native CPU kernels (``csrc/cpu``): what they need, which instructions they use, their calls.

The extension is optional; everything here but :func:`missing` needs it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastht.ops.call import Call

_native: Any
try:
    from fastht import _native  # type: ignore[attr-defined, no-redef]
except ImportError as error:  # not built; or built for another Python or C++ library
    _native = None
    _reason = str(error)

_forced = ""


def missing() -> str | None:
    """Return why the native kernels cannot run here, or ``None``."""
    if _native is not None:
        return None
    return (
        f"the native extension is not built or cannot be loaded ({_reason}); install a C++ "
        "compiler and reinstall fastht (with FASTHT_NATIVE=1 the build says what it lacks)"
    )


def detail() -> str:
    """Return one line for people: what the kernels take and which instructions they use here."""
    line = "fused native kernels for CPUs; bfloat16, float32"
    if _native is None:
        return line
    taken = dict.fromkeys([path(torch.bfloat16), path(torch.float32)])  # often the same for both
    return f"{line}; on this processor by {', '.join(taken)}"


def paths() -> list[str]:
    """Return the instruction-set paths that this processor can run, fastest first."""
    return [] if _native is None else _native.paths()


def path(product_dtype: torch.dtype = torch.float32) -> str:
    """Return the instruction-set path that a call with products in ``product_dtype`` takes.

    Raises:
        ValueError: a path is forced that such a call cannot take.
    """
    return _native.choose_path(_forced, product_dtype == torch.bfloat16)


@contextlib.contextmanager
def forced_path(name: str) -> Iterator[None]:
    """Make every call in this process take the path ``name``, one of :func:`paths`.

    Raises:
        ValueError: this build or this processor has no such path.
    """
    global _forced
    if name not in paths():
        raise ValueError(f"there is no path {name!r} here; choose one of {', '.join(paths())}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def allocate_saved(
    x: Tensor, params: Mapping[str, Tensor], call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate u, (nothing), stats, pooled and gate, all float32; without ``save`` all are empty.

    264 bytes a token beside x itself where C is 64.
    """
    batch, tokens, channels = x.shape[0], x.shape[1], params["down.bias"].shape[0]
    shapes = ((batch, tokens, channels), (0,), (batch, tokens, 2), (batch, channels), (batch, 3))
    u, nothing, stats, pooled, gate = (
        torch.empty(shape if save else (0,), dtype=torch.float32, device=x.device)
        for shape in shapes
    )
    return u, nothing, stats, pooled, gate


def forward(
    x: Tensor, params: Mapping[str, Tensor], seed: Tensor | None, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``out`` and what :func:`backward` needs; see :mod:`fastht.ops.custom_op`."""
    out = torch.empty_like(x)
    saved = allocate_saved(x, params, call, save)
    if x.numel():
        x, target, given = _rows(x), _writable(out), _plain(params)
        _native.forward(
            _options(x, given, seed, call),
            _arrays(given),
            _tokens(x),
            _tokens(target),
            _addresses(saved) if save else None,
            _forced,
        )
        if target is not out:
            out.copy_(target)
    return out, *saved


def backward(
    dout: Tensor,
    x: Tensor,
    params: Mapping[str, Tensor],
    seed: Tensor | None,
    saved: Sequence[Tensor],
    call: Call,
    need_input: bool,
    need_weights: bool,
    rebuild: bool = False,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return ``dx`` and the parameters' gradients by name, as far as they are needed.

    With ``rebuild``, ``x`` is the forward pass's output; x itself is made of it image by image.
    """
    dx = torch.empty_like(x) if need_input else None
    if not x.numel():
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        return dx, grads if need_weights else {}
    x, dout, given = _rows(x), _rows(dout), _plain(params)
    target = None if dx is None else _writable(dx)
    grads = {name: torch.empty_like(p) for name, p in given.items()} if need_weights else {}
    _native.backward(
        _options(x, given, seed, call),
        _arrays(given),
        _tokens(x),
        _tokens(dout),
        _addresses(saved),
        None if target is None else _tokens(target),
        _arrays(grads) if need_weights else None,
        rebuild,
        _forced,
    )
    if dx is not None and target is not None and target is not dx:
        dx.copy_(target)
    if given is not params:
        grads = {name: g.to(params[name].dtype) for name, g in grads.items()}
    return dx, grads


def _options(x: Tensor, params: Mapping[str, Tensor], seed: Tensor | None, call: Call) -> Any:
    return _native.Options(
        x.shape[0],
        call.num_prefix_tokens,
        *call.grid_size,
        x.shape[2],
        params["down.bias"].shape[0],
        call.eps,
        call.has_filter,
        call.has_gate,
        call.product_dtype == torch.bfloat16,
        0.0 if seed is None else call.dropout,
        0 if seed is None else int(seed),
        torch.get_num_threads(),
    )


def _rows(t: Tensor) -> Tensor:
    """Return tokens whose features are neighbours in memory."""
    return t if t.stride(2) == 1 else t.contiguous()


def _writable(t: Tensor) -> Tensor:
    return t if t.stride(2) == 1 else torch.empty(t.shape, dtype=t.dtype, device=t.device)


def _plain(params: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the parameters as they are, or all of them in dtypes that the kernels read."""
    native = (torch.float32, torch.bfloat16)
    if all(p.dtype in native for p in params.values()):
        return params
    return {name: p if p.dtype in native else p.float() for name, p in params.items()}


def _arrays(tensors: Mapping[str, Tensor]) -> list[tuple[int, int, bool]]:
    half = torch.bfloat16
    return [(t.data_ptr(), t.numel(), t.dtype is half) for t in tensors.values()]


def _tokens(t: Tensor) -> tuple[int, bool, int, int]:
    return t.data_ptr(), t.dtype == torch.bfloat16, t.stride(0), t.stride(1)


def _addresses(saved: Sequence[Tensor]) -> tuple[int, int, int, int]:
    u, _, stats, pooled, gate = saved
    return u.data_ptr(), stats.data_ptr(), pooled.data_ptr(), gate.data_ptr()
