"""What all launches of one call share: sizes, configurations, and the launches of both passes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fastht.ops.call import Call
from fastht.ops.triton import configs
from fastht.ops.triton.fold import fold_kernel
from fastht.ops.triton.gate import gate_kernel
from fastht.ops.triton.replay import Recording
from fastht.ops.triton.spectral import analyse_kernel, synthesise_kernel

FOLD_TILE = 4096  # weights a program of the fold kernel
FOLD_ROWS = 2  # rows of weights that a program of it adds up
FILTER_GROUPS = 16  # groups of images in the filter's gradient
# How products are made, and those of the full filter's float32 numbers: see
# fastht.ops.triton.products.
PRECISIONS = {"16": "ieee", "32>16": "ieee", "tf32": "tf32", "32": "split"}
FILTER_PRECISIONS = {"16": "rounded", "32>16": "rounded", "tf32": "rounded", "32": "split"}
# Multiply and add in one instruction: said here, as Triton's own default is about to change.
FUSED_ARITHMETIC = {"enable_fp_fusion": True}
# Kernels whose rows may have pairs of pixels: see fastht.ops.triton.depthwise.
CONVOLVING = ("up", "point_backward", "correlate", "mix_backward")
# Launches that no size of tile matters to. Left alone, the assembler squeezes some of them into
# fewer registers than they need.
SMALL = {"num_warps": 4, "maxnreg": 128, **FUSED_ARITHMETIC}

# Launches of few programs, which may have all the registers that there are.
FEW = {**SMALL, "maxnreg": 255}

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

    def __init__(
        self, x: Tensor, params: Params, call: Call, recording: Recording | None = None
    ) -> None:
        self.x, self.params, self.call = x, params, call
        self._recording = recording
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
        self.filter = params["spectral_filter"] if call.has_filter else params["gamma"]
        self.filter_kind = "none"
        self.filter_stride = 1
        if call.has_filter:
            self.filter_kind = "full" if self.filter.ndim == 3 else "channel"
            self.filter_stride = self.filter.stride(0)
        self._arch = configs.architecture(x.device)
        # Whether products are those of four warps together, whose rows are 64 at least.
        self.warp_groups = configs.column(self._arch) != "sm_80"
        self._numbers = configs.number_class(x.dtype, self.dtype, call.tf32)
        self.precision = PRECISIONS[self._numbers]
        # The tiles of the down-projection, and how many images one of them may have a part of.
        self.pool_rows = self.options("down")["BM"]
        self.pool_tiles = triton.cdiv(self.batch * self.tokens, self.pool_rows)
        self.pool_span = (self.pool_rows + self.tokens - 2) // self.tokens + 1 if self.tokens else 1
        self.gate_params = (
            [params[f"noise_gate.{name}"] for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
            if call.has_gate
            else [params["gamma"]] * 4
        )

    def options(self, kernel: str) -> dict[str, int]:
        """Return the configuration of one kernel for this call."""
        chosen = configs.options(kernel, self._arch, self.padded, self._numbers, self.dim)
        if kernel in CONVOLVING:  # a row of patches has whole pairs of pixels or none
            pixels = chosen.get("PIXELS", 1) if self.width % 2 == 0 else 1
            chosen = {**chosen, "PIXELS": pixels}
        if kernel == "up":
            chosen = {"AHEAD": 0, "ACROSS": 0, **chosen}
        return {**chosen, **FUSED_ARITHMETIC}

    def even(self, width: int) -> bool:
        """Whether the features fill every tile of ``width``: then the kernels mask no columns."""
        return self.dim % width == 0

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Allocate on the tensor's device; every kernel writes all that a later one reads."""
        made = torch.empty(shape, dtype=dtype, device=self.x.device)
        return made if self._recording is None else self._recording.made(made)

    def launch(self, kernel: Any, *grid: int) -> Callable[..., Any]:
        """Return what starts ``kernel`` on ``grid``, given the kernel's arguments."""
        if self._recording is None:
            return kernel[grid]  # type: ignore[no-any-return]
        return self._recording.launching(kernel, grid)

    def not_by_launches_alone(self) -> None:
        """Say that PyTorch computes something here, so that launches do not repeat the call."""
        if self._recording is not None:
            self._recording.whole = False

    def map(self) -> Tensor:
        """Allocate a bottleneck map of all tokens, ``[B, N, BC]``."""
        return self.new(self.batch, self.tokens, self.padded, dtype=self.dtype)

    def device(self) -> contextlib.AbstractContextManager[Any]:
        """Make the tensor's device the one that is launched on, with its own current stream."""
        if self.x.device.type == "cuda":
            return torch.cuda.device(self.x.device)
        return contextlib.nullcontext()

    def flat(self, *tensors: Tensor) -> bool:
        """Whether in all of these, images follow one another like the tokens of one."""
        return all(t.stride(0) == self.tokens * t.stride(1) for t in tensors)

    def tiles(self, options: Mapping[str, int]) -> int:
        """Return how many tiles an image has in a kernel that convolves."""
        rows = self.tokens + (self.prefix % 2 if options["PIXELS"] == 2 else 0)
        return triton.cdiv(rows, options["BM"])

    def fold(self, backward: bool) -> Folded:
        """Fold the parameters; the two passes need different copies of the down-projection."""
        slices = triton.cdiv(self.dim, self.fold_width)
        weights = [self.new(self.padded, self.dim, dtype=self.dtype) for _ in range(2 - backward)]
        w_skip, w_norm, w_down = (weights * 3)[:3] if backward else (*weights, weights[0])
        folded = Folded(
            w_skip=w_skip,
            w_norm=w_norm,
            w_down=w_down,
            w_up=self.new(self.dim, self.padded, dtype=self.dtype),
            w_point=self.new(self.padded, self.padded, dtype=self.dtype),
            sums=self.new(3, self.padded),
            scale=self.new(1),
            bank=self.new(3, 50, self.padded),
        )
        p = self.params
        self.launch(fold_kernel, slices + 4 + self.padded // FOLD_ROWS)(
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
            ROWS=FOLD_ROWS,
            BACKWARD=backward,
            **(FEW if self.padded >= 128 else SMALL),
        )
        return folded

    def gate(
        self, pooled: Tensor, sums: Tensor, gate: Tensor, folded: Folded, backward: bool
    ) -> Tensor:
        """Return each image's kernel, ``[B, 50, BC]``.

        The forward pass fills ``sums`` and ``gate`` on the way, which the backward pass reads.
        """
        kernels = self.new(self.batch, 50, self.padded)
        self.launch(gate_kernel, self.batch)(
            pooled,
            folded.bank,
            self.filter,
            *self.gate_params,
            sums,
            gate,
            kernels,
            self.tokens,
            self.height * self.width,
            self.pool_rows,
            self.pool_span,
            self.filter_stride,
            C=self.channels,
            CQ=self.hidden,
            BC=self.padded,
            BQ=self.padded_hidden,
            FILTER=self.filter_kind,
            GATED=self.call.has_gate,
            PAIRED=self.dtype.itemsize == 2,
            BACKWARD=backward,
            **SMALL | {"num_warps": max(4, self.padded // 8)},
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
        self.launch(analyse_kernel, half, self.padded // options["BB"], groups)(
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
            PRECISION=FILTER_PRECISIONS[self._numbers],
            **options,
        )
        return scratch, gradient

    def synthesise(
        self, scratch: Tensor, target: Tensor, backward: tuple[Tensor, ...] | None = None
    ) -> Tensor:
        """Run the second half of the full filter, into the patches of ``target``."""
        dv, u_norm, sums, scale, row_means, du_sums = backward or (scratch,) * 6
        self.launch(synthesise_kernel, self.batch * self.height)(
            scratch,
            target,
            dv,
            u_norm,
            sums,
            scale,
            row_means,
            du_sums,
            self.tokens,
            self.prefix,
            self.height,
            self.width,
            self.dim,
            BC=self.padded,
            WP=max(16, triton.next_power_of_2(self.width)),
            KP=scratch.shape[2],
            BACKWARD=backward is not None,
            PRECISION=FILTER_PRECISIONS[self._numbers],
            **(FEW if self.padded >= 128 else SMALL),
        )
        return target

    def filtered(self, u: Tensor) -> Tensor:
        """Return the map that the convolutions read: ``u``, unless the filter is a full one."""
        if self.filter_kind != "full":
            return u
        scratch, _ = self.analyse(u)
        return self.synthesise(scratch, self.map())
