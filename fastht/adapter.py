"""The HT adapter as a module: its parameters, their initialisation, and its call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastht.config import HTConfig
from fastht.ops import BackendUnavailableError, ht_adapter, resolve_backend
from fastht.reference import KERNEL_SIZES
from fastht.spectral import resample_spectral_filter


class HTAdapter(nn.Module):
    """One HT adapter for tokens of width ``dim`` (arXiv 2506.08849, section III).

    The submodules hold the parameters under the field's usual names and initialisations; the
    computation is one operation, :func:`fastht.ops.ht_adapter`, over all of them.

    Args:
        dim: features a token, D.
        config: what the adapter is made of; the default is the paper's hybrid.
        grid_size: ``(H, W)`` of the patch grid, needed by ``spectral="full"`` alone, whose filter
            has one value a frequency of that grid. Other grids resample it at the call.
        backend: ``"auto"`` or one of :func:`fastht.backends`.
        device, dtype: where and as what the parameters are made.

    Raises:
        ValueError: ``dim`` is not positive, the grid is missing or there is no such backend.
        BackendUnavailableError: the backend cannot run here, or not with so wide a bottleneck.
    """

    def __init__(
        self,
        dim: int,
        config: HTConfig | None = None,
        *,
        grid_size: tuple[int, int] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        config = HTConfig() if config is None else config
        if dim < 1:
            raise ValueError(f"dim is {dim}; an adapter needs at least one feature a token")
        # What is unusable is refused now, not at the first step.
        resolve_backend(backend, channels=config.bottleneck_dim)
        self.dim = dim
        self.config = config
        self.backend = backend
        self.filter_grid_size: tuple[int, int] | None = None

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        channels = config.bottleneck_dim
        self.norm = nn.LayerNorm(dim, **factory)
        self.gamma = nn.Parameter(torch.full((dim,), 1e-6, **factory))
        self.gammax = nn.Parameter(torch.ones(dim, **factory))
        self.down = nn.Linear(dim, channels, **factory)
        if config.has_filter:
            shape: tuple[int, ...] = (channels,)
            if config.spectral == "full":
                if grid_size is None:
                    raise ValueError('spectral="full" needs grid_size=(H, W) of the patch grid')
                self.filter_grid_size = (grid_size[0], grid_size[1])
                shape = (channels, grid_size[0], grid_size[1] // 2 + 1)
            self.spectral_filter = nn.Parameter(torch.ones(shape, **factory))
        for k in KERNEL_SIZES:
            conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, **factory)
            setattr(self, f"conv{k}", conv)
        if config.has_gate:
            self.noise_gate = nn.Sequential(
                nn.Linear(channels, channels // 4, **factory),
                nn.ReLU(),
                nn.Linear(channels // 4, len(KERNEL_SIZES), **factory),
            )
        self.pointwise = nn.Linear(channels, channels, **factory)
        self.up = nn.Linear(channels, dim, **factory)
        if config.init == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        paths = [name.split(".") for name, _ in self.named_parameters()]
        self._paths = [(".".join(path), path[:-1], path[-1]) for path in paths]

    def forward(self, x: Tensor, grid_size: tuple[int, int], num_prefix_tokens: int = 1) -> Tensor:
        """Add the adapter's update to ``x``.

        Args:
            x: ``[B, N, D]`` floating-point tokens, any strides.
            grid_size: ``(H, W)`` of the patch grid.
            num_prefix_tokens: class and register tokens before the ``H * W`` patches.

        Returns:
            ``[B, N, D]`` in ``x``'s dtype.

        Raises:
            TypeError, ValueError: ``x`` does not fit; see :func:`fastht.ops.ht_adapter`.
        """
        params = {name: _tensor(self, parents, leaf) for name, parents, leaf in self._paths}
        if self.filter_grid_size is not None:
            params["spectral_filter"] = resample_spectral_filter(
                params["spectral_filter"], self.filter_grid_size, grid_size
            )
        return ht_adapter(
            x,
            params,
            grid_size=grid_size,
            num_prefix_tokens=num_prefix_tokens,
            dropout=self.config.dropout if self.training else 0.0,
            eps=self.norm.eps,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """Name what the children do not show: the variant, the filter and the backend in use."""
        config = self.config
        parts = [f"dim={self.dim}", f"variant={config.variant!r}"]
        if config.has_filter:
            parts.append(f"spectral={config.spectral!r}")
        parts.append(f"dropout={config.dropout}")
        shown = self.backend
        if shown == "auto":
            tokens = self.gamma.device, self.gamma.dtype, config.bottleneck_dim
            shown = f"auto -> {resolve_backend('auto', *tokens).name}"
        else:
            try:  # of the machine alone: the module may be on its way to the device
                resolve_backend(shown)
            except BackendUnavailableError:  # made on another machine
                shown = f"{shown} -> not usable here"
        return ", ".join([*parts, f"backend={shown!r}"])


def _tensor(module: nn.Module, parents: list[str], leaf: str) -> Tensor:
    """Return a parameter by its module's path and its name, sparing nn.Module's way to it.

    In DataParallel's replicas the parameters are plain attributes, which ``named_parameters``
    leaves out.
    """
    for parent in parents:
        module = module._modules[parent]  # type: ignore[assignment]
    value = module._parameters.get(leaf)
    return getattr(module, leaf) if value is None else value
