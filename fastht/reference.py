"""The HT adapter in plain PyTorch: the definition of correct for every other backend.

Source: arXiv 2506.08849, section III; equation numbers below are the paper's. Parameters go by
the names of :class:`fastht.HTAdapter`'s ``state_dict``; which of them are present decides the
variant, so there is one code path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

KERNEL_SIZES = (3, 5, 7)


def spectral_filter(s: Tensor, weight: Tensor) -> Tensor:
    """Scale the spectrum of each channel map by real numbers (eq. 2).

    Args:
        s: ``[B, C, H, W]``.
        weight: ``[C]``, one number a channel (the FFT pair then cancels: ``f = weight * s``), or
            ``[C, H, W // 2 + 1]``, one number a channel and frequency.

    Returns:
        ``[B, C, H, W]`` in ``s``'s dtype. bf16 and fp16 maps, for which PyTorch has no FFT on
        every device, are transformed in float32.
    """
    if s.numel() == 0:  # MKL refuses an empty batch
        return s * weight.sum()
    wide = s.float() if s.dtype in (torch.float16, torch.bfloat16) else s
    scale = weight[:, None, None] if weight.ndim == 1 else weight
    spectrum = torch.fft.rfft2(wide) * scale.to(wide.dtype)
    return torch.fft.irfft2(spectrum, s=s.shape[-2:]).to(s.dtype)


def ht_adapter(
    x: Tensor,
    params: Mapping[str, Tensor],
    *,
    grid_size: tuple[int, int],
    num_prefix_tokens: int,
    dropout: float = 0.0,
    eps: float = 1e-5,
    spectral: Callable[[Tensor, Tensor], Tensor] = spectral_filter,
) -> Tensor:
    """Apply one HT adapter to the tokens of a vision transformer.

    Args:
        x: ``[B, N, D]`` tokens, any floating dtype and strides. The first ``num_prefix_tokens``
            are class and register tokens, the other ``H * W`` the patches in row-major order.
        params: the adapter's parameters by name. Outside autocast they are cast to ``x``'s
            dtype; under autocast PyTorch's own rules choose the precision of each step.
        grid_size: ``(H, W)`` of the patch grid.
        num_prefix_tokens: P, with ``N == P + H * W``.
        dropout: probability of zeroing a bottleneck activation; 0 in evaluation.
        eps: the LayerNorm's epsilon.
        spectral: computes eq. 2; :mod:`fastht.ops.portable` has one without FFTs.

    Returns:
        ``[B, N, D]``: ``x`` plus the adapter's update.
    """
    change = update(
        bottleneck(x, params, eps),
        params,
        x.dtype,
        grid_size=grid_size,
        num_prefix_tokens=num_prefix_tokens,
        dropout=dropout,
        spectral=spectral,
    )
    return x + change  # eq. 5


def bottleneck(x: Tensor, params: Mapping[str, Tensor], eps: float) -> Tensor:
    """Compute what all of the update is made of: u, ``[B, N, C]`` (eq. 1, down-projection)."""
    p = _cast(params, x, x.dtype)
    # eq. 1: a learned mix of the normalised and the plain tokens
    h = F.layer_norm(x, p["norm.weight"].shape, p["norm.weight"], p["norm.bias"], eps)
    h = h * p["gamma"] + x * p["gammax"]
    return F.linear(h, p["down.weight"], p["down.bias"])


def update(
    u: Tensor,
    params: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    grid_size: tuple[int, int],
    num_prefix_tokens: int,
    dropout: float = 0.0,
    eps: float = 1e-5,
    spectral: Callable[[Tensor, Tensor], Tensor] = spectral_filter,
) -> Tensor:
    """Compute what an adapter adds to its tokens, ``[B, N, D]`` (eq. 2 to 5).

    Args:
        u: ``[B, N, C]``, of :func:`bottleneck`.
        params: as in :func:`ht_adapter`.
        dtype: the tokens'.
        grid_size: as in :func:`ht_adapter`.
        num_prefix_tokens: as there.
        dropout: as there.
        eps: of :func:`bottleneck`; not used.
        spectral: as in :func:`ht_adapter`.
    """
    p = _cast(params, u, dtype)
    prefix, patches = u[:, :num_prefix_tokens], u[:, num_prefix_tokens:]
    s = patches.transpose(1, 2).reshape(u.shape[0], u.shape[2], *grid_size)

    f = spectral(s, p["spectral_filter"]) if "spectral_filter" in p else s  # eq. 2
    v = s + gated_depthwise_bank(f, noise_gate(f, p), p)  # eq. 3 and 4; the skip is unfiltered
    y = v + F.conv2d(v, p["pointwise.weight"][:, :, None, None], p["pointwise.bias"])

    tokens = torch.cat([prefix, y.flatten(2).transpose(1, 2)], dim=1)
    z = F.dropout(F.gelu(tokens), dropout)
    return F.linear(z, p["up.weight"], p["up.bias"])


def _cast(params: Mapping[str, Tensor], like: Tensor, dtype: torch.dtype) -> Mapping[str, Tensor]:
    # There is no autocast on the meta device, and PyTorch raises when it is asked about it.
    if like.is_meta or not torch.is_autocast_enabled(like.device.type):
        return {name: value.to(dtype) for name, value in params.items()}
    return params


def noise_gate(f: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Weigh the three convolutions by each sample's own mean activation (eq. 3).

    Args:
        f: ``[B, C, H, W]`` filtered maps.
        params: holds ``noise_gate.0`` (``C // 4 x C``) and ``noise_gate.2`` (``3 x C // 4``), or
            neither: then every weight is 1/3, as in Mona.

    Returns:
        ``[B, 3]`` weights that sum to 1.
    """
    if "noise_gate.0.weight" not in params:
        return f.new_full((f.shape[0], len(KERNEL_SIZES)), 1 / len(KERNEL_SIZES))
    pooled = f.mean(dim=(2, 3))
    hidden = F.linear(pooled, params["noise_gate.0.weight"], params["noise_gate.0.bias"])
    logits = F.linear(F.relu(hidden), params["noise_gate.2.weight"], params["noise_gate.2.bias"])
    return logits.softmax(dim=1)


def gated_depthwise_bank(f: Tensor, gate: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Sum the 3x3, 5x5 and 7x7 depthwise convolutions, weighted by the gate (eq. 4).

    Args:
        f: ``[B, C, H, W]`` filtered maps; zeros are padded around them ("same").
        gate: ``[B, 3]``.
        params: holds ``conv{k}.weight`` ``[C, 1, k, k]`` and ``conv{k}.bias`` ``[C]``.

    Returns:
        ``[B, C, H, W]``.
    """
    out = torch.zeros_like(f)
    for k, weight in zip(KERNEL_SIZES, gate.unbind(dim=1), strict=True):
        conv = F.conv2d(
            f,
            params[f"conv{k}.weight"],
            params[f"conv{k}.bias"],
            padding=k // 2,
            groups=f.shape[1],
        )
        out = out + weight[:, None, None, None] * conv
    return out
