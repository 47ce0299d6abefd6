"""The whole adapter as Triton launches: four forward, seven backward (two and five more for a
full spectral filter).

The functions here allocate, pick configurations and launch; the arithmetic is in the modules that
they name, one a kernel. Nothing waits for the device, so a CUDA graph can capture all of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastht.ops.call import Call
from fastht.ops.triton import configs
from fastht.ops.triton.contract import contract_kernel
from fastht.ops.triton.down import down_kernel
from fastht.ops.triton.expand import expand_kernel
from fastht.ops.triton.finish import finish_mix_kernel, finish_projections_kernel
from fastht.ops.triton.fold import fold_kernel
from fastht.ops.triton.gate import gate_kernel
from fastht.ops.triton.mix_backward import mix_backward_kernel
from fastht.ops.triton.spectral import analyse_kernel, synthesise_kernel
from fastht.ops.triton.up import up_kernel

FOLD_TILE = 4096  # weights a program of the fold kernel
FINISH_WIDTH = 16  # features a program of the finishing kernel
EXPAND_PROGRAMS = 264  # about two for each multiprocessor of the largest devices
FILTER_GROUPS = 16  # groups of images in the filter's gradient

# Multiply and add in one instruction: said here, as Triton's own default is about to change.
FUSED_ARITHMETIC = {"enable_fp_fusion": True}
# Launches that no size of tile matters to. Left alone, the assembler squeezes some of them into
# fewer registers than they need.
SMALL = {"num_warps": 4, "maxnreg": 128, **FUSED_ARITHMETIC}

Params = Mapping[str, Tensor]


@dataclass
class Folded:
    """What :mod:`fastht.ops.triton.fold` makes of the parameters."""

    w_skip: Tensor
    w_norm: Tensor
    w_down: Tensor
    w_up: Tensor
    w_point: Tensor
    sums: Tensor
    scale: Tensor
    bank: Tensor


class Launcher:
    """Sizes, padding and configurations that all launches of one call share."""

    def __init__(self, x: Tensor, params: Params, call: Call) -> None:
        self.x, self.params, self.call = x, params, call
        self.batch, self.tokens = x.shape[:2]
        # The parameters' sizes are numbers even where a graph is traced for any batch size.
        self.dim = int(params["gamma"].shape[0])
        self.height, self.width = call.grid_size
        self.prefix = call.num_prefix_tokens
        self.channels = int(params["down.bias"].shape[0])
        self.hidden = int(params["noise_gate.0.bias"].shape[0]) if call.has_gate else 1
        self.padded = max(16, triton.next_power_of_2(self.channels))
        self.padded_hidden = max(16, triton.next_power_of_2(self.hidden))
        self.dtype = call.product_dtype
        self.fold_width = FOLD_TILE // self.padded
        self.slices = triton.cdiv(self.dim, self.fold_width)
        # Three TensorFloat-32 products add up to float32's digits. They are taken where float32
        # arithmetic itself, which unrolls over all channels, has too few registers.
        self.strict = "tf32" if call.tf32 else "ieee"
        self.precision = "tf32x3" if self.strict == "ieee" and self.padded >= 128 else self.strict
        self.filter = params["spectral_filter"] if call.has_filter else params["gamma"]
        self.filter_kind = "none"
        self.filter_stride = 1
        if call.has_filter:
            self.filter_kind = "full" if self.filter.ndim == 3 else "channel"
            self.filter_stride = self.filter.stride(0)
        self._arch = configs.architecture(x.device)
        self._numbers = configs.number_class(x.dtype, self.dtype, call.tf32)
        self.pool_tiles = triton.cdiv(self.tokens, self.options("down")["BM"])
        self.gate_params = (
            [params[f"noise_gate.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
            if call.has_gate
            else [params["gamma"]] * 4
        )

    def options(self, kernel: str) -> dict[str, int]:
        """Return the configuration of one kernel for this call."""
        chosen = configs.options(kernel, self._arch, self.padded, self._numbers, self.dim)
        return {**chosen, **FUSED_ARITHMETIC}

    def even(self, width: int) -> bool:
        """Whether the features fill every tile of ``width``: then the kernels mask no columns."""
        return self.dim % width == 0

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Allocate on the tensor's device; every kernel writes all that a later one reads."""
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def map(self) -> Tensor:
        """Allocate a bottleneck map of all tokens, ``[B, N, BC]``."""
        return self.new(self.batch, self.tokens, self.padded, dtype=self.dtype)

    def device(self) -> contextlib.AbstractContextManager[Any]:
        """Make the tensor's device the one that is launched on, with its own current stream."""
        if self.x.device.type == "cuda":
            return torch.cuda.device(self.x.device)
        return contextlib.nullcontext()

    def tiles(self, block: int) -> int:
        """Return how many tiles of ``block`` tokens an image has."""
        return triton.cdiv(self.tokens, block)

    def fold(self, backward: bool) -> Folded:
        """Fold the parameters; the two passes need different copies of the down-projection."""
        slices = self.slices
        weights = [self.new(self.padded, self.dim, dtype=self.dtype) for _ in range(2 - backward)]
        w_skip, w_norm, w_down = (weights * 3)[:3] if backward else (*weights, weights[0])
        folded = Folded(
            w_skip=w_skip,
            w_norm=w_norm,
            w_down=w_down,
            w_up=self.new(self.dim, self.padded, dtype=self.dtype),
            w_point=self.new(self.padded, self.padded, dtype=self.dtype),
            sums=self.new(slices, 2, self.padded),
            scale=self.new(1),
            bank=self.new(3, 50, self.padded),
        )
        p = self.params
        fold_kernel[(slices + 4,)](
            p["norm.weight"],
            p["norm.bias"],
            p["gamma"],
            p["gammax"],
            p["down.weight"],
            p["down.bias"],
            p["up.weight"],
            p["conv3.weight"],
            p["conv3.bias"],
            p["conv5.weight"],
            p["conv5.bias"],
            p["conv7.weight"],
            p["conv7.bias"],
            p["pointwise.weight"],
            folded.w_skip,
            folded.w_norm,
            folded.w_down,
            folded.w_up,
            folded.w_point,
            folded.sums,
            folded.scale,
            folded.bank,
            self.dim,
            slices,
            C=self.channels,
            BC=self.padded,
            BD=self.fold_width,
            BACKWARD=backward,
            num_warps=4,
            **FUSED_ARITHMETIC,
        )
        return folded

    def gate(self, pooled: Tensor, gate: Tensor, folded: Folded, backward: bool) -> Tensor:
        """Return each image's kernel, ``[B, 50, BC]``; the forward pass fills ``gate`` with it."""
        kernels = self.new(self.batch, 50, self.padded)
        gate_kernel[(self.batch,)](
            pooled,
            folded.bank,
            self.filter,
            *self.gate_params,
            gate,
            kernels,
            self.height * self.width,
            self.pool_tiles,
            self.filter_stride,
            C=self.channels,
            CQ=self.hidden,
            BC=self.padded,
            BQ=self.padded_hidden,
            FILTER=self.filter_kind,
            GATED=self.call.has_gate,
            BACKWARD=backward,
            **SMALL,
        )
        return kernels

    def dropout(self) -> tuple[int, float]:
        """Return the threshold on 24 random bits and the scale of what is kept."""
        return round(self.call.dropout * 2**24), 1.0 / (1.0 - self.call.dropout)

    def analyse(self, source: Tensor, other: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the first half of the full filter: the scratch tensor and the partial gradients."""
        half = self.width // 2 + 1
        padded_half = max(16, triton.next_power_of_2(2 * half))
        options = self.options("analyse")
        per_group = triton.cdiv(self.batch, FILTER_GROUPS)
        groups = triton.cdiv(self.batch, per_group)
        scratch = self.new(self.batch, self.height, padded_half, self.padded)
        gradient = None
        if other is not None:
            gradient = self.new(groups, self.channels, self.height, half)
        analyse_kernel[(half, self.padded // options["BB"], groups)](
            source,
            source if other is None else other,
            self.filter,
            scratch,
            scratch if gradient is None else gradient,
            self.batch,
            self.tokens,
            self.prefix,
            self.height,
            self.width,
            per_group,
            C=self.channels,
            BC=self.padded,
            HP=max(16, triton.next_power_of_2(self.height)),
            KP=padded_half,
            FILTER_GRADIENT=other is not None,
            PRECISION=self.precision if self.dtype == torch.float32 else "tf32",
            **options,
        )
        return scratch, gradient

    def synthesise(
        self, scratch: Tensor, target: Tensor, backward: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """Run the second half of the full filter, into the patches of ``target``."""
        dv, u_norm, sums, scale, row_means = backward or (scratch,) * 5
        synthesise_kernel[(self.batch * self.height,)](
            scratch,
            target,
            dv,
            u_norm,
            sums,
            scale,
            row_means,
            self.tokens,
            self.prefix,
            self.height,
            self.width,
            self.dim,
            self.slices,
            BC=self.padded,
            WP=max(16, triton.next_power_of_2(self.width)),
            KP=scratch.shape[2],
            BACKWARD=backward is not None,
            PRECISION=self.precision if self.dtype == torch.float32 else "tf32",
            **SMALL,
        )
        return target

    def filtered(self, u: Tensor) -> Tensor:
        """Return the map that the convolutions read: ``u``, unless the filter is a full one."""
        if self.filter_kind != "full":
            return u
        scratch, _ = self.analyse(u)
        return self.synthesise(scratch, self.map())


def allocate_saved(
    x: Tensor, params: Params, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate u, u_norm, stats, pooled and gate; without ``save``, two of them stay empty."""
    run = Launcher(x, params, call)
    return (
        run.map(),
        run.map() if save else run.new(0, dtype=run.dtype),
        run.new(run.batch, run.tokens, 2) if save else run.new(0),
        run.new(run.batch, run.pool_tiles, run.padded),
        run.new(run.batch, 4),
    )


def forward(
    x: Tensor, params: Params, seed: Tensor | None, call: Call, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return ``out`` and what :func:`backward` needs: u, u_norm, stats, pooled and gate.

    Args:
        x: ``[B, N, D]``, any strides, bf16, fp16 or fp32.
        params: the adapter's parameters, contiguous, any floating dtype.
        seed: ``[1]`` int64 on x's device, where there is dropout.
        call: the options of the call.
        save: whether a backward pass may follow; otherwise the last tensors stay empty.
    """
    run = Launcher(x, params, call)
    out = torch.empty_like(x)
    saved = u, u_norm, stats, pooled, gate = allocate_saved(x, params, call, save)
    if x.numel() == 0:
        return out, *saved
    with run.device():
        folded = run.fold(backward=False)
        options = run.options("down")
        down_kernel[(run.batch * run.pool_tiles,)](
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
            run.pool_tiles,
            *x.stride(),
            run.slices,
            call.eps,
            BC=run.padded,
            EVEN_D=run.even(options["BK"]),
            SAVE=save,
            PRECISION=run.precision,
            **options,
        )
        kernels = run.gate(pooled, gate, folded, backward=False)
        options = run.options("up")
        threshold, inverse = run.dropout()
        tiles = run.tiles(options["BM"])
        up_kernel[(run.batch * tiles,)](
            x,
            u,
            run.filtered(u),
            folded.w_up,
            params["up.bias"],
            kernels,
            folded.w_point,
            params["pointwise.bias"],
            gate if seed is None else seed,
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
            PRECISION=run.precision,
            **options,
        )
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
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Return ``dx`` and the parameters' gradients by name, as far as they are needed."""
    run = Launcher(x, params, call)
    u, u_norm, stats, pooled, gate = saved
    dx = torch.empty_like(x) if need_input else None
    # Empty batches and parameters that nothing writes have gradients of zero.
    grads = {
        name: (torch.empty if x.numel() else torch.zeros)(p.shape, dtype=p.dtype, device=p.device)
        for name, p in (params.items() if need_weights else ())
    }
    if x.numel() == 0:
        return dx, grads
    with run.device():
        folded = run.fold(backward=True)
        kernels = run.gate(pooled, gate, folded, backward=True)
        f = run.filtered(u)
        dv, z, d_point, d_point_bias, correlation = _contract(
            run, dout, u, f, kernels, folded, seed, need_weights
        )
        du, row_means, records = _mix_backward(
            run, dv, u_norm, gate, pooled, correlation, folded, kernels
        )
        if run.filter_kind == "full":
            scratch, d_filter = run.analyse(du, u if need_weights else None)
            run.synthesise(scratch, du, (dv, u_norm, folded.sums, folded.scale, row_means))
            if d_filter is not None:
                grads["spectral_filter"] = d_filter.sum(dim=0).to(run.filter.dtype)
        partial = _expand(run, dout, du, z, stats, row_means, folded, dx, need_weights)
        if need_weights:
            _finish_mix(run, grads, correlation, d_point, d_point_bias, gate, records)
            _finish_projections(run, grads, *partial)
    return dx, grads


def _contract(
    run: Launcher,
    dout: Tensor,
    u: Tensor,
    f: Tensor,
    kernels: Tensor,
    folded: Folded,
    seed: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    options = run.options("contract")
    tiles = run.tiles(options["BM"])
    programs = run.batch * tiles if weights else 0
    dv = run.map()
    z = run.map() if weights else dv
    d_point = run.new(programs, run.padded, run.padded)
    d_point_bias = run.new(programs, run.padded)
    correlation = run.new(run.batch, tiles, 50, run.padded)
    threshold, inverse = run.dropout()
    contract_kernel[(run.batch * tiles,)](
        dout,
        u,
        f,
        folded.w_up,
        kernels,
        folded.w_point,
        run.params["pointwise.bias"],
        kernels if seed is None else seed,
        z,
        dv,
        d_point,
        d_point_bias,
        correlation,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        run.dim,
        tiles,
        *dout.stride(),
        threshold,
        inverse,
        C=run.channels,
        BC=run.padded,
        EVEN_D=run.even(options["BD"]),
        DROPOUT=seed is not None,
        WEIGHTS=weights,
        CORRELATE=weights or run.call.has_gate,
        PRECISION=run.precision,
        **options,
    )
    return dv, z, d_point, d_point_bias, correlation


def _mix_backward(
    run: Launcher,
    dv: Tensor,
    u_norm: Tensor,
    gate: Tensor,
    pooled: Tensor,
    correlation: Tensor,
    folded: Folded,
    kernels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    options = run.options("mix_backward")
    tiles = run.tiles(options["BM"])
    du = run.map()
    row_means = run.new(run.batch, run.tokens, 2)
    records = run.new(run.batch, 4 + 2 * run.padded_hidden + 2 * run.padded)
    mix_backward_kernel[(run.batch * tiles,)](
        dv,
        u_norm,
        gate,
        pooled,
        correlation,
        folded.bank,
        kernels,
        folded.sums,
        folded.scale,
        run.filter,
        *run.gate_params[:3],
        du,
        row_means,
        records,
        run.tokens,
        run.prefix,
        run.height,
        run.width,
        run.dim,
        tiles,
        run.pool_tiles,
        correlation.shape[1],
        run.filter_stride,
        run.slices,
        C=run.channels,
        CQ=run.hidden,
        BC=run.padded,
        BQ=run.padded_hidden,
        FILTER=run.filter_kind,
        GATED=run.call.has_gate,
        **options,
    )
    return du, row_means, records


def _expand(
    run: Launcher,
    dout: Tensor,
    du: Tensor,
    z: Tensor,
    stats: Tensor,
    row_means: Tensor,
    folded: Folded,
    dx: Tensor | None,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = run.options("expand")
    tiles = run.tiles(options["BM"])
    slices = triton.cdiv(run.dim, options["BD"])
    total = run.batch * tiles
    per_group = triton.cdiv(total, max(1, EXPAND_PROGRAMS // slices))
    groups = triton.cdiv(total, per_group)
    kept = groups if weights else 0
    partial = (
        run.new(kept, 3, run.padded, run.dim),
        run.new(kept, run.dim),
        run.new(kept, run.padded),
    )
    target = run.x if dx is None else dx
    expand_kernel[(slices * groups,)](
        run.x,
        dout,
        du,
        z,
        stats,
        row_means,
        folded.w_down,
        run.params["norm.weight"],
        run.params["gamma"],
        run.params["gammax"],
        target,
        *partial,
        run.tokens,
        run.dim,
        tiles,
        total,
        per_group,
        slices,
        *run.x.stride(),
        *dout.stride(),
        *target.stride(),
        BC=run.padded,
        EVEN_D=run.even(options["BD"]),
        INPUT=dx is not None,
        WEIGHTS=weights,
        PRECISION=run.strict,
        **options,
    )
    return partial


def _finish_mix(
    run: Launcher,
    grads: Params,
    correlation: Tensor,
    d_point: Tensor,
    d_point_bias: Tensor,
    gate: Tensor,
    records: Tensor,
) -> None:
    unused = grads["gamma"]
    finish_mix_kernel[(51 + run.padded + 1,)](
        correlation,
        d_point,
        d_point_bias,
        gate,
        records,
        run.filter,
        grads.get("spectral_filter", unused),
        *(grads[f"conv{k}.{name}"] for k in (3, 5, 7) for name in ("weight", "bias")),
        *(
            grads.get(f"noise_gate.{name}", unused)
            for name in ("0.weight", "0.bias", "2.weight", "2.bias")
        ),
        grads["pointwise.weight"],
        grads["pointwise.bias"],
        run.batch,
        d_point.shape[0],
        correlation.shape[1],
        run.filter_stride,
        C=run.channels,
        CQ=run.hidden,
        BC=run.padded,
        BQ=run.padded_hidden,
        FILTER=run.filter_kind,
        GATED=run.call.has_gate,
        **SMALL,
    )


def _finish_projections(
    run: Launcher, grads: Params, d_weights: Tensor, d_up_bias: Tensor, d_down_bias: Tensor
) -> None:
    p = run.params
    finish_projections_kernel[(triton.cdiv(run.dim, FINISH_WIDTH),)](
        d_weights,
        d_up_bias,
        d_down_bias,
        p["norm.weight"],
        p["norm.bias"],
        p["gamma"],
        p["gammax"],
        p["down.weight"],
        grads["norm.weight"],
        grads["norm.bias"],
        grads["gamma"],
        grads["gammax"],
        grads["down.weight"],
        grads["down.bias"],
        grads["up.weight"],
        grads["up.bias"],
        run.dim,
        d_weights.shape[0],
        C=run.channels,
        BC=run.padded,
        BD=FINISH_WIDTH,
        **SMALL,
    )
