"""The whole adapter as launches of native CUDA kernels: three forward, five backward (more for a
full spectral filter, one more where x is rebuilt from the output).

The launches are planned in C++ (``csrc/cuda/plan.h``); here tensors become addresses. A plan
depends on the configuration alone and is made at its first call, which is also when its kernels
are compiled or found, and loaded. Later calls wait for nothing, so a CUDA graph can capture them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastht.ops.call import Call
from fastht.ops.cuda import kernels, native, simulated
from fastht.ops.cuda.sources import Kernel

Params = Mapping[str, Tensor]
_FORMATS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_ALIGNMENT = 16  # bytes, of addresses and strides, that the fast loads need
_FILTERS = {"none": 0, "channel": 1, "full": 2}


def allocate_saved(
    x: Tensor, params: Params, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate u, u_norm, stats, pooled and gate; without ``save`` all of them are empty."""
    batch, tokens = x.shape[:2]
    padded = native.padded_channels(params["down.bias"].shape[0])
    maps, number = call.product_dtype, torch.float32

    def new(dtype: torch.dtype, *shape: int) -> Tensor:
        if not save:
            return torch.empty(0, dtype=dtype, device=x.device)
        strides = (shape[1] * shape[2], shape[2], 1) if len(shape) == 3 else (shape[1], 1)
        # Half of what torch.empty takes to read its arguments.
        return torch.empty_strided(shape, strides, dtype=dtype, device=x.device)

    return (
        new(maps, batch, tokens, padded),
        new(maps, batch, tokens, padded),
        new(number, batch, tokens, 2),
        new(number, batch, padded),
        new(number, batch, 4),
    )


def forward(
    x: Tensor, params: Params, seed: Tensor | None, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``out`` and what :func:`backward` needs; see :mod:`fastht.ops.custom_op`."""
    out = torch.empty_like(x)
    saved = allocate_saved(x, params, call, save)
    if x.numel() == 0:
        return out, *saved
    rows, target, (given, formats) = _rows(x), _writable(out), _plain(params)
    ready = _ready((rows, target), given, formats, seed, call, None)
    workspace = ready.workspace(x)  # lives until all launches are in the stream
    ready.plan.run(
        ready.problem,
        ready.target,
        _stream(x),
        _tokens(rows),
        _tokens(target),
        _arrays(given, formats),
        0 if seed is None else seed.data_ptr(),
        [t.data_ptr() for t in saved],
        workspace.data_ptr(),
    )
    if target is not out:
        out.copy_(target)
    return out, *saved


def backward(
    dout: Tensor,
    x: Tensor,
    params: Params,
    seed: Tensor | None,
    saved: Sequence[Tensor],
    call: Call,
    need_input: bool,
    need_weights: bool,
    rebuild: bool = False,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return ``dx`` and the parameters' gradients by name, as far as they are needed.

    With ``rebuild``, ``x`` is the forward pass's output, and x itself is made of it first, in the
    memory that dx takes afterwards.
    """
    dx = torch.empty_like(x) if need_input else None
    if x.numel() == 0:
        return dx, {name: torch.zeros_like(p) for name, p in params.items() if need_weights}
    rows, upstream, (given, formats) = _rows(x), _rows(dout), _plain(params)
    target = None if dx is None else _writable(dx)
    grads = {name: torch.empty_like(p) for name, p in given.items()} if need_weights else {}
    out = None
    if rebuild:
        out = rows
        rows = torch.empty(x.shape, dtype=x.dtype, device=x.device) if target is None else target
    tokens = [t for t in (rows, upstream, target, out) if t is not None]
    ready = _ready(tokens, given, formats, seed, call, (need_input, need_weights, rebuild))
    workspace = ready.workspace(x)
    ready.plan.run(
        ready.problem,
        ready.target,
        _stream(x),
        _tokens(upstream),
        _tokens(rows),
        None if target is None else _tokens(target),
        _arrays(given, formats),
        _arrays(grads, formats) if need_weights else None,
        0 if seed is None else seed.data_ptr(),
        [t.data_ptr() for t in saved],
        workspace.data_ptr(),
        None if out is None else _tokens(out),
    )
    if dx is not None and target is not None and target is not dx:
        dx.copy_(target)
    if given is not params:
        grads = {name: g.to(params[name].dtype) for name, g in grads.items()}
    return dx, grads


@dataclass(frozen=True)
class Configuration:
    """All that the plan of a pass depends on, as ``csrc/cuda/plan.h`` names it."""

    batch: int
    prefix: int
    height: int
    width: int
    dim: int
    channels: int
    hidden: int
    eps: float
    has_gate: bool
    filter: int
    x: int
    products: int
    tf32: bool
    dropout: float
    aligned: bool

    def problem(self) -> Any:
        """Return it for the native code."""
        return native.Problem(*vars(self).values())


@dataclass(frozen=True)
class Ready:
    """A plan whose kernels can be started."""

    plan: Any
    problem: Any
    target: Any
    workspace_bytes: int

    def workspace(self, x: Tensor) -> Tensor:
        """Return memory for what one call keeps between its launches."""
        return torch.empty_strided(
            (self.workspace_bytes,), (1,), dtype=torch.uint8, device=x.device
        )


def plan_of(
    configuration: Configuration, device: tuple[int, int, int], needs: tuple[bool, ...] | None
) -> tuple[Any, list[Kernel]]:
    """Return the plan of a pass, forward where ``needs`` is ``None``, and its kernels.

    Args:
        configuration: of the call.
        device: bytes of shared memory of a block and of a multiprocessor, and how many of these.
        needs: whether dx and the parameters' gradients are needed and, if given, whether x is
            rebuilt.
    """
    problem, limits = configuration.problem(), native.Device(*device)
    if needs is None:
        plan = native.ForwardPlan(problem, limits)
    else:
        plan = native.BackwardPlan(problem, limits, *needs)
    return plan, [Kernel(function, source) for function, source, _ in plan.kernels]


def dry_run(
    plan: Any,
    configuration: Configuration,
    needs: tuple[bool, ...] | None,
    launch: Callable[[int, int, int, int], None],
) -> None:
    """Tell ``launch`` of each launch of a plan, on addresses where nothing is.

    It is given the number of the kernel, blocks, bytes of shared memory, the parameters' address.
    """
    nowhere, tokens = 1 << 20, (1 << 20, configuration.dim, configuration.dim)
    count = 16 + 4 * configuration.has_gate + (configuration.filter != 0)
    arrays, target = [(nowhere, 2)] * count, native.Target(launch)
    ends = (nowhere, [nowhere] * 5, nowhere)
    problem = configuration.problem()
    if needs is None:
        plan.run(problem, target, 0, tokens, tokens, arrays, *ends)
    else:
        dx, grads = (tokens if needs[0] else None), (arrays if needs[1] else None)
        out = tokens if needs[2:] == (True,) else None
        plan.run(problem, target, 0, tokens, tokens, dx, arrays, grads, *ends, out)


@functools.lru_cache(maxsize=256)
def _prepare(
    configuration: Configuration, device: torch.device, needs: tuple[bool, ...] | None
) -> Ready:
    if device.type == "cpu":
        plan, wanted = plan_of(configuration, simulated.DEVICE, needs)
        threads = [count for _, _, count in plan.kernels]
        target = native.Target(simulated.launcher(wanted, threads))
        return Ready(plan, configuration.problem(), target, plan.workspace_bytes)
    properties = torch.cuda.get_device_properties(device)
    limits = (
        properties.shared_memory_per_block_optin,
        properties.shared_memory_per_multiprocessor,
        properties.multi_processor_count,
    )
    plan, wanted = plan_of(configuration, limits, needs)
    arch = kernels.architecture((properties.major, properties.minor))
    names = []
    found = kernels.images(wanted, arch)
    for kernel in wanted:
        native.load(device.index, kernel.instance, kernel.symbol, found[kernel])
        names.append(kernel.instance)
    target = native.Target(device.index, names)
    return Ready(plan, configuration.problem(), target, plan.workspace_bytes)


_known: dict[Hashable, Ready] = {}


def _ready(
    tokens: Sequence[Tensor],
    params: Params,
    formats: Sequence[int],
    seed: Tensor | None,
    call: Call,
    needs: tuple[bool, ...] | None,
) -> Ready:
    """Return the plan for x, which is the first of ``tokens``, and the other token tensors."""
    x, addresses, given = tokens[0], 0, params.values()
    for t in tokens:
        addresses |= t.data_ptr()
    # All that the configuration is made of, where making it takes longer than a launch.
    kind = (
        needs,
        call,
        seed is None,
        addresses % _ALIGNMENT,
        x.dtype,
        x.shape,
        *formats,
        *[t.stride() for t in tokens],
        *[t.get_device() for t in tokens],
        *[p.get_device() for p in given],
        *[p.shape for p in given],
    )
    found = _known.get(kind)
    if found is None:
        for name, p in params.items():
            if p.device != x.device:
                raise ValueError(f"{name} is on {p.device}, and x on {x.device}")
        dropout = 0.0 if seed is None else call.dropout
        configuration = configuration_of(x, tuple(tokens[1:]), params, call, dropout)
        found = _prepare(configuration, x.device, needs)
        if len(_known) >= 1024:
            _known.clear()
        _known[kind] = found
    return found


def forget() -> None:
    """Let every later call make its plan anew, for whoever changes how plans are made."""
    _known.clear()
    _prepare.cache_clear()


def configuration_of(
    x: Tensor, others: tuple[Tensor, ...], params: Params, call: Call, dropout: float
) -> Configuration:
    """Return what a call's plan depends on; ``others`` are the call's other token tensors.

    Raises:
        ValueError: a parameter is smaller or larger than the kernels take it to be.
    """
    weight = params.get("spectral_filter")
    kind = "none" if weight is None else "channel" if weight.ndim == 1 else "full"
    channels, dim = params["down.bias"].shape[0], x.shape[2]
    hidden = params["noise_gate.0.bias"].shape[0] if call.has_gate else 0
    check_sizes(params, dim, channels, hidden, call.grid_size)
    return Configuration(
        x.shape[0],
        call.num_prefix_tokens,
        *call.grid_size,
        dim,
        channels,
        hidden,
        call.eps,
        call.has_gate,
        _FILTERS[kind],
        _FORMATS[x.dtype],
        _FORMATS[call.product_dtype],
        call.tf32 and call.product_dtype == torch.float32,
        dropout,
        dim % 8 == 0 and all(_is_aligned(t) for t in (x, *others)),
    )


def check_sizes(
    params: Params, dim: int, channels: int, hidden: int, grid: tuple[int, int]
) -> None:
    """Raise where a parameter is smaller or larger than the kernels take it to be.

    Raises:
        ValueError: naming the parameter.
    """
    wanted = {
        "down.weight": channels * dim, "down.bias": channels, "up.weight": channels * dim,
        "pointwise.weight": channels * channels, "pointwise.bias": channels,
        "noise_gate.0.weight": hidden * channels, "noise_gate.0.bias": hidden,
        "noise_gate.2.weight": 3 * hidden, "noise_gate.2.bias": 3,
    }  # fmt: skip
    for k in (3, 5, 7):
        wanted |= {f"conv{k}.weight": channels * k * k, f"conv{k}.bias": channels}
    for name, p in params.items():
        if name == "spectral_filter":
            size = channels * (1 if p.ndim == 1 else grid[0] * (grid[1] // 2 + 1))
        else:
            size = wanted.get(name, dim)
        if p.numel() != size:
            raise ValueError(f"{name} has {p.numel()} elements; {size} are needed")


def _is_aligned(t: Tensor) -> bool:
    size = t.element_size()
    return t.data_ptr() % _ALIGNMENT == 0 and all(
        t.stride(i) * size % _ALIGNMENT == 0 for i in (0, 1)
    )


def _stream(x: Tensor) -> int:
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def _rows(t: Tensor) -> Tensor:
    """Return tokens whose features are neighbours in memory."""
    return t if t.stride(2) == 1 else t.contiguous()


def _writable(t: Tensor) -> Tensor:
    return t if t.stride(2) == 1 else torch.empty(t.shape, dtype=t.dtype, device=t.device)


def _plain(params: Params) -> tuple[Params, Sequence[int]]:
    """Return the parameters, all of them in dtypes that the kernels read, and these by number."""
    formats = [_FORMATS.get(p.dtype) for p in params.values()]
    if None in formats:
        params = {name: p if p.dtype in _FORMATS else p.float() for name, p in params.items()}
        formats = [_FORMATS[p.dtype] for p in params.values()]
    return params, formats  # type: ignore[return-value]


def _arrays(tensors: Params, formats: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([t.data_ptr() for t in tensors.values()], formats, strict=True))


def _tokens(t: Tensor) -> tuple[int, int, int]:
    return t.data_ptr(), t.stride(0), t.stride(1)
