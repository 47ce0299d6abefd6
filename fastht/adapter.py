"""The HT adapter as a module: its parameters, their initialisation, and its call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastht.config import HTConfig
from fastht.layers import ReadLayer
from fastht.ops import BackendUnavailableError, check_keep, ht_adapter, resolve_backend
from fastht.reference import KERNEL_SIZES
from fastht.spectral import resample_spectral_filter
from fastht.tower import TowerState

_EPS = 1e-5  # of the LayerNorm
_PLAIN = (Tensor, nn.Parameter)
_SHARDED = (
    "{name} of an HT adapter is sharded by itself, and the adapter reads it without a call that "
    "would gather it: apply fully_shard to blocks or whole adapters, not to parts of an adapter"
)


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
        keep: which of its tokens stay alive for the backward pass, see
            :func:`fastht.ops.ht_adapter`.
        device: where the parameters are made.
        dtype: what they are made as.

    Raises:
        ValueError: ``dim`` is not positive, the grid is missing, or there is no such backend or
            ``keep``.
        BackendUnavailableError: the backend cannot run here, or not with so wide a bottleneck.
    """

    keep: str = "auto"  # of adapters that were pickled before there was a choice

    def __init__(
        self,
        dim: int,
        config: HTConfig | None = None,
        *,
        grid_size: tuple[int, int] | None = None,
        backend: str = "auto",
        keep: str = "auto",
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
        self.keep = check_keep(keep)
        self.filter_grid_size: tuple[int, int] | None = None
        self.tower: TowerState | None = None  # of a patched model

        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        channels = config.bottleneck_dim
        self.norm = ReadLayer(nn.LayerNorm, dim, **factory)
        self.gamma = nn.Parameter(torch.empty(dim, **factory))
        self.gammax = nn.Parameter(torch.empty(dim, **factory))
        self.down = ReadLayer(nn.Linear, channels, dim, **factory)
        if config.has_filter:
            shape: tuple[int, ...] = (channels,)
            if config.spectral == "full":
                if grid_size is None:
                    raise ValueError('spectral="full" needs grid_size=(H, W) of the patch grid')
                self.filter_grid_size = (grid_size[0], grid_size[1])
                shape = (channels, grid_size[0], grid_size[1] // 2 + 1)
            self.spectral_filter = nn.Parameter(torch.empty(shape, **factory))
        for k in KERNEL_SIZES:
            setattr(self, f"conv{k}", ReadLayer(nn.Conv2d, channels, 1, k, k, **factory))
        if config.has_gate:
            hidden = channels // 4
            self.noise_gate = nn.ModuleDict(
                {
                    "0": ReadLayer(nn.Linear, hidden, channels, **factory),
                    "2": ReadLayer(nn.Linear, len(KERNEL_SIZES), hidden, **factory),
                }
            )
        self.pointwise = ReadLayer(nn.Linear, channels, channels, **factory)
        self.up = ReadLayer(nn.Linear, dim, channels, **factory)
        paths = [name.split(".") for name, _ in self.named_parameters()]
        self._paths = [(".".join(path), path[:-1], path[-1]) for path in paths]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew as the config's ``init`` says, after ``to_empty`` for example."""
        nn.init.constant_(self.gamma, 1e-6)
        nn.init.ones_(self.gammax)
        if self.config.has_filter:
            nn.init.ones_(self.spectral_filter)
        for module in self.modules():
            if isinstance(module, ReadLayer):
                module.initialize()
        if self.config.init == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(
        self, x: Tensor, grid_size: tuple[int, int] | None = None, num_prefix_tokens: int = 1
    ) -> Tensor:
        """Add the adapter's update to ``x``.

        Under ``torch.fx`` the adapter is one node of the graph.

        Args:
            x: ``[B, N, D]`` floating-point tokens, any strides.
            grid_size: ``(H, W)`` of the patch grid. In a patched model ``None`` takes the grid and
                the prefix of the images in flight, and does nothing where adapters are disabled.
            num_prefix_tokens: class and register tokens before the ``H * W`` patches.

        Returns:
            ``[B, N, D]`` in ``x``'s dtype.

        Raises:
            TypeError, ValueError: ``x`` does not fit, see :func:`fastht.ops.ht_adapter`; or a
                parameter was replaced by something that is no plain tensor.
        """
        if isinstance(x, torch.fx.Proxy):
            return _fx_node(self, x, grid_size, num_prefix_tokens)
        if grid_size is None:
            if self.tower is None:
                raise TypeError("grid_size is missing: give (H, W) of the patch grid")
            if not self.tower.enabled:
                return x
            grid_size, num_prefix_tokens = self.tower.grid_size, self.tower.num_prefix_tokens
        params = self.read_parameters()
        if self.filter_grid_size is not None:
            grid = grid_size
            if torch.jit.is_tracing():  # a trace holds the filter of one grid
                grid = int(grid[0]), int(grid[1])
            params["spectral_filter"] = resample_spectral_filter(
                params["spectral_filter"], self.filter_grid_size, grid
            )
        return ht_adapter(
            x,
            params,
            grid_size=grid_size,
            num_prefix_tokens=num_prefix_tokens,
            dropout=self.config.dropout if self.training else 0.0,
            eps=_EPS,
            backend=self.backend,
            keep=self.keep,
        )

    def read_parameters(self) -> dict[str, Tensor]:
        """Return the parameters by name as the operator takes them now, pruned and the like.

        Raises:
            TypeError: one was replaced by something that is no plain tensor.
        """
        found: dict[str, Tensor] = {}
        path: list[str] | None = None
        layer: nn.Module = self
        for name, parents, leaf in self._paths:
            if parents != path:  # a layer's parameters follow one another
                path, layer = parents, _layer(self, parents)
            if layer._forward_pre_hooks:
                _rewrite(layer, name)
            value = layer._parameters.get(leaf)
            if value is None:  # a plain attribute in DataParallel's replicas, or a hook's
                value = getattr(layer, leaf)
            if type(value) not in _PLAIN:
                _refuse_replaced(name, value)
            found[name] = value
        return found

    def __prepare_scriptable__(self) -> HTAdapter:
        """Say what TorchScript can be made of, when ``torch.jit.script`` comes here.

        An adapter in a patched model has a way of its own, see :mod:`fastht.scriptable`.
        """
        raise RuntimeError(
            "an HT adapter outside of a patched model cannot be compiled by torch.jit.script, "
            "since its patch grid is unknown; use torch.jit.trace or torch.export"
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


def _layer(adapter: nn.Module, path: list[str]) -> nn.Module:
    """Return what is at a path, sparing nn.Module's way to it."""
    for name in path:
        adapter = adapter._modules[name]  # type: ignore[assignment]
    return adapter


def _rewrite(layer: nn.Module, name: str) -> None:
    """Let pruning and the like rewrite a layer's parameter now.

    Raises:
        TypeError: the layer is sharded by itself.
    """
    if isinstance(layer, ReadLayer):
        if hasattr(layer, "unshard"):  # FSDP2 gathers for a call, and again for its backward
            raise TypeError(_SHARDED.format(name=name))
        layer()


def _refuse_replaced(name: str, value: Any) -> None:
    """Raise where a parameter is no longer one that the operator can read."""
    if hasattr(value, "full_tensor"):
        raise TypeError(_SHARDED.format(name=name))
    if not isinstance(value, Tensor) or "torchao" in type(value).__module__:
        raise TypeError(
            f"{name} of an HT adapter was replaced by a {type(value).__name__}; an adapter needs "
            "plain tensors: quantise the base before fastht.patch, or leave out the modules "
            "named 'ht'"
        )


def _fx_node(
    adapter: HTAdapter, x: Any, grid_size: tuple[int, int] | None, num_prefix_tokens: int
) -> Any:
    """Return what stands for the adapter's result while ``torch.fx`` records a graph."""
    arguments = (x,) if grid_size is None else (x, grid_size, num_prefix_tokens)
    path = x.tracer.path_of_module(adapter)
    return x.tracer.create_proxy("call_module", path, arguments, {})
