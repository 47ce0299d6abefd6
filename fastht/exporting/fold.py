"""An adapter's inference form: what is linear in a row is multiplied out once, in float64.

With the names of :mod:`fastht.reference`, each of these is exact algebra:

- eq. 1 and the down-projection: ``W1 (gamma (norm_w n + norm_b) + gammax x) + b1``, with ``n`` the
  normalised token, is ``(W1 gamma norm_w) n + (W1 gammax) x + (W1 gamma norm_b + b1)``;
- a filter of one number a channel (eq. 2) scales each channel's kernels and each column of the
  gate's first layer; of a filter of frequencies the gate sees the mean, and so the constant alone;
- without a gate, the bank (eq. 4) is one 7x7 kernel, the mean of the three, whose centre takes the
  skip too where the map that is skipped is the one that is convolved;
- the 1x1 convolution and its residual are one matrix, ``I + P1``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastht.ops.portable import half_plane_weights, waves
from fastht.reference import KERNEL_SIZES

_WIDEST = max(KERNEL_SIZES)


def fold_weights(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply out what an adapter's parameters allow.

    Args:
        params: as :func:`fastht.reference.ht_adapter` takes them; a full spectral filter has the
            grid of the images.

    Returns:
        Float64 weights of :class:`FoldedAdapter`, by its names.
    """
    p = {name: value.detach().double() for name, value in params.items()}
    down, filter_ = p["down.weight"], p.get("spectral_filter")
    made = {
        "normed": down * (p["gamma"] * p["norm.weight"]),
        "plain": down * p["gammax"],
        "bias": p["down.bias"] + down @ (p["gamma"] * p["norm.bias"]),
        "pointwise": p["pointwise.weight"] + torch.eye(len(down), dtype=torch.float64).to(down),
        "pointwise_bias": p["pointwise.bias"],
        "up": p["up.weight"],
        "up_bias": p["up.bias"],
    }
    scale = torch.ones_like(p["down.bias"])
    constant = scale  # of the spectrum's first entry, which is the mean's
    if filter_ is not None and filter_.ndim == 1:
        scale = constant = filter_
    elif filter_ is not None:
        constant = filter_[:, 0, 0]
        made["frequencies"] = filter_
    kernels = [p[f"conv{k}.weight"] * scale[:, None, None, None] for k in KERNEL_SIZES]
    biases = torch.stack([p[f"conv{k}.bias"] for k in KERNEL_SIZES])
    if "noise_gate.0.weight" in p:
        made |= {f"conv{k}": kernel for k, kernel in zip(KERNEL_SIZES, kernels, strict=True)}
        made |= {
            "conv_biases": biases.T,
            "gate": p["noise_gate.0.weight"] * constant,
            "gate_bias": p["noise_gate.0.bias"],
            "gate_out": p["noise_gate.2.weight"],
            "gate_out_bias": p["noise_gate.2.bias"],
        }
    else:
        padded = [F.pad(kernel, [(_WIDEST - kernel.shape[-1]) // 2] * 4) for kernel in kernels]
        made["bank"] = torch.stack(padded).mean(dim=0)
        made["bank_bias"] = biases.mean(dim=0)
        if "frequencies" not in made:
            made["bank"][:, :, _WIDEST // 2, _WIDEST // 2] += 1
    return made


class FoldedAdapter(nn.Module):
    """One HT adapter in PyTorch's standard operators, for inference alone.

    It stands where :class:`fastht.HTAdapter` stood, as ``<block>.ht``, and is called alike.

    Args:
        params: of the adapter, see :func:`fold_weights`.
        dtype: of the tokens that it takes; the weights are rounded to it once.
        grid_size: ``(H, W)`` of the images, for a full spectral filter; others take any.
        eps: the LayerNorm's.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        dtype: torch.dtype,
        grid_size: tuple[int, int],
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        made = fold_weights(params)
        self.dim = made["up"].shape[0]
        self.eps = eps
        self.frequencies: _Frequencies | None = None
        if (filter_ := made.pop("frequencies", None)) is not None:
            self.frequencies = _Frequencies(filter_, grid_size, dtype)
        self.gated = "gate" in made
        for name, value in made.items():
            self.register_buffer(name, value.to(dtype).contiguous())

    def forward(self, x: Tensor, grid_size: tuple[int, int], num_prefix_tokens: int) -> Tensor:
        """Add the adapter's update to ``x`` ``[B, N, D]``; see :class:`fastht.HTAdapter`."""
        w: dict[str, Tensor] = self._buffers  # type: ignore[assignment]
        normed = F.layer_norm(x, (self.dim,), eps=self.eps)
        u = F.linear(normed, w["normed"], w["bias"]) + F.linear(x, w["plain"])
        prefix, patches = u[:, :num_prefix_tokens], u[:, num_prefix_tokens:]
        s = patches.transpose(1, 2).reshape(x.shape[0], u.shape[2], *grid_size)
        f = s if self.frequencies is None else self.frequencies(s)
        if self.gated:
            hidden = F.relu(F.linear(patches.mean(dim=1), w["gate"], w["gate_bias"]))
            gate = F.linear(hidden, w["gate_out"], w["gate_out_bias"]).softmax(dim=1)
            v = s + F.linear(gate, w["conv_biases"])[:, :, None, None]
            for i, k in enumerate(KERNEL_SIZES):
                v = v + gate[:, i, None, None, None] * _depthwise(f, w[f"conv{k}"], None)
        else:
            v = _depthwise(f, w["bank"], w["bank_bias"])
            if self.frequencies is not None:  # else the kernel's centre holds the skip
                v = v + s
        y = F.linear(v.flatten(2).transpose(1, 2), w["pointwise"], w["pointwise_bias"])
        z = F.gelu(torch.cat([prefix, y], dim=1))
        return x + F.linear(z, w["up"], w["up_bias"])


class _Frequencies(nn.Module):
    """A filter of one number a channel and frequency, for one grid, as four products of matrices.

    Real and imaginary part stand side by side along the width, ``[re, im]``, or below each other
    along the height, ``[re; im]``. See :func:`fastht.ops.portable.spectral_filter`.

    Args:
        weight: ``[C, H, W // 2 + 1]``.
        grid_size: ``(H, W)``.
        dtype: of the maps.
    """

    across: Tensor
    down: Tensor
    scale: Tensor
    up: Tensor
    back: Tensor

    def __init__(self, weight: Tensor, grid_size: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        # As the reference: a spectrum's sums lose too much in 16 bits.
        dtype = torch.float32 if dtype.itemsize == 2 else dtype
        height, width = grid_size
        columns = width // 2 + 1
        self.grid_size = grid_size
        (cos_h, sin_h), (cos_w, sin_w) = (
            waves(size, count, weight) for size, count in ((height, height), (width, columns))
        )
        twice = half_plane_weights(width, weight)
        made = {
            "across": torch.cat([cos_w, -sin_w], dim=1),
            "down": _complex(cos_h, sin_h),
            "scale": (weight * twice / (height * width)).repeat(1, 2, 1),
            "up": _complex(cos_h, -sin_h),
            "back": torch.cat([cos_w.T, -sin_w.T]),
        }
        for name, value in made.items():
            self.register_buffer(name, value.to(dtype).contiguous())

    def forward(self, s: Tensor) -> Tensor:
        """Filter maps ``[B, C, H, W]``."""
        beside = s.to(self.across.dtype) @ self.across
        spectrum = self.down @ torch.cat(beside.chunk(2, dim=3), dim=2)
        below = self.up @ (spectrum * self.scale)
        return (torch.cat(below.chunk(2, dim=2), dim=3) @ self.back).to(s.dtype)


def _complex(cos: Tensor, sin: Tensor) -> Tensor:
    """Return what multiplies ``[re; im]`` by ``cos - i sin``."""
    return torch.cat([torch.cat([cos, sin], dim=1), torch.cat([-sin, cos], dim=1)])


def _depthwise(maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    side = weight.shape[-1]
    return F.conv2d(maps, weight, bias, padding=side // 2, groups=weight.shape[0])
