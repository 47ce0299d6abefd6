"""The whole adapter as Triton launches: four forward, nine backward (two and five more for a
full spectral filter, one more where x is rebuilt from the output, and in float32 one for dx).

The functions here allocate, pick configurations and launch; the arithmetic is in the modules that
they name, one a kernel. Nothing waits for the device, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from fastht.ops.call import Call
from fastht.ops.triton.contract import contract_kernel
from fastht.ops.triton.correlate import correlate_kernel
from fastht.ops.triton.down import down_kernel
from fastht.ops.triton.expansion import expand
from fastht.ops.triton.finish import finish_kernel
from fastht.ops.triton.gate_backward import gate_backward_kernel
from fastht.ops.triton.launch import FEW, Folded, Launcher, Params
from fastht.ops.triton.mix_backward import mix_backward_kernel
from fastht.ops.triton.point_backward import point_backward_kernel
from fastht.ops.triton.replay import Recording
from fastht.ops.triton.strides import addressable, in_layout_of
from fastht.ops.triton.up import up_kernel

FINISH_WIDTH = 8  # features a program of the finishing kernel
CORRELATE_PROGRAMS = 1056  # wanted: about eight for each of these
CHUNK = 64  # pixels at least
# The gradients of the finishing kernel after that of the filter, in its order.
FINISHED = (
    *(f"conv{k}.{name}" for k in (3, 5, 7) for name in ("weight", "bias")),
    *(f"noise_gate.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")),
    *("pointwise.weight", "pointwise.bias", "norm.weight", "norm.bias", "gamma", "gammax"),
    *("down.weight", "down.bias", "up.weight", "up.bias"),
)


def allocate_saved(
    x: Tensor, params: Params, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate u, u_norm, stats, sums of u and gate; without ``save``, two of them stay empty."""
    return _allocate_saved(Launcher(x, params, call), save)


def _allocate_saved(run: Launcher, save: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        run.map(),
        run.map() if save else run.new(0, dtype=run.dtype),
        run.new(run.batch, run.tokens, 2) if save else run.new(0),
        run.new(run.batch, run.padded),
        run.new(run.batch, 4),
    )


def forward(
    x: Tensor,
    params: Params,
    seed: Tensor | None,
    call: Call,
    save: bool,
    recording: Recording | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``out`` and what :func:`backward` needs: u, u_norm, stats, sums of u and gate.

    Args:
        x: ``[B, N, D]``, any strides, bf16, fp16 or fp32.
        params: the adapter's parameters, contiguous, any floating dtype.
        seed: ``[1]`` int64 on x's device, where there is dropout.
        call: the options of the call.
        save: whether a backward pass may follow; otherwise the last tensors stay empty.
        recording: takes notice of the launches.
    """
    given, x = x, addressable(x)
    run = Launcher(x, params, call, recording)
    out = torch.empty_like(x)
    saved = u, u_norm, stats, sums, gate = _allocate_saved(run, save)
    if x.numel() == 0:
        return out, *saved
    with run.device():
        folded = run.fold(backward=False)
        pooled = run.new(run.pool_tiles, run.pool_span, run.padded)
        options = run.options("down")
        run.launch(down_kernel, run.pool_tiles)(
            x,
            folded.w_skip,
            folded.w_norm,
            folded.sums,
            folded.scale,
            u,
            u_norm,
            stats,
            pooled,
            run.tokens,
            run.prefix,
            run.dim,
            run.batch * run.tokens,
            run.pool_span,
            *x.stride(),
            call.eps,
            BC=run.padded,
            EVEN_D=run.even(options["BK"]),
            SAVE=save,
            PREFETCH=options["num_stages"],
            PRECISION=run.precision,
            **options,
        )
        kernels = run.gate(pooled, sums, gate, folded, backward=False)
        _up(run, x, u, run.filtered(u), kernels, folded, seed, out, rebuild=False)
    return in_layout_of(given, out), *saved


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
    recording: Recording | None = None,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return ``dx`` and the parameters' gradients by name, as far as they are needed.

    With ``rebuild``, ``x`` is the forward pass's output, and x itself is made of it first, in the
    memory that dx takes afterwards.
    """
    given, x, dout = x, addressable(x), addressable(dout)
    run = Launcher(x, params, call, recording)
    u, u_norm, stats, sums, gate = saved
    dx = torch.empty_like(x) if need_input else None
    # The kernels write every gradient; without tokens none of them runs.
    grads = {
        name: (torch.empty if x.numel() else torch.zeros)(p.shape, dtype=p.dtype, device=p.device)
        for name, p in (params.items() if need_weights else ())
    }
    if x.numel() == 0:
        return dx, grads
    with run.device():
        folded = run.fold(backward=True)
        kernels = run.gate(sums, sums, gate, folded, backward=True)
        f = run.filtered(u)
        if rebuild:
            out, x = x, run.new(*x.shape, dtype=x.dtype) if dx is None else dx
            _up(run, out, u, f, kernels, folded, seed, x, rebuild=True)
        dz = _contract(run, dout, folded)
        dv, z, d_point, d_point_bias = _point_backward(
            run, dz, u, f, kernels, folded, seed, need_weights
        )
        constant, taps, records = folded.scale, folded.bank, folded.bank
        if need_weights or call.has_gate:
            correlation = _correlate(run, dv, f)
            constant, taps, records = _gate_backward(
                run, correlation, d_point_bias, gate, sums, folded
            )
        du, row_means, du_sums = _mix_backward(run, dv, u_norm, constant, folded, kernels)
        if run.filter_kind == "full":
            scratch, d_filter = run.analyse(du, u if need_weights else None)
            of_rows = du_sums[-run.batch * run.height :]
            run.synthesise(scratch, du, (dv, u_norm, folded.sums, folded.scale, row_means, of_rows))
            if d_filter is not None:
                run.not_by_launches_alone()
                grads["spectral_filter"] = d_filter.sum(dim=0).to(run.filter.dtype)
        partial = expand(run, x, dout, du, z, stats, row_means, du_sums, folded, dx, need_weights)
        if need_weights:
            _finish(run, grads, taps, d_point, d_point_bias, gate, records, partial)
    return None if dx is None else in_layout_of(given, dx), grads


def _up(
    run: Launcher,
    x: Tensor,
    u: Tensor,
    f: Tensor,
    kernels: Tensor,
    folded: Folded,
    seed: Tensor | None,
    out: Tensor,
    rebuild: bool,
) -> None:
    """Write x and its update, or less its update, into ``out``."""
    options = run.options("up")
    threshold, inverse = run.dropout()
    tiles = run.tiles(options)
    run.launch(up_kernel, run.batch * tiles)(
        x,
        u,
        f,
        folded.w_up,
        run.params["up.bias"],
        kernels,
        folded.w_point,
        run.params["pointwise.bias"],
        kernels if seed is None else seed,
        out,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        run.dim,
        tiles,
        *x.stride(),
        *out.stride(),
        threshold,
        inverse,
        C=run.channels,
        BC=run.padded,
        EVEN_D=run.even(options["BD"]),
        DROPOUT=seed is not None,
        REBUILD=rebuild,
        PREFETCH=options["num_stages"],
        PRECISION=run.precision,
        **options,
    )


def _contract(run: Launcher, dout: Tensor, folded: Folded) -> Tensor:
    options = run.options("contract")
    total = run.batch * run.tokens
    dz = run.map()
    run.launch(contract_kernel, triton.cdiv(total, options["BM"]))(
        dout,
        folded.w_up,
        dz,
        run.tokens,
        run.dim,
        total,
        *dout.stride(),
        BC=run.padded,
        EVEN_D=run.even(options["BD"]),
        PRECISION=run.precision,
        **options,
    )
    return dz


def _point_backward(
    run: Launcher,
    dz: Tensor,
    u: Tensor,
    f: Tensor,
    kernels: Tensor,
    folded: Folded,
    seed: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options = run.options("point_backward")
    tiles = run.tiles(options)
    programs = run.batch * tiles if weights else 0
    dv = run.map()
    z = run.map() if weights else dv
    d_point = run.new(programs, run.padded, run.padded)
    sums = weights or run.call.has_gate
    d_point_bias = run.new(run.batch * tiles if sums else 0, run.padded)
    threshold, inverse = run.dropout()
    run.launch(point_backward_kernel, run.batch * tiles)(
        dz,
        u,
        f,
        kernels,
        folded.w_point,
        run.params["pointwise.bias"],
        kernels if seed is None else seed,
        z,
        dv,
        d_point,
        d_point_bias,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        tiles,
        threshold,
        inverse,
        C=run.channels,
        BC=run.padded,
        DROPOUT=seed is not None,
        WEIGHTS=weights,
        SUMS=sums,
        PRECISION=run.precision,
        **options,
    )
    return dv, z, d_point, d_point_bias


def _correlate(run: Launcher, dv: Tensor, f: Tensor) -> Tensor:
    """Return the correlation maps, ``[B, chunks, 50, BC]``: more chunks where images are few."""
    options = run.options("correlate")
    positions = run.height * run.width // options["PIXELS"]
    wanted = triton.cdiv(CORRELATE_PROGRAMS, 7 * run.batch)
    share = max(CHUNK // options["PIXELS"], triton.cdiv(positions, wanted))
    chunks = triton.cdiv(positions, share)
    correlation = run.new(run.batch, chunks, 50, run.padded)
    run.launch(correlate_kernel, run.batch * chunks * 7)(
        dv,
        f,
        correlation,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        chunks,
        share,
        BC=run.padded,
        **options,
    )
    return correlation


def _gate_backward(
    run: Launcher,
    correlation: Tensor,
    dy_sums: Tensor,
    gate: Tensor,
    sums: Tensor,
    folded: Folded,
) -> tuple[Tensor, Tensor, Tensor]:
    taps = run.new(run.batch, 50, run.padded)
    constant = run.new(run.batch, run.padded)
    records = run.new(run.batch, 4 + 2 * run.padded_hidden + 2 * run.padded)
    run.launch(gate_backward_kernel, run.batch)(
        correlation,
        dy_sums,
        gate,
        sums,
        folded.bank,
        folded.w_point,
        run.filter,
        *run.gate_params[:3],
        taps,
        constant,
        records,
        run.height * run.width,
        dy_sums.shape[0] // run.batch,
        correlation.shape[1],
        run.filter_stride,
        C=run.channels,
        CQ=run.hidden,
        BC=run.padded,
        BQ=run.padded_hidden,
        FILTER=run.filter_kind,
        GATED=run.call.has_gate,
        **FEW | {"num_warps": max(4, run.padded // 16)},
    )
    return constant, taps, records


def _mix_backward(
    run: Launcher, dv: Tensor, u_norm: Tensor, constant: Tensor, folded: Folded, kernels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    options = run.options("mix_backward")
    tiles = run.tiles(options)
    du = run.map()
    row_means = run.new(run.batch, run.tokens, 2)
    full = run.filter_kind == "full"
    # With a full filter, the rows of patches are finished by the filter's own kernel.
    du_sums = run.new(run.batch * (tiles + full * run.height), run.padded)
    run.launch(mix_backward_kernel, run.batch * tiles)(
        dv,
        u_norm,
        kernels,
        constant,
        folded.sums,
        folded.scale,
        du,
        row_means,
        du_sums,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        run.dim,
        tiles,
        BC=run.padded,
        FULL=full,
        GATED=run.call.has_gate,
        **options,
    )
    return du, row_means, du_sums


def _finish(
    run: Launcher,
    grads: Params,
    taps: Tensor,
    d_point: Tensor,
    d_point_bias: Tensor,
    gate: Tensor,
    records: Tensor,
    partial: tuple[Tensor, Tensor, Tensor],
) -> None:
    p, unused = run.params, grads["gamma"]
    programs = 53 + run.padded + run.hidden + triton.cdiv(run.dim, FINISH_WIDTH)
    run.launch(finish_kernel, programs)(
        taps,
        d_point,
        d_point_bias,
        gate,
        records,
        run.filter,
        *partial,
        *(p[name] for name in ("norm.weight", "norm.bias", "gamma", "gammax", "down.weight")),
        grads.get("spectral_filter", unused),
        *(grads.get(name, unused) for name in FINISHED),
        run.dim,
        run.batch,
        d_point.shape[0],
        partial[0].shape[0],
        run.filter_stride,
        C=run.channels,
        CQ=run.hidden,
        BC=run.padded,
        BQ=run.padded_hidden,
        BD=FINISH_WIDTH,
        FILTER=run.filter_kind,
        GATED=run.call.has_gate,
        **FEW | {"num_warps": 8},
    )
